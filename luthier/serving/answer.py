"""One answer, from tokens to chunks: characters are put together, stop strings and tool calls found."""

from __future__ import annotations

import hashlib
import random
import string
from collections.abc import Iterator, Sequence
from itertools import groupby

from luthier.chat.messages import ToolCall
from luthier.chat.reading import PlainReader, Said
from luthier.chat.renderers.base import Renderer
from luthier.nets.tokens import Token
from luthier.serving.likelihoods import Likelihoods
from luthier.serving.protocol import CalledTool, GenerateRequest, TokenChunk
from luthier.serving.text import AnswerText


class AnswerChunks:
    """What `add` and `rest` give, joined, is the answer. Calls are read only where the request offers tools."""

    def __init__(self, renderer: Renderer, request: GenerateRequest, prompt: Sequence[int]) -> None:
        self._tokenizer = renderer.tokenizer
        self._stops = request.sampling.stop
        self._one_call = not request.parallel_tool_calls
        self._only_calls = request.must_call is not None
        is_chat = request.prompt is None
        self._reader = renderer.reader(calls=bool(request.tools)) if is_chat else PlainReader()
        self._divider = renderer.divider if is_chat else None
        self._ids = _call_ids(request.sampling.seed, prompt)
        self._text = AnswerText(self._tokenizer, self._stops)
        self._likelihoods: Likelihoods | None = None
        if request.sampling.logprobs is not None:
            self._likelihoods = Likelihoods(self._tokenizer, renderer.before_text() if is_chat else "")
        self._is_plain = isinstance(self._reader, PlainReader) and self._likelihoods is None  # the short way, for speed
        self._read = 0  # bytes of the text that the reader was given
        self.is_stopped = False  # a stop string was met, or the one call was made: no token may follow
        self.has_calls = False

    def add(self, token: Token) -> list[TokenChunk]:
        """What has become certain with a token that does not end the answer."""
        if self._is_plain:
            text = self._text.add(token.id)
            self.is_stopped = self._text.is_stopped
            return [TokenChunk(text=text)] if text else []
        if token.id == self._divider:
            said = [*self._given(self._text.rest()), *self._reader.divide()]
            is_cut, self._text = self._text.is_stopped, AnswerText(self._tokenizer, self._stops)
        else:
            if self._likelihoods is not None:
                self._likelihoods.add(token)
            said, is_cut = self._given(self._text.add(token.id)), self._text.is_stopped
        self.is_stopped = self.is_stopped or is_cut
        chunks = self._chunks(said)
        if self._likelihoods is None or not chunks or self.is_stopped:
            return chunks
        told = self._likelihoods.up_to(self._read - len(self._reader.held.encode()))
        return [*chunks[:-1], chunks[-1].model_copy(update={"logprobs": told})]

    def rest(self) -> list[TokenChunk]:
        """What was held back, once no token follows."""
        said: Sequence[Said] = [*self._given(self._text.rest()), *self._reader.rest()]
        if self.has_calls and self._one_call:  # what was made behind it is not said
            said = []
        elif self.has_calls and self._only_calls:  # nor the half of another where nothing but calls was asked for
            said = [one for one in said if isinstance(one, ToolCall)]
        chunks = self._chunks(said)
        self.is_stopped = self.is_stopped or self._text.is_stopped
        if self._likelihoods is None:
            return chunks
        told = self._likelihoods.rest(self._read if self.is_stopped else None)
        return [*chunks, TokenChunk(logprobs=told)] if told else chunks

    def _given(self, text: str) -> list[Said]:
        if not text:
            return []
        if self._likelihoods is not None:
            self._read += len(text.encode())
        return self._reader.add(text)

    def _chunks(self, said: Sequence[Said]) -> list[TokenChunk]:
        chunks: list[TokenChunk] = []
        for is_text, pieces in groupby(said, lambda one: isinstance(one, str)):
            if is_text:
                chunks.append(TokenChunk(text="".join(map(str, pieces))))
                continue
            made = [self._called(one) for one in pieces if isinstance(one, ToolCall)]
            self.has_calls = True
            chunks.append(TokenChunk(tool_calls=made[:1] if self._one_call else made))
            if self._one_call:
                self.is_stopped = True
                break
        return chunks

    def _called(self, call: ToolCall) -> CalledTool:
        return CalledTool(id=next(self._ids), name=call.name, arguments=call.arguments)


def _call_ids(seed: int | None, prompt: Sequence[int]) -> Iterator[str]:
    """Ids that no other call has; with a seed the same prompt gets the same ones."""
    dice = random.SystemRandom()
    if seed is not None:
        digest = hashlib.sha256(f"{seed}:{','.join(map(str, prompt))}".encode())
        dice = random.Random(digest.digest())  # noqa: S311 (an id is no secret)
    while True:
        yield "call_" + "".join(dice.choices(string.ascii_letters + string.digits, k=24))
