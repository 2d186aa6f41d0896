"""The Renderer contract: a conversation into tokens with loss weights, tokens back into a message."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from luthier.chat import calls
from luthier.chat.messages import Conversation, Message, PlainText, PreferencePair, ToolCall
from luthier.chat.reading import AnswerReader, PlainReader
from luthier.chat.tokenizer import Tokenizer
from luthier.core.errors import InvalidRequest
from luthier.core.registry import Registry


@dataclass(frozen=True)
class Rendered:
    """A training example: `tokens[i]` is learned with weight `weights[i]`, 1 for what the assistant says, else 0."""

    tokens: Sequence[int]
    weights: Sequence[float]

    @property
    def trained(self) -> int:
        return sum(1 for weight in self.weights if weight)


@dataclass(frozen=True)
class Piece:
    """A part of a conversation as a family writes it: ids of special tokens that we state, or a text to be encoded plain.

    Texts of neighbouring pieces are encoded apart.
    """

    said: tuple[int, ...] | str
    trained: bool = False


class Renderer(ABC):
    """One model family's way of writing a conversation.

    Promises, held by tests/contract: the generation prompt equals the tokenizer's own template; the part of an
    example before its first trained token is the generation prompt; parsing an answer's tokens gives the answer, its tool
    calls included; a longer conversation's example begins with the shorter one's; every assistant turn that is trained
    ends in a trained stop; no text that somebody wrote becomes a special token.
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

    @property
    def offers_tools(self) -> bool:
        """Whether tools, tool calls and their results can be said; if not, a conversation with them is refused."""
        return False

    @abstractmethod
    def pieces(self, conversation: Conversation, *, answering: bool = False) -> list[Piece]:
        """The whole conversation, and with `answering` what opens the answer that is to come.

        What the assistant says is trained together with the token that ends it, where the message is; nothing else is.
        """

    def merged(self, conversation: Conversation) -> Conversation:
        """The conversation with turns of one role in a row as the family wants them.

        Two user messages in a row stay two turns, unless a family's template takes no such thing.
        """
        return conversation

    def prompt(self, conversation: Conversation) -> list[int]:
        """The tokens after which the model says the next assistant turn."""
        return list(self._encoded([self._pieces(conversation, answering=True)])[0].tokens)

    def example(self, conversation: Conversation) -> Rendered:
        """The whole conversation, assistant turns weighted 1 together with the token that ends them."""
        return self.examples([conversation])[0]

    def examples(self, conversations: Sequence[Conversation]) -> list[Rendered]:
        """What `example` gives for each of many, faster: their texts are encoded together."""
        return self._encoded([self._pieces(conversation) for conversation in conversations])

    def preference(self, pair: PreferencePair) -> tuple[Rendered, Rendered]:
        """The conversation with the chosen and with the rejected answer; only the answer is trained."""
        answers = (dataclasses.replace(answer, trained=True) for answer in (pair.chosen, pair.rejected))
        chosen, rejected = self.examples([pair.answered(answer) for answer in answers])
        return chosen, rejected

    def text(self, plain: PlainText) -> Rendered:
        """A text as it is, and the tokenizer's end token where it has one; all of it is trained."""
        end = self.tokenizer.end
        pieces = [Piece(plain.text, trained=True)]
        return self._encoded([pieces if end is None else [*pieces, Piece((end,), trained=True)]])[0]

    def parse(self, tokens: list[int]) -> Message:
        """The message that generated tokens say, up to the first stop."""
        return self.message(list(takewhile(lambda token: token not in self.stops, tokens)))

    def message(self, tokens: list[int]) -> Message:
        """The message that the tokens of one answer say, without a stop. A call that is not whole stays text."""
        return Message("assistant", self.tokenizer.decode(tokens))

    @property
    def divider(self) -> int | None:
        """The token between the parts of one answer, where a family has one."""
        return None

    def reader(self, *, calls: bool) -> AnswerReader:
        """Reads an answer's text as it comes, part by part where there is a divider; without `calls` all of it is text."""
        return PlainReader()

    def before_text(self) -> str:
        """What stands before an answer that is text."""
        return ""

    def around_call(self, name: str) -> tuple[str, str] | None:
        """What stands before and behind the JSON of a call's arguments; None where they are not written as JSON."""
        return None

    @property
    def between_calls(self) -> str | int:
        """What stands between two calls of one answer: a text, or the divider."""
        return "\n"

    def fingerprint(self) -> str:
        """sha256 of the token ids of a fixed set of conversations: equal exactly where two renderers write alike."""
        probes = (*PROBES, *TOOL_PROBES) if self.offers_tools else PROBES
        rendered = [self._written(probe) for probe in probes]
        return hashlib.sha256(json.dumps(rendered).encode()).hexdigest()

    def _written(self, probe: Conversation) -> list[list[int] | list[float]] | None:
        try:
            example = self.example(probe)
            return [self.prompt(probe), list(example.tokens), list(example.weights)]
        except InvalidRequest:
            return None  # to refuse is a way of writing too

    def _pieces(self, conversation: Conversation, *, answering: bool = False) -> list[Piece]:
        if conversation.images:
            raise InvalidRequest("The conversation has pictures, and this model reads only text.")
        uses_tools = conversation.tools or any(m.tool_calls or m.role == "tool" for m in conversation.messages)
        if uses_tools and not self.offers_tools:
            raise InvalidRequest(
                "The conversation uses tools, and this model has no way to write them that we know.",
                hint="Use a model that offers function calling, or rows without tools.",
            )
        return self.pieces(self.merged(conversation), answering=answering)

    def _encoded(self, written: Sequence[list[Piece]]) -> list[Rendered]:
        texts = list({piece.said: None for pieces in written for piece in pieces if isinstance(piece.said, str)})
        known = dict(zip(texts, self.tokenizer.encode_plain_batch(texts), strict=True))
        rendered: list[Rendered] = []
        for pieces in written:
            tokens: list[int] = []
            weights: list[float] = []
            for piece in pieces:
                ids = known[piece.said] if isinstance(piece.said, str) else piece.said
                tokens += ids
                weights += [1.0 if piece.trained else 0.0] * len(ids)
            rendered.append(Rendered(tokens, weights))
        return rendered


