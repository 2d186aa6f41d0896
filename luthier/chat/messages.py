"""What people and models say to each other, free of any dialect."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class Text:
    """A part of a message that is text."""

    text: str


@dataclass(frozen=True)
class Image:
    """A part of a message that is a picture: an http(s) or `data:` URL, or the name of a file in the same archive."""

    source: str


@dataclass(frozen=True)
class ToolCall:
    """A function that the assistant wants called. `arguments` is JSON as it was written; a renderer decides what to show."""

    id: str
    name: str
    arguments: str

    @property
    def parsed(self) -> Any:
        """The arguments as a value. Raises ValueError where they are not JSON."""
        return json.loads(self.arguments)


@dataclass(frozen=True)
class Tool:
    """A function that may be called; `parameters` is a JSON schema."""

    name: str
    description: str = ""
    parameters: dict[str, Any] | None = None

    @property
    def definition(self) -> dict[str, Any]:
        """As OpenAI writes it, which is what templates expect."""
        function: dict[str, Any] = {"name": self.name, "description": self.description}
        if self.parameters is not None:
            function["parameters"] = self.parameters
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class Message:
    """One turn. `trained` is false for an answer that a training example shows but must not teach.

    `content` is text, or parts where there are pictures; empty where an assistant only calls tools. `tool_calls` are an
    assistant's, `tool_call_id` says which of them a tool's turn answers.
    """

    role: Role
    content: str | tuple[Text | Image, ...]
    trained: bool = True
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """The text of all parts, without the pictures."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content if isinstance(part, Text))

    @property
    def images(self) -> tuple[Image, ...]:
        if isinstance(self.content, str):
            return ()
        return tuple(part for part in self.content if isinstance(part, Image))


@dataclass(frozen=True)
class Conversation:
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(image for message in self.messages for image in message.images)


@dataclass(frozen=True)
class PreferencePair:
    """Two answers to the last turn of the same conversation, of which one is preferred."""

    prompt: Conversation
    chosen: Message
    rejected: Message

    def answered(self, answer: Message) -> Conversation:
        """The conversation with one of the answers, the only turn that is trained."""
        earlier = (Message(m.role, m.content, False, m.tool_calls, m.tool_call_id) for m in self.prompt.messages)
        return Conversation((*earlier, answer), self.prompt.tools)


@dataclass(frozen=True)
class PlainText:
    """A text to continue pre-training on; every token is trained."""

    text: str


@dataclass(frozen=True)
class ImageGeneration:
    """A prompt and the one image it should give."""

    prompt: Conversation
    image: Image
