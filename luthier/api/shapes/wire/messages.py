"""What was said so far, as clients send it."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from luthier.api.received import Received
from luthier.core.errors import InvalidParameter, NotOffered
from luthier.serving.protocol import CalledTool, Turn


class Part(Received):
    type: str
    text: str | None = None
    refusal: str | None = Field(default=None, description="Of a part of type refusal: its text.")


class FunctionCall(Received):
    name: str
    arguments: str = Field(description="JSON, as a text.")


class ToolCall(Received):
    id: str
    type: str = "function"
    function: FunctionCall


class ChatMessage(Received):
    role: str = Field(description="system (or developer), user, assistant or tool.")
    content: str | list[Part] | None = Field(default=None, description="A text, or parts that are texts.")
    refusal: str | None = Field(default=None, description="What an assistant said in place of a content.")
    name: str | None = Field(default=None, description="Of the function that a message of the older role is from.")
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = Field(default=None, description="Which call a message of role tool answers.")
    function_call: FunctionCall | None = Field(default=None, description="Older form of a tool call.")


_ROLES = ("system", "user", "assistant", "tool")


def turns(messages: list[ChatMessage]) -> list[Turn]:
    """What the messages mean. Raises InvalidParameter and NotOffered, which name the message."""
    made: list[Turn] = []
    for place, message in enumerate(messages):
        made.append(_turn(f"messages[{place}]", place, message, made))
    return made


def _turn(where: str, place: int, message: ChatMessage, before: list[Turn]) -> Turn:
    role = {"developer": "system", "function": "tool"}.get(message.role, message.role)
    if role not in _ROLES:
        raise InvalidParameter(f"{where}.role", f"must be one of {', '.join(_ROLES)}, got {message.role!r}")
    content = message.content
    if role == "assistant":
        content = message.refusal if content is None else content
    fields: dict[str, Any] = {"role": role, "content": _text(where, content)}
    if role == "assistant":
        fields["tool_calls"] = _called(where, place, message)
    if role == "tool":
        fields["tool_call_id"] = message.tool_call_id
        if message.role == "function":
            fields["tool_call_id"] = _older_call(where, message.name, before)
        elif message.tool_call_id is None:
            raise InvalidParameter(f"{where}.tool_call_id", "must be the id of the call that this message answers")
    if content is None and not fields.get("tool_calls"):
        raise InvalidParameter(f"{where}.content", "must be a text")
    return Turn(**fields)


def _text(where: str, content: str | list[Part] | None) -> str:
    if not isinstance(content, list):
        return content or ""
    texts: list[str] = []
    for place, part in enumerate(content):
        if part.type in ("image_url", "input_image", "video_url", "file", "input_audio"):
            raise NotOffered(
                f"Parts of type {part.type} are not offered by this version; models read text.",
                param=f"{where}.content",
            )
        text = {"text": part.text, "refusal": part.refusal}.get(part.type)
        if text is None:
            raise InvalidParameter(f"{where}.content[{place}]", "must be a part of type text with its text")
        texts.append(text)
    return "".join(texts)


def _called(where: str, place: int, message: ChatMessage) -> list[CalledTool]:
    calls: list[CalledTool] = []
    for number, call in enumerate(message.tool_calls or []):
        if call.type != "function":
            raise NotOffered(f"Calls of type {call.type} are not offered.", param=f"{where}.tool_calls[{number}].type")
        calls.append(CalledTool(id=call.id, name=call.function.name, arguments=call.function.arguments))
    if message.function_call is not None:
        older = message.function_call
        calls.append(CalledTool(id=f"call_{place}", name=older.name, arguments=older.arguments))
    return calls


def _older_call(where: str, name: str | None, before: list[Turn]) -> str:
    """The older form has no ids: a function's message answers the last call of that name."""
    for turn in reversed(before):
        for call in turn.tool_calls:
            if call.name == name:
                return call.id
    raise InvalidParameter(f"{where}.name", f"must be the name of a function that was called before, got {name!r}")
