"""ChatML: `<|im_start|>role`, a line feed, the text, `<|im_end|>`, a line feed. SmolLM2, Qwen2.5 and many others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property

from luthier.chat import calls
from luthier.chat.guard import Guard
from luthier.chat.messages import Conversation, Message, ToolCall
from luthier.chat.reading import AnswerReader, BlockReader, PlainReader
from luthier.chat.renderers.base import PROBES, Piece, Renderer
from luthier.chat.tokenizer import Tokenizer
from luthier.core.errors import InvalidRequest

START, END = "<|im_start|>", "<|im_end|>"

PREAMBLE = (
    "You can call functions. A call is written like this, one block for each:\n"
    f'{calls.OPEN}\n{{"name": "its name", "arguments": {{"a parameter": "a value"}}}}\n{calls.CLOSE}\n'
    "What a function gives comes back in a <tool_response> block. The functions, one a line:\n"
)
"""Stands before the tools where a model's own template has no words for them. Models are tuned with it: keep it."""

_CALL = ToolCall("call00000", "weather", '{"city": "Paris", "days": 2}')
_ROUND = (
    Message("user", "x"),
    Message("assistant", "", tool_calls=(_CALL,)),
    Message("tool", "rain", tool_call_id=_CALL.id),
    Message("assistant", "One more.", tool_calls=(_CALL, _CALL)),
    Message("tool", "rain", tool_call_id=_CALL.id),
    Message("tool", "sun", tool_call_id=_CALL.id),
    Message("assistant", "Rain, then sun."),
    Message("user", "y"),
)
_HEADS = 256  # system texts with tools that are remembered


class ChatML(Renderer):
    """Tool calls stand in the answer as `<tool_call>` blocks, results in a user's turn as `<tool_response>` blocks,
    results in a row in one turn. How tools are told is the template's business where it takes any; else it is ours.

    An answer whose text has a whole `<tool_call>` block in it cannot be told from a call: that is the notation's limit.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        self._start = _single(tokenizer, START)
        self._end = _single(tokenizer, END)
        self._line_feed = tuple(tokenizer.encode("\n"))
        self._system = _default_system(tokenizer)
        self._heads: dict[str, str] = {}

    @classmethod
    def recognises(cls, tokenizer: Tokenizer) -> bool:
        """True where the markers are single special tokens and the model's template writes the probes as we do."""
        if not tokenizer.has_template or None in (tokenizer.special_id(START), tokenizer.special_id(END)):
            return False
        try:
            ours = cls(tokenizer)
            return all(ours._writes_as_template(Conversation(probe.messages[:-1])) for probe in PROBES)
        except InvalidRequest:
            return False

    @property
    def stops(self) -> frozenset[int]:
        return frozenset({self._end}) | self.tokenizer.ends

    @property
    def offers_tools(self) -> bool:
        """True where the template has no words for tools, or writes calls and their results as we do."""
        return self._writes_tools_as_template

    @cached_property
    def _writes_tools_as_template(self) -> bool:
        if not self.tokenizer.takes_tools:
            return True
        tools = (calls.PROBE,)
        try:
            return all(
                self._writes_as_template(Conversation((*first, *_ROUND[:turns]), tools))
                for first in ((), (Message("system", "z"),))
                for turns in (1, 3, 6, 8)
            )
        except InvalidRequest:
            return False

    def pieces(self, conversation: Conversation, *, answering: bool = False) -> list[Piece]:
        pieces: list[Piece] = []
        start, end, line_feed = Piece((self._start,)), Piece((self._end,)), Piece(self._line_feed)
        for message in _grouped(self._with_system(conversation)):
            pieces.append(start)
            if message.role == "assistant":
                pieces += [
                    Piece("assistant\n"),  # apart from the answer, as the model meets it when it generates
                    Piece(calls.write(message.text, message.tool_calls), message.trained),
                    Piece((self._end,), message.trained),
                ]
            else:
                pieces += [Piece(f"{message.role}\n{message.text}"), end]
            pieces.append(line_feed)
        return [*pieces, start, Piece("assistant\n")] if answering else pieces

    def message(self, tokens: list[int]) -> Message:
        text = self.tokenizer.decode(tokens)
        return calls.read(text) if self.offers_tools else Message("assistant", text)

    def reader(self, *, calls: bool) -> AnswerReader:
        return BlockReader() if calls and self.offers_tools else PlainReader()

    def around_call(self, name: str) -> tuple[str, str] | None:
        return calls.around(name) if self.offers_tools else None

    def _writes_as_template(self, asked: Conversation) -> bool:
        template = self.tokenizer.template(asked.messages, tools=asked.tools, generation_prompt=True)
        rendered = self._encoded([self.pieces(asked, answering=True)])[0]
        return rendered.tokens == self.tokenizer.encode(template)

    def _with_system(self, conversation: Conversation) -> tuple[Message, ...]:
        messages = conversation.messages
        has_system = bool(messages) and messages[0].role == "system"
        if conversation.tools:
            stated = Conversation(messages[: int(has_system)], conversation.tools)
            return (Message("system", self._head(stated)), *messages[int(has_system) :])
        if self._system is None or has_system:
            return messages
        return (Message("system", self._system), *messages)

    def _head(self, stated: Conversation) -> str:
        """The system's text of a conversation with tools; `stated` has its tools and, if any, its system message."""
        key = json.dumps([[m.text for m in stated.messages], calls.listed(stated.tools)])
        if key not in self._heads:
            if len(self._heads) >= _HEADS:
                self._heads.clear()
            by_template = self.tokenizer.takes_tools
            self._heads[key] = self._head_of_template(stated) if by_template else self._own_head(stated)
        return self._heads[key]

    def _own_head(self, stated: Conversation) -> str:
        said = stated.messages[0].text if stated.messages else self._system
        return (f"{said}\n\n" if said else "") + PREAMBLE + calls.listed(stated.tools)

    def _head_of_template(self, stated: Conversation) -> str:
        guard = Guard(self.tokenizer, Conversation((*stated.messages, Message("user", "x")), stated.tools))
        rendering = guard.render()
        guard.prove(rendering)
        opening = "system\n"
        match guard.split(rendering):
            case [start, str(text), *rest] if (
                start == self._start
                and text.startswith(opening)
                and rest == [self._end, "\n", self._start, "user\nx", self._end, "\n"]
            ):
                return text[len(opening) :]
        raise InvalidRequest("The model's template tells of tools in another place than the system's turn.")


def _grouped(messages: tuple[Message, ...]) -> Iterator[Message]:
    """The messages, results of tools that follow each other as one user's turn."""
    results: list[str] = []
    for place, message in enumerate(messages):
        if message.role != "tool":
            yield message
            continue
        results.append(f"<tool_response>\n{message.text}\n</tool_response>")
        if place + 1 == len(messages) or messages[place + 1].role != "tool":
            yield Message("user", "\n".join(results))
            results = []


def _single(tokenizer: Tokenizer, marker: str) -> int:
    token = tokenizer.special_id(marker)
    if token is None:
        raise InvalidRequest(f"The tokenizer has no special token {marker}.")
    return token


def _default_system(tokenizer: Tokenizer) -> str | None:
    """What the model's template says as the system when nobody else does; None where it says nothing."""
    text = tokenizer.template([Message("user", "x")], generation_prompt=False)
    opening = f"{START}system\n"
    return text[len(opening) : text.index(END)] if text.startswith(opening) else None
