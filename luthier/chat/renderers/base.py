"""The Renderer contract: a conversation into tokens with loss weights, tokens back into a message."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass

from luthier.chat.messages import Conversation, Message
from luthier.chat.tokenizer import Tokenizer
from luthier.core.errors import InvalidRequest
from luthier.core.registry import Registry


@dataclass(frozen=True)
class Rendered:
    """A training example: `tokens[i]` is learned with weight `weights[i]`, 1 for what the assistant says, else 0."""

    tokens: list[int]
    weights: list[float]

    @property
    def trained(self) -> int:
        return sum(1 for weight in self.weights if weight)


class Renderer(ABC):
    """One model family's way of writing a conversation.

    Promises, held by tests/contract: the generation prompt equals the tokenizer's own template; the part of an
    example before its first trained token is the generation prompt; parsing an answer's tokens gives the answer; a longer
    conversation's example begins with the shorter one's; every assistant turn that is trained ends in a trained stop.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    @classmethod
    @abstractmethod
    def recognises(cls, tokenizer: Tokenizer) -> bool:
        """Whether this file states the rules of that tokenizer's model."""

    @property
    @abstractmethod
    def stops(self) -> frozenset[int]:
        """Token ids that end an assistant's turn."""

    @abstractmethod
    def prompt(self, conversation: Conversation) -> list[int]:
        """The tokens after which the model says the next assistant turn."""

    @abstractmethod
    def example(self, conversation: Conversation) -> Rendered:
        """The whole conversation, assistant turns weighted 1 together with the token that ends them."""

    def parse(self, tokens: list[int]) -> Message:
        """The message that generated tokens say, up to the first stop."""
        end = next((place for place, token in enumerate(tokens) if token in self.stops), len(tokens))
        return Message("assistant", self.tokenizer.decode(tokens[:end]))

    def fingerprint(self) -> str:
        """sha256 of the token ids of a fixed set of conversations: equal exactly where two renderers write alike."""
        rendered = [[self.prompt(c), self.example(c).tokens, self.example(c).weights] for c in PROBES]
        return hashlib.sha256(json.dumps(rendered).encode()).hexdigest()


def _said(*turns: str, system: str | None = None) -> Conversation:
    """A conversation of alternating user and assistant turns."""
    first = [Message("system", system)] if system is not None else []
    return Conversation(
        (*first, *(Message("assistant" if place % 2 else "user", turn) for place, turn in enumerate(turns)))
    )


PROBES = (
    _said("What is the capital of France?", "Paris."),
    _said("Hi", "Hello, how can I help?", "Count to 12", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12", system="Be brief."),
    _said("def f(x):\n    return  x + 1\n", "It adds one:\n\n```python\nf(1) == 2\n```", "谢谢！", "不客气 🙂"),
)
"""What a fingerprint is taken of. Changing it changes the identity of every trained adapter."""

renderers: Registry[Renderer] = Registry("luthier.chat.renderers", Renderer, kind="renderer")


def renderer_for(tokenizer: Tokenizer) -> Renderer:
    """The renderer of a model: the family that recognises its tokenizer, else its own template.

    Raises InvalidRequest when neither does.
    """
    for name in sorted(renderers.names(), key=lambda name: name == "native"):  # families first
        family = renderers.load(name)
        if family.recognises(tokenizer):
            return family(tokenizer)
    raise InvalidRequest("No renderer knows this model's chat template.", hint="Use an instruction-tuned model.")
