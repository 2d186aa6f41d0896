"""Tool calls as text: `<tool_call>`, a line of JSON with name and arguments, `</tool_call>`; and reading them back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from luthier.chat.messages import Message, Tool, ToolCall
from luthier.core.errors import InvalidRequest

OPEN, CLOSE = "<tool_call>", "</tool_call>"
PROBE = Tool("weather", "Tell the weather.", {"type": "object", "properties": {"town": {"type": "string"}}})
"""What templates are tried with."""

_BLANKS = " \t\r\n"
_scan = json.JSONDecoder().raw_decode


def as_json(value: Any) -> str:
    """JSON as templates write it: one line, a blank after commas and colons, every script as it is."""
    return json.dumps(value, ensure_ascii=False)


def arguments_of(call: ToolCall) -> dict[str, Any]:
    """The arguments as an object. Raises InvalidRequest where they are none."""
    try:
        parsed = call.parsed
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise InvalidRequest(f"The arguments of the call of {call.name!r} are not a JSON object.")
    return parsed


def listed(tools: Sequence[Tool]) -> str:
    """The definitions, one a line."""
    return "\n".join(as_json(tool.definition) for tool in tools)


def write(content: str, calls: Sequence[ToolCall]) -> str:
    """The text of an answer with its calls behind it."""
    blocks = [as_json(arguments_of(call)).join(around(call.name)) for call in calls]
    return "\n".join([content, *blocks] if content or not blocks else blocks)


def around(name: str) -> tuple[str, str]:
    """What stands before and behind the arguments of a call."""
    return f'{OPEN}\n{{"name": {as_json(name)}, "arguments": ', f"}}\n{CLOSE}"


def read(text: str) -> Message:
    """The answer that a text says. Whole calls become tool calls, everything else stays text; nothing is refused.

    Arguments stay as they were written; ids are call_0, call_1 and so on.
    """
    calls: list[ToolCall] = []
    said: list[str] = []
    done, tag = 0, text.find(OPEN)
    while tag >= 0:
        found = call_at(text, tag + len(OPEN))
        if found is None:
            tag = text.find(OPEN, tag + len(OPEN))
            continue
        call, end = found
        calls.append(replace(call, id=f"call_{len(calls)}"))
        said.append(text[done:tag].removesuffix("\n"))
        done, tag = end, text.find(OPEN, end)
    if not calls:
        return Message("assistant", text)
    rest = text[done:]
    return Message("assistant", "".join([*said, rest if rest.strip() else ""]), tool_calls=tuple(calls))


def call_at(text: str, start: int) -> tuple[ToolCall, int] | None:
    """The call, without an id, whose block was opened right before `start`, and where the block ends; None where no whole
    one begins.
    """
    start = skip_blanks(text, start)
    try:
        value, end = _scan(text, start)
        if not isinstance(value, dict) or value.keys() != {"name", "arguments"}:
            return None
        if not isinstance(name := value["name"], str) or not isinstance(value["arguments"], dict):
            return None
        name.encode()  # half a surrogate pair is no name
    except (ValueError, RecursionError):
        return None
    closing = skip_blanks(text, end)
    if not text.startswith(CLOSE, closing):
        return None
    return ToolCall("", name, _arguments_as_written(text, start)), closing + len(CLOSE)


def _arguments_as_written(text: str, start: int) -> str:
    place, written = start + 1, ""
    while text[place] != "}":
        key, end = _scan(text, skip_blanks(text, place))
        value = skip_blanks(text, skip_blanks(text, end) + 1)  # behind the colon
        _, end = _scan(text, value)
        if key == "arguments":
            written = text[value:end]
        place = skip_blanks(text, end)
        if text[place] == ",":
            place = skip_blanks(text, place + 1)
    return written


def skip_blanks(text: str, place: int) -> int:
    """The first place from this one on that is no blank of JSON's."""
    while place < len(text) and text[place] in _BLANKS:
        place += 1
    return place
