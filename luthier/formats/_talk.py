"""Conversations as a compiled decoder reads them, and what those hold that are plainly right."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Annotated, Literal

import msgspec

from luthier.formats._quick import NOT_DECODED, UNSET, Found
from luthier.formats._turns import check_tools
from luthier.formats.base import Findings
from luthier.records.lenient import MOST_VALUES
from luthier.records.reader import Record, is_nothing, strict

_LONGEST_TOOLS = 32 * 1024  # bytes
_EVERY_LEVEL = frozenset(("error", "warning"))


class Called(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    name: str
    arguments: str


class Call(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    id: str
    function: Called
    type: Literal["function"] | msgspec.UnsetType = UNSET


class Turn(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | msgspec.UnsetType | None = UNSET
    weight: Literal[0, 1] | msgspec.UnsetType = UNSET
    name: str | msgspec.UnsetType = UNSET
    tool_calls: Annotated[list[Call], msgspec.Meta(min_length=1)] | msgspec.UnsetType | None = UNSET
    tool_call_id: str | msgspec.UnsetType | None = UNSET


class Tools(msgspec.Struct, frozen=True):
    """The functions that a row declares, and how that is written."""

    names: frozenset[str] = frozenset()
    written: bytes = b""


def declared(tools: msgspec.Raw | msgspec.UnsetType) -> Tools | None:
    """The functions of a row; None where they need a careful look."""
    if tools is UNSET:
        return _NO_TOOLS
    return _declared(bytes(tools)) if len(memoryview(tools)) < _LONGEST_TOOLS else None


_NO_TOOLS = Tools()


@lru_cache(maxsize=256)  # the rows of a file mostly declare the same functions
def _declared(written: bytes) -> Tools | None:
    value = strict(b"[[%b]]" % written)  # as deep as they stand in a row
    if is_nothing(value):
        return None
    findings = Findings(Record(1, 1, "", None), unplaced=_EVERY_LEVEL)
    names = check_tools({"tools": value[0][0]}, findings, ())
    if names is None or findings.problems or findings.warnings:
        return None
    return Tools(frozenset(names), written)


def found_in(messages: list[Turn], functions: Collection[str] | None, *, is_prompt: bool = False) -> Found | None:
    """What a conversation holds, where it is plainly right; its turns alone count as `strings`.

    `functions` are those that may be called; None where there may be none. A prompt need not hold an answer, and ends
    where one is wanted.
    """
    strings = trained = characters = 0
    earlier = ""
    has_user = False
    made: set[str] = set()
    unanswered: set[str] = set()
    noted: list[str] = []
    for turn in messages:
        role, content, calls = turn.role, turn.content, turn.tool_calls
        strings += 3
        if isinstance(content, str):
            strings += 1
            characters += len(content)
        elif content is UNSET:
            strings -= 1
        if role == "tool":
            if turn.tool_call_id not in made or not isinstance(content, str) or calls or turn.weight is not UNSET:
                return None
            unanswered.discard(turn.tool_call_id)
        elif unanswered or isinstance(turn.tool_call_id, str):
            return None
        elif role == "assistant":
            if calls:
                if functions is None or not _are_right(calls, functions, made):
                    return None
                unanswered.update([call.id for call in calls])
                made |= unanswered
                for call in calls:
                    strings += 7 if call.type is UNSET else 9
                    characters += len(call.function.name) + len(call.function.arguments)
            elif not isinstance(content, str) or not content or content.isspace():
                return None
            if turn.weight != 0:
                trained += 1
        elif not isinstance(content, str) or calls or turn.weight is not UNSET:
            return None
        elif role == "user":
            if not content or content.isspace():
                return None
            has_user = True
        elif earlier:
            return None
        if turn.weight is not UNSET:
            strings += 1
        if calls is not UNSET:
            strings += 1
        if turn.tool_call_id is not UNSET:
            strings += 1 if turn.tool_call_id is None else 2
        if turn.name is not UNSET:
            strings += 2
            noted.append("name_ignored")
        if role == earlier and role != "tool":
            noted.append("same_role_twice")
        earlier = role
    if not has_user or (earlier not in ("user", "tool") if is_prompt else not trained):
        return None
    if unanswered and earlier == "tool":
        return None
    if earlier == "user" and not is_prompt:
        noted.append("ends_with_user")
    return Found(strings, len(messages), trained, characters, noted=tuple(noted))


def _are_right(calls: list[Call], functions: Collection[str], made: Collection[str]) -> bool:
    """Whether an assistant's calls are new, of functions that there are, and with objects as arguments."""
    ids = {call.id for call in calls}
    return (
        len(ids) == len(calls)
        and ids.isdisjoint(made)
        and all(call.function.name in functions for call in calls)
        and all(_is_object(call.function.arguments) for call in calls)
    )


_ARGUMENTS = msgspec.json.Decoder(
    dict[str, str | bool | Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None]
)


def _is_object(written: str) -> bool:
    """Whether a text is a JSON object without any doubt about it; those that hold texts, numbers and words are told quickly."""
    if "\\" not in written:
        try:
            found = _ARGUMENTS.decode(written)
        except NOT_DECODED:
            return isinstance(strict(written.encode("utf-8", "replace")), dict)
        if len(found) >= MOST_VALUES:
            return False
        return written.count('"') == 2 * len(found) + 2 * list(map(type, found.values())).count(str)
    return isinstance(strict(written.encode("utf-8", "replace")), dict)
