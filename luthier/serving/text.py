"""Generated tokens into text that may be shown: never half a character, never a part of a stop string."""

from __future__ import annotations

from luthier.chat.tokenizer import Tokenizer

_HALF = "\ufffd"  # what decoding gives for bytes that are no whole character yet


class AnswerText:
    """The text of one answer, given out as soon as it is certain: what `add` and `rest` give, joined, is the answer."""

    def __init__(self, tokenizer: Tokenizer, stops: list[str]) -> None:
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self._tokens: list[int] = []
        self._context = 0  # tokens before this one no longer matter
        self._shown = 0  # text of the tokens before this one has been taken
        self._held = ""
        self.is_stopped = False  # a stop string was met; it and what follows is no part of the answer

    def add(self, token: int) -> str:
        """The text that has become certain with this token, often empty."""
        self._tokens.append(token)
        return self._release(self._decoded(is_last=False), is_last=False)

    def rest(self) -> str:
        """What was held back, once no token follows."""
        return self._release(self._decoded(is_last=True), is_last=True)

    def _decoded(self, *, is_last: bool) -> str:
        """The text of the tokens not yet taken; empty while they end within a character.

        They are decoded behind the tokens taken before, since what a token says may depend on its neighbours.
        """
        before = self._tokenizer.decode(self._tokens[self._context : self._shown])
        text = self._tokenizer.decode(self._tokens[self._context :])
        if len(text) <= len(before) or (text.endswith(_HALF) and not is_last):
            return ""
        self._context, self._shown = self._shown, len(self._tokens)
        return text[len(before) :]

    def _release(self, text: str, *, is_last: bool) -> str:
        if self.is_stopped:
            return ""
        text = self._held + text
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.is_stopped, self._held = True, ""
            return text[: min(found)]
        keep = 0 if is_last else max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that may begin `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