def _said(*turns: str, system: str | None = None) -> Conversation:
    """A conversation of alternating user and assistant turns."""
    first = [Message("system", system)] if system is not None else []
    return Conversation(
        (*first, *(Message("assistant" if place % 2 else "user", turn) for place, turn in enumerate(turns)))
    )


_CALL = ToolCall("call00000", calls.PROBE.name, '{"town": "Köln", "days": 2}')
_ROUND = (
    Message("user", "Will it rain in Köln?"),
    Message("assistant", "", tool_calls=(_CALL,)),
    Message("tool", '{"rain": true}', tool_call_id=_CALL.id),
    Message("assistant", "Yes, on both days."),
)

PROBES = (
    _said("What is the capital of France?", "Paris."),
    _said("Hi", "Hello, how can I help?", "Count to 12", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12", system="Be brief."),
    _said("def f(x):\n    return  x + 1\n", "It adds one:\n\n```python\nf(1) == 2\n```", "谢谢！", "不客气 🙂"),
    Conversation(
        (
            Message("system", "Speak like a pirate."),
            Message("user", "Hi"),
            Message("assistant", "Ahoy!", trained=False),
            Message("user", "Bye"),
            Message("assistant", "Fair winds!"),
        )
    ),
)
"""What a fingerprint is taken of. Changing it changes the identity of every trained adapter."""

TOOL_PROBES = (
    Conversation(_ROUND, (calls.PROBE,)),
    Conversation((Message("system", "Be brief."), *_ROUND), (calls.PROBE,)),
)
"""What it is taken of besides, where tools can be said: how they are told, called and answered is written too."""

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
