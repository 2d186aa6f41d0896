"""What a call tells the model: messages, or a prompt with an old history; and the tools it may use."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from luthier.api.received import Received
from luthier.api.tool_names import check_names
from luthier.core.errors import InvalidParameter, NotOffered
from luthier.serving.protocol import CalledTool, OfferedTool, Turn


class CalledFunction(Received):
    name: str
    arguments: str = "{}"


class ToolCall(Received):
    id: str = ""
    function: CalledFunction


class ContentPart(Received):
    text: str | None = None


class Message(Received):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    def turn(self, where: str) -> Turn:
        calls = [
            CalledTool(id=call.id, name=call.function.name, arguments=call.function.arguments)
            for call in self.tool_calls or []
        ]
        return Turn(
            role=self.role,
            content=self._text(where, may_be_absent=bool(calls)),
            tool_calls=calls,
            tool_call_id=self.tool_call_id,
        )

    def _text(self, where: str, *, may_be_absent: bool) -> str:
        if isinstance(self.content, str):
            return self.content
        if self.content is None:
            if may_be_absent:
                return ""
            raise InvalidParameter(f"{where}.content", "must be a text")
        if any(part.text is None for part in self.content):
            raise NotOffered("Only parts with a text are offered by this version.", param=f"{where}.content")
        return "".join(part.text or "" for part in self.content)


class Exchange(Received):
    """A turn of the old history."""

    user: str | None = None
    bot: str | None = None

    def turns(self) -> list[Turn]:
        asked = [] if self.user is None else [Turn(role="user", content=self.user)]
        return asked + ([] if self.bot is None else [Turn(role="assistant", content=self.bot)])


class Input(Received):
    messages: list[Message] | None = None
    prompt: str | None = Field(default=None, description="What the user says after the messages, or after the history.")
    history: list[Exchange] | None = Field(default=None, description="Deprecated: what was said before the prompt.")

    def turns(self) -> list[Turn]:
        turns = [message.turn(f"input.messages[{place}]") for place, message in enumerate(self.messages or [])]
        for exchange in self.history or []:
            turns += exchange.turns()
        if self.prompt:
            turns.append(Turn(role="user", content=self.prompt))
        if not turns:
            raise InvalidParameter("input", "must have messages or a prompt")
        return turns


class Function(Received):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Received):
    type: str = "function"
    function: Function | None = None


def functions_of(tools: list[Tool]) -> list[Function]:
    """Raises NotOffered for a tool that is no function, InvalidParameter for a name that cannot be or is there twice."""
    functions: list[Function] = []
    for place, tool in enumerate(tools):
        if tool.type != "function":
            raise NotOffered(
                f"Tools of type {tool.type} are not offered by this version; functions are.",
                param=f"parameters.tools[{place}].type",
            )
        if tool.function is None:
            raise InvalidParameter(f"parameters.tools[{place}].function", "must say the function's name")
        functions.append(tool.function)
    check_names((function.name for function in functions), "parameters.tools[{}].function")
    return functions


def offered(of: Function) -> OfferedTool:
    return OfferedTool(name=of.name, description=of.description or "", parameters=of.parameters)


class NamedFunction(Received):
    name: str


class ToolChoice(Received):
    """The answer must call this function."""

    function: NamedFunction
