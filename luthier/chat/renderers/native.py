"""Whatever template the tokenizer ships; where an assistant's turn begins and ends is taken from renderings of prefixes."""

from __future__ import annotations

import dataclasses
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from luthier.chat import calls
from luthier.chat.guard import Guard
from luthier.chat.messages import Conversation, Message, ToolCall
from luthier.chat.reading import AnswerReader, BlockReader, PlainReader
from luthier.chat.renderers.base import PROBES, Piece, Renderer
from luthier.chat.tokenizer import Tokenizer
from luthier.core.errors import InvalidRequest

MOST_MESSAGES = 1_000
"""Messages of a conversation. An answer's place is proved by what the template writes up to it, twice: the work grows with
the square of their number.
"""


@dataclass(frozen=True)
class _Span:
    """Where in a rendering an answer begins, where behind its stop, and where its turn ends."""

    begins: int
    stops: int
    ends: int
    is_trained: bool


@dataclass(frozen=True)
class _Rendering:
    """What the template writes of a whole conversation, and where its parts lie."""

    text: str
    parts: list[tuple[int, int, int | None]]
    """Begin and end, and the id of those that are special tokens."""
    stops: list[tuple[int, int]]
    """Begin and end of those that end an answer."""

    def span(self, before: str, after: str, *, is_trained: bool) -> _Span:
        """Of an answer, by what the template writes before it and with it. Raises InvalidRequest where it cannot be proved."""
        begins, ends = len(before), len(after)
        if not (self.text.startswith(after) and after.startswith(before)) or self._tears(begins) or self._tears(ends):
            raise InvalidRequest("The model's template rewrites earlier turns; what it trains cannot be proved.")
        first = bisect_left(self.stops, (begins,))
        if first == len(self.stops) or self.stops[first][1] > ends:
            raise InvalidRequest("The model's template does not end an answer with a stop token.")
        return _Span(begins, self.stops[first][1], ends, is_trained)

    def _tears(self, cut: int) -> bool:
        """Whether a cut goes through a special token."""
        last = bisect_left(self.parts, (cut,)) - 1  # the last part that begins before it
        return last >= 0 and self.parts[last][2] is not None and self.parts[last][1] > cut


class Native(Renderer):
    """A rendering is cut where an answer begins, behind the stop that ends it and where its turn ends; the pieces are
    encoded apart, so a shorter rendering that begins the longer one as text begins it token by token.

    Special tokens are those the template writes; in a text that somebody wrote they are plain, see Guard. A row is refused
    when a trained turn's span cannot be proved. Tools are offered where the template takes them and writes calls as
    `<tool_call>` blocks, which can be read back.
    """

    @classmethod
    def recognises(cls, tokenizer: Tokenizer) -> bool:
        """True where the probes' spans can be proved and their pieces give the tokens of the template's whole text."""
        if not tokenizer.has_template or not tokenizer.ends:
            return False
        ours = cls(tokenizer)
        try:
            return all(ours._proves(probe) for probe in PROBES)
        except InvalidRequest:
            return False

    @property
    def stops(self) -> frozenset[int]:
        return self.tokenizer.ends

    @property
    def offers_tools(self) -> bool:
        return self._writes_calls_that_can_be_read

    @cached_property
    def _writes_calls_that_can_be_read(self) -> bool:
        if not self.tokenizer.takes_tools:
            return False
        call = ToolCall("call00000", calls.PROBE.name, '{"city": "Paris"}')
        turns = (
            Message("user", "x"),
            Message("assistant", "", tool_calls=(call,)),
            Message("tool", "rain", tool_call_id=call.id),
            Message("assistant", "Rain."),
        )
        try:
            asked = self._encoded([self.pieces(Conversation(turns[:2], (calls.PROBE,)))])[0]
            self.pieces(Conversation(turns, (calls.PROBE,)))
        except InvalidRequest:
            return False
        trained = [token for token, weight in zip(asked.tokens, asked.weights, strict=True) if weight]
        read = calls.read(self.tokenizer.decode(trained))
        return not read.text and [(c.name, c.parsed) for c in read.tool_calls] == [(call.name, call.parsed)]

    def merged(self, conversation: Conversation) -> Conversation:
        """User messages in a row become one, a line feed between them, where the template refuses two."""
        if self._takes_users_in_a_row:
            return conversation
        messages: list[Message] = []
        for message in conversation.messages:
            if message.role == "user" and messages and messages[-1].role == "user":
                messages[-1] = dataclasses.replace(message, content=f"{messages[-1].text}\n{message.text}")
            else:
                messages.append(message)
        return dataclasses.replace(conversation, messages=tuple(messages))

    def pieces(self, conversation: Conversation, *, answering: bool = False) -> list[Piece]:
        """Raises InvalidRequest when a trained turn's span cannot be proved, or there are more than MOST_MESSAGES."""
        if (count := len(conversation.messages)) > MOST_MESSAGES:
            raise InvalidRequest(
                f"The conversation has {count:,} messages; where only the model's own template says how they are written, "
                f"at most {MOST_MESSAGES:,} can be proved.",
                hint="Split it into shorter conversations.",
            )
        guard = Guard(self.tokenizer, conversation)
        text = guard.render(generation_prompt=answering)
        guard.prove(text)
        parts = self.tokenizer.parts(text)
        whole = _Rendering(text, parts, [(start, end) for start, end, token in parts if token in self.stops])
        spans: list[_Span] = []
        for place, message in enumerate(conversation.messages):
            if message.role != "assistant":
                continue
            try:
                before = guard.render(place, generation_prompt=True)
                after = text if place + 1 == count and not answering else guard.render(place + 1)
                spans.append(whole.span(before, after, is_trained=message.trained))
            except InvalidRequest:
                if message.trained and not answering:
                    raise  # of what is only shown nothing needs a proof
        cuts = sorted({cut for span in spans for cut in (span.begins, span.stops, span.ends)})
        trained = sorted((span.begins, span.stops) for span in spans if span.is_trained)
        pieces: list[Piece] = []
        begun = trained_until = 0
        for start, end, token in parts:
            inner = cuts[bisect_right(cuts, start) : bisect_left(cuts, end)]
            for first, last in pairwise([start, *inner, end]):
                while begun < len(trained) and trained[begun][0] <= first:
                    trained_until = max(trained_until, trained[begun][1])
                    begun += 1
                said = guard.restored(text[first:last]) if token is None else (token,)
                pieces.append(Piece(said, first < trained_until))
        return pieces

    def message(self, tokens: list[int]) -> Message:
        text = self.tokenizer.decode(tokens)
        return calls.read(text) if self.offers_tools else Message("assistant", text)

    def reader(self, *, calls: bool) -> AnswerReader:
        return BlockReader() if calls and self.offers_tools else PlainReader()

    def around_call(self, name: str) -> tuple[str, str] | None:
        return calls.around(name) if self.offers_tools else None

    @cached_property
    def _takes_users_in_a_row(self) -> bool:
        try:
            self.tokenizer.template([Message("user", "x"), Message("user", "y")], generation_prompt=True)
        except InvalidRequest:
            return False
        return True

    def _proves(self, probe: Conversation) -> bool:
        def template(conversation: Conversation, *, generation_prompt: bool) -> list[int]:
            text = self.tokenizer.template(conversation.messages, generation_prompt=generation_prompt)
            return self.tokenizer.encode(text)

        asked = Conversation(probe.messages[:-1])
        example = self.example(probe)
        return (
            example.trained > 0
            and example.tokens == template(probe, generation_prompt=False)
            and self.prompt(asked) == template(asked, generation_prompt=True)
        )
