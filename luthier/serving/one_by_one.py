"""Answers made each by itself, a token in turn: for backends that know no batch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence

from luthier.nets.tokens import Token
from luthier.serving.backends.base import Asked, Backend, Said


class OneByOne(Backend):
    """What `generate` yields becomes an answer's tokens; a step is one of each."""

    def __init__(self) -> None:
        self._running: dict[Asked, Iterator[Token]] = {}

    @abstractmethod
    def generate(self, asked: Asked) -> Iterator[Token]:
        """Yield the answer's tokens, each made when it is asked for; steps of several answers alternate.

        It ends as an answer ends, and raises what ends it; what `begin` would refuse is raised at the first token.
        """

    def begin(self, asked: Asked) -> None:
        self._running[asked] = self.generate(asked)

    def step(self) -> Sequence[Said]:
        return [self._stepped(asked, tokens) for asked, tokens in list(self._running.items())]

    def cancel(self, asked: Asked) -> None:
        if (tokens := self._running.pop(asked, None)) is not None:
            _close(tokens)

    @property
    def is_idle(self) -> bool:
        return not self._running

    def _stepped(self, asked: Asked, tokens: Iterator[Token]) -> Said:
        try:
            return Said(asked, next(tokens))
        except StopIteration:
            del self._running[asked]
            return Said(asked, is_last=True)
        except Exception as error:
            del self._running[asked]
            return Said(asked, error=error)


def _close(tokens: Iterator[Token]) -> None:
    if close := getattr(tokens, "close", None):
        close()
