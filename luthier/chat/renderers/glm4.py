"""GLM-4: `[gMASK]<sop>`, then `<|role|>`, metadata, a line feed, the text. A turn has no end but the next role's marker."""

from __future__ import annotations

from typing import ClassVar

from luthier.chat import calls
from luthier.chat.guard import Guard
from luthier.chat.messages import Conversation, Message, ToolCall
from luthier.chat.reading import NAME, AnswerReader, HeadedReader
from luthier.chat.renderers.base import PROBES, Piece, Renderer
from luthier.chat.tokenizer import Tokenizer
from luthier.core.errors import InvalidRequest


class Glm4(Renderer):
    """The generation prompt ends in `<|assistant|>`: the metadata, a tool's name or nothing, and the line feed are said
    by the model and so are trained.

    What ends an answer is the marker that opens the next turn, and that very token is trained: `<|user|>`, or
    `<|observation|>` with which a tool's result begins. Behind the last turn of a row it is written for this purpose,
    `<|observation|>` where the answer calls tools. Neither `<|system|>` nor `<|assistant|>` ends an answer, so where one of
    them follows an answer, the family's end token is written and trained before it. Several calls in one answer are
    several parts, each opened by `<|assistant|>`, which the model says itself.

    Metadata, line feed and text are encoded together, as a template's text is.
    """

    START: ClassVar[tuple[str, ...]] = ("[gMASK]", "<sop>")
    END: ClassVar[str] = "<|endoftext|>"
    BLANK: ClassVar[str] = ""
    """What the tokenizer puts before every text."""
    MARKERS: ClassVar[dict[str, str]] = {
        "system": "<|system|>",
        "user": "<|user|>",
        "assistant": "<|assistant|>",
        "tool": "<|observation|>",
    }
    PREAMBLE: ClassVar[str] = (
        "You can call functions. A call is the function's name alone in the first line of the answer, and its arguments "
        "as a JSON object below. The functions, one a line:\n"
    )
    """Stands before the tools where a model's own template has no words for them. Models are tuned with it: keep it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer)
        names = (*self.START, *self.MARKERS.values(), self.END)
        ids = {name: token for name in names if (token := tokenizer.special_id(name)) is not None}
        if missing := [name for name in names if name not in ids]:
            raise InvalidRequest(f"The tokenizer has no special token {', '.join(missing)}.")
        self._start = tuple(ids[name] for name in self.START)
        self._end = ids[self.END]
        self._marker = {role: ids[name] for role, name in self.MARKERS.items()}

    @classmethod
    def recognises(cls, tokenizer: Tokenizer) -> bool:
        """True where the markers are single special tokens, and a template, if there is one, writes the probes as we do."""
        try:
            ours = cls(tokenizer)
            return not tokenizer.has_template or all(
                ours.prompt(asked) == tokenizer.encode(tokenizer.template(asked.messages, generation_prompt=True))
                for asked in (Conversation(probe.messages[:-1]) for probe in PROBES)
            )
        except InvalidRequest:
            return False

    @property
    def stops(self) -> frozenset[int]:
        return frozenset({self._marker["user"], self._marker["tool"], self._end}) | self.tokenizer.ends

    @property
    def offers_tools(self) -> bool:
        return True

    def pieces(self, conversation: Conversation, *, answering: bool = False) -> list[Piece]:
        answer: Message | None = None  # the turn before, where the next marker ends it
        pieces = [Piece(self._start)]
        head, messages = self._head(conversation)
        pieces += head
        for message in messages:
            if answer is not None and message.role not in ("user", "tool"):
                pieces.append(Piece((self._end,), answer.trained))
                answer = None
            pieces.append(Piece((self._marker[message.role],), answer is not None and answer.trained))
            answer = message if message.role == "assistant" else None
            pieces += self._said(message)
        if answering:
            ended = [] if answer is None else [Piece((self._end,), answer.trained)]
            return [*pieces, *ended, Piece((self._marker["assistant"],))]
        if answer is not None:
            pieces.append(Piece((self._marker["tool" if answer.tool_calls else "user"],), answer.trained))
        return pieces

    def message(self, tokens: list[int]) -> Message:
        said: list[str] = []
        found: list[ToolCall] = []
        for part in _parts(tokens, self._marker["assistant"]):
            metadata, content = self._split(part)
            name, arguments = metadata.strip(), self.arguments(content)
            if arguments is not None and NAME.fullmatch(name):
                found.append(ToolCall(f"call_{len(found)}", name, arguments))
            else:
                said.append(f"{metadata}\n{content}" if metadata else content)
        return Message("assistant", "\n".join(said), tool_calls=tuple(found))

    @property
    def divider(self) -> int | None:
        return self._marker["assistant"]

    def reader(self, *, calls: bool) -> AnswerReader:
        return HeadedReader(self.arguments, begin=self.may_begin_arguments, reads_calls=calls, blank=self.BLANK)

    def before_text(self) -> str:
        return "\n"

    def around_call(self, name: str) -> tuple[str, str] | None:
        return (f"{name}\n", "") if NAME.fullmatch(name) else None

    @property
    def between_calls(self) -> str | int:
        return self._marker["assistant"]

    def turn(self, metadata: str, content: str) -> list[str]:
        """The texts of a turn behind its marker; each is encoded apart."""
        return [f"{metadata}\n{content}"]

    def call(self, call: ToolCall) -> str:
        """What stands below the name of the function."""
        return calls.as_json(calls.arguments_of(call))

    def arguments(self, content: str) -> str | None:
        """The arguments, as JSON, that stand below the name of a function; None where there are none."""
        try:
            calls.arguments_of(ToolCall("", "", content))
        except InvalidRequest:
            return None
        return content

    def may_begin_arguments(self, content: str) -> bool:
        """Whether what begins so may come to be arguments."""
        return content.lstrip()[:1] in ("", "{")

    def _split(self, tokens: list[int]) -> tuple[str, str]:
        """Metadata and text of an answer's part; what has no line feed is all text."""
        metadata, line_feed, content = self.tokenizer.decode(tokens).partition("\n")
        return (metadata, content) if line_feed else ("", metadata)

    def _said(self, message: Message) -> list[Piece]:
        if not message.tool_calls:
            return [Piece(text, _teaches(message)) for text in self.turn("", message.text)]
        for call in message.tool_calls:
            if not NAME.fullmatch(call.name):
                raise InvalidRequest(f"{call.name!r} is no name of a function: letters, digits, _, - and . are.")
        parts = [("", message.text)] if message.text else []
        parts += [(call.name, self.call(call)) for call in message.tool_calls]
        pieces: list[Piece] = []
        for metadata, content in parts:
            if pieces:
                pieces.append(Piece((self._marker["assistant"],), message.trained))
            pieces += [Piece(text, message.trained) for text in self.turn(metadata, content)]
        return pieces

    def _head(self, conversation: Conversation) -> tuple[list[Piece], tuple[Message, ...]]:
        """What tells of the tools, and the messages that are left to write."""
        messages, tools = conversation.messages, conversation.tools
        if not tools:
            return [], messages
        has_system = bool(messages) and messages[0].role == "system"
        system, rest = messages[: int(has_system)], messages[int(has_system) :]
        if self.tokenizer.takes_tools:
            return self._head_of_template(Conversation(system, tools)), rest
        said = f"{system[0].text}\n\n" if system else ""
        return [], (Message("system", said + self.PREAMBLE + calls.listed(tools)), *rest)

    def _head_of_template(self, stated: Conversation) -> list[Piece]:
        guard = Guard(self.tokenizer, Conversation((*stated.messages, Message("user", "x")), stated.tools))
        rendering = guard.render()
        guard.prove(rendering)
        written, asked = guard.split(rendering), [self._marker["user"], *self.turn("", "x")]
        if written[: len(self._start)] != list(self._start) or written[-len(asked) :] != asked:
            raise InvalidRequest("The model's template tells of tools in another place than before the conversation.")
        told = written[len(self._start) : -len(asked)]
        return [Piece(said if isinstance(said, str) else (said,)) for said in told]


def _teaches(message: Message) -> bool:
    return message.role == "assistant" and message.trained


def _parts(tokens: list[int], marker: int) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    for token in tokens:
        if token == marker:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts
