"""Says the last user message back, with any tokenizer and no weights: the twin for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path

from luthier.chat.messages import Conversation, Message
from luthier.chat.renderers.base import Renderer, renderer_for
from luthier.chat.tokenizer import Tokenizer
from luthier.core.errors import InternalError, NotOffered
from luthier.nets.tokens import Token
from luthier.serving.backends.base import Asked
from luthier.serving.one_by_one import OneByOne
from luthier.serving.protocol import AdapterRef
from luthier.serving.spec import ReplicaSpec
from luthier.storage import Storage


class Echo(OneByOne):
    """Adapters are checked and remembered; they change nothing in what is said."""

    def __init__(self, renderer: Renderer) -> None:
        super().__init__()
        self._adapters: set[str] = set()
        self._before, self._after = _frame(renderer)
        self._stop = min(renderer.stops)

    @classmethod
    def open(cls, spec: ReplicaSpec, storage: Storage) -> Echo:
        return cls(renderer_for(Tokenizer(storage.folder(spec.vocabulary))))

    def read_adapter(self, folder: Path, ref: AdapterRef) -> Callable[[], None]:
        return lambda: self._adapters.add(ref.id)

    def unload_adapter(self, adapter: str) -> None:
        self._adapters.remove(adapter)

    def generate(self, asked: Asked) -> Iterator[Token]:
        """A prompt that is no conversation is said back as a whole. Every token is as certain as can be."""
        if asked.guide is not None:
            raise NotOffered("This replica only says back what it hears: it can follow no schema and call no tool.")
        prompt, count = asked.prompt, asked.sampling.logprobs
        width, end = len(self._before), len(prompt) - len(self._after)
        starts = (n for n in range(end, width - 1, -1) if prompt[n - width : n] == self._before)
        start = next(starts, None) if prompt[end:] == self._after else None
        said = prompt if start is None else prompt[start:end]
        for token in [*said, self._stop][: asked.sampling.max_tokens]:
            if asked.adapter is not None and asked.adapter not in self._adapters:
                raise InternalError(f"Adapter {asked.adapter} is not loaded.")
            yield Token(token) if count is None else Token(token, 0.0, ((token, 0.0),)[:count])
            if token in asked.stops:
                return


def _frame(renderer: Renderer) -> tuple[list[int], list[int]]:
    """The tokens that open a user's turn, and those between its text and the answer."""
    earlier = (Message("user", "x"), Message("assistant", "y"))
    one, two = (renderer.prompt(Conversation((*earlier, Message("user", text)))) for text in "ab")
    opened, closed = _shared(one, two), _shared(one[::-1], two[::-1])[::-1]
    return opened[len(renderer.example(Conversation(earlier)).tokens) :], closed


def _shared(one: list[int], two: list[int]) -> list[int]:
    """How both begin."""
    return [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False))]
