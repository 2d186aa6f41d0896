"""Functions that a model may call, and which of them it must."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from luthier.api.received import Received
from luthier.api.tool_names import check_names
from luthier.core.errors import InvalidParameter, NotOffered
from luthier.serving.protocol import OfferedTool


class Function(Received):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = Field(default=None, description="JSON schema of its arguments.")


class Tool(Received):
    type: str = "function"
    function: Function | None = None


class FunctionName(Received):
    name: str


class AllowedTools(Received):
    mode: str = "auto"
    tools: list[NamedTool] = Field(default_factory=list)


class NamedTool(Received):
    """One of the tools, as a choice names it."""

    type: str = "function"
    function: FunctionName | None = None
    allowed_tools: AllowedTools | None = None


@dataclass(frozen=True)
class Choice:
    """What is offered, and what of it must be called; None: the model decides."""

    tools: list[OfferedTool] = field(default_factory=list)
    must_call: list[str] | None = None


def offered(functions: list[Function], where: str) -> list[OfferedTool]:
    """Raises InvalidParameter for a name that no function can have, or that two have; `where` is the field of number {}."""
    check_names((function.name for function in functions), where)
    return [OfferedTool(name=f.name, description=f.description or "", parameters=f.parameters) for f in functions]


def functions_of(tools: list[Tool]) -> list[Function]:
    """Raises NotOffered for a tool that is no function."""
    for place, tool in enumerate(tools):
        if tool.type != "function":
            raise NotOffered(
                f"Tools of type {tool.type} are not offered by this version; functions are.",
                param=f"tools[{place}].type",
            )
        if tool.function is None:
            raise InvalidParameter(f"tools[{place}].function", "must say the function's name")
    return [tool.function for tool in tools if tool.function is not None]


def chosen(tools: list[OfferedTool], asked: str | NamedTool | None, param: str) -> Choice:
    """What a `tool_choice` means. Raises InvalidParameter where it names what is not offered."""
    if asked is None or asked == "auto":
        return Choice(tools)
    if asked == "none":
        return Choice()
    if isinstance(asked, NamedTool) and asked.type == "allowed_tools" and asked.allowed_tools is not None:
        allowed = [_known(tools, one.function, f"{param}.allowed_tools.tools") for one in asked.allowed_tools.tools]
        few = [tool for tool in tools if tool.name in allowed]
        return chosen(few, asked.allowed_tools.mode, f"{param}.allowed_tools.mode")
    if isinstance(asked, NamedTool) and asked.type == "function":
        return Choice(tools, [_known(tools, asked.function, f"{param}.function.name")])
    if asked != "required":
        raise InvalidParameter(param, "must be none, auto, required, or an object that names a function")
    if not tools:
        raise InvalidParameter(param, "must be none or auto where no tools are offered")
    return Choice(tools, [tool.name for tool in tools])


def _known(tools: list[OfferedTool], named: FunctionName | None, param: str) -> str:
    names = [tool.name for tool in tools]
    if named is None or named.name not in names:
        said = named.name if named else None
        raise InvalidParameter(param, f"must be one of the tools ({', '.join(names) or 'none'}), got {said!r}")
    return named.name
