"""Log-probabilities of an answer's tokens, told when their text is certain."""

from __future__ import annotations

import math
from collections import deque

from luthier.chat.token_bytes import TokenBytes
from luthier.chat.tokenizer import Tokenizer
from luthier.nets.tokens import Token
from luthier.serving.protocol import Likelihood, TokenLikelihood

_LOWEST = -9999.0  # JSON has no infinity


class Likelihoods:
    """Those of one answer. Joined, the bytes of the tokens told are the bytes of its text."""

    def __init__(self, tokenizer: Tokenizer, frame: str) -> None:
        """`frame` stands before the text and is no part of it."""
        self._tokenizer = tokenizer
        self._bytes = TokenBytes(tokenizer)
        self._frame = frame.encode()
        self._waiting: deque[tuple[int, int, TokenLikelihood]] = deque()  # with the bytes before and up to it
        self._length = 0  # bytes of all tokens so far

    def add(self, token: Token) -> None:
        """A token that was made; nothing happens where it does not tell its log-probability."""
        if token.logprob is None:
            return
        said = self._bytes.of(token.id)
        if not self._length and said and said == self._frame:
            self._frame = b""
            return
        if not self._length and said.startswith(b" ") and not self._tokenizer.decode([token.id]).startswith(" "):
            said = said[1:]  # the tokenizer's own blank, which stands before every text
        likeliest = [self._likelihood(other, logprob) for other, logprob in token.likeliest]
        told = TokenLikelihood(**self._likelihood(token.id, token.logprob, said).model_dump(), likeliest=likeliest)
        self._waiting.append((self._length, self._length + len(said), told))
        self._length += len(said)

    def up_to(self, length: int) -> list[TokenLikelihood]:
        """Those not told yet that lie within so many bytes of the answer."""
        told: list[TokenLikelihood] = []
        while self._waiting and self._waiting[0][1] <= length:
            told.append(self._waiting.popleft()[2])
        return told

    def rest(self, length: int | None) -> list[TokenLikelihood]:
        """Those not told yet; where the answer was cut to so many bytes, only those that begin before the cut."""
        told = [told for begin, _, told in self._waiting if length is None or begin < length]
        self._waiting.clear()
        return told

    def _likelihood(self, token: int, logprob: float, said: bytes | None = None) -> Likelihood:
        said = self._bytes.of(token) if said is None else said
        text = said.decode(errors="replace") if said else self._tokenizer.name_of(token)
        return Likelihood(token=text, logprob=logprob if math.isfinite(logprob) else _LOWEST, bytes=list(said))
