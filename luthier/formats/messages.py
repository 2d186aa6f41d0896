"""Chat rows: one `{"messages": [{"role": ..., "content": ...}, ...]}` a line, as OpenAI's fine-tuning takes them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from luthier.chat.messages import Conversation, Message
from luthier.formats.base import BadLine, DatasetFormat, Example

_ROLES = ("system", "user", "assistant")
_SUGGESTED = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "developer": "system"}
_LONGEST_LINE = 8 * 1024 * 1024  # bytes; a longer one is a fault, so that memory stays flat


class Messages(DatasetFormat):
    kind = "chat"

    @classmethod
    def recognises(cls, head: bytes) -> bool:
        return b'"messages"' in head and b'"chosen"' not in head

    def read(self, lines: Iterable[bytes]) -> Iterator[Example | BadLine]:
        for number, line in enumerate(lines, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            faults: list[tuple[str, str]] = []
            conversation = _conversation(line, faults)
            if conversation is not None and not faults:
                yield Example(number, conversation)
            yield from (BadLine(number, code, message) for code, message in faults)


def _conversation(line: bytes, faults: list[tuple[str, str]]) -> Conversation | None:
    """Read one row, adding (code, message) to `faults` for everything that is wrong with it."""
    row = _parsed(line, faults)
    if faults:
        return None
    if not isinstance(row, dict):
        hint = " A file holds one object a line, not one array." if isinstance(row, list) else ""
        faults.append(("not_an_object", f"a row must be a JSON object, found {_kind(row)}.{hint}"))
        return None
    if "messages" not in row:
        named = ", ".join(f"{name!r:.60}" for name in sorted(row)[:5]) or "no field"
        faults.append(("missing_messages", f'a row needs "messages", a list of turns; found {named}.'))
        return None
    if not isinstance(row["messages"], list):
        faults.append(("messages_not_a_list", f'"messages" must be a list, found {_kind(row["messages"])}.'))
        return None
    if row.get("tools") or row.get("functions"):
        faults.append(
            ("tools_not_offered", "rows with tools are not offered by this version; remove the row or its tools.")
        )
    messages = [_message(place, turn, faults) for place, turn in enumerate(row["messages"])]
    roles = [message.role for message in messages if message is not None]
    if not faults:
        _check_order(roles, faults)
    return Conversation(tuple(message for message in messages if message is not None))


def _message(place: int, turn: Any, faults: list[tuple[str, str]]) -> Message | None:
    where = f"messages[{place}]"
    if not isinstance(turn, dict):
        faults.append(("message_not_an_object", f"{where} must be an object, found {_kind(turn)}."))
        return None
    role, content, weight = turn.get("role"), turn.get("content"), turn.get("weight", 1)
    if role not in _ROLES:
        meant = f" Did you mean {_SUGGESTED[role]!r}?" if isinstance(role, str) and role in _SUGGESTED else ""
        faults.append(("unknown_role", f"{where}.role must be one of {', '.join(_ROLES)}, found {role!r:.60}.{meant}"))
    if not isinstance(content, str):
        faults.append(("content_not_text", f"{where}.content must be a text, found {_kind(content)}."))
    elif role == "assistant" and not content.strip():
        faults.append(
            ("empty_answer", f"{where}.content is empty; an assistant's turn must say what is to be learned.")
        )
    elif any("\ud800" <= sign <= "\udfff" for sign in content):
        faults.append(("not_unicode", f"{where}.content has half a surrogate pair, which no text can hold."))
    if weight not in (0, 1) or isinstance(weight, bool):
        faults.append(("unknown_weight", f"{where}.weight must be 0 or 1, found {weight!r:.60}."))
    if role not in _ROLES or not isinstance(content, str):
        return None
    return Message(role, content, trained=weight != 0)


def _check_order(roles: list[str], faults: list[tuple[str, str]]) -> None:
    if "system" in roles[1:]:
        faults.append(("system_not_first", "a system message may only be the first."))
    if "user" not in roles:
        faults.append(("no_user_turn", "there is no user turn."))
    if "assistant" not in roles:
        faults.append(("no_assistant_turn", "there is no assistant turn, so there is nothing to learn."))


def _parsed(line: bytes, faults: list[tuple[str, str]]) -> Any:
    if len(line) > _LONGEST_LINE:
        faults.append(("line_too_long", f"the line has {len(line):,} bytes; at most {_LONGEST_LINE:,} are read."))
        return None
    try:
        return json.loads(line.decode("utf-8"), object_pairs_hook=_without_repeats, parse_constant=_refuse_constant)
    except UnicodeDecodeError as wrong:
        faults.append(("not_utf8", f"the line is not UTF-8 (byte {wrong.start + 1}); save the file as UTF-8."))
    except json.JSONDecodeError as wrong:
        faults.append(
            ("not_json", f"not JSON: {wrong.msg}, column {wrong.colno}. A row is one JSON object on one line.")
        )
    except (ValueError, RecursionError) as wrong:
        faults.append(("not_json", f"not JSON that can be read: {wrong}."))
    return None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for name, value in pairs:
        if name in seen:
            raise ValueError(f"the key {name!r:.60} stands twice in one object")
        seen[name] = value
    return seen


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", int: "a number", float: "a number"}
    return "nothing" if value is None else names.get(type(value), type(value).__name__)
