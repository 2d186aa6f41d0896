"""What the formats made of messages have in common: what is wrong with a conversation, and what it says."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from luthier.chat.messages import Conversation, Image, Message, Text, Tool, ToolCall
from luthier.formats._schemas import schema_fault
from luthier.formats.base import Findings, Row
from luthier.records.foreign import ROLE_WORDS, is_harmless
from luthier.records.lenient import Path, parse
from luthier.records.problems import shown, type_of
from luthier.records.reader import strict

_MESSAGE_FIELDS = ("role", "content", "weight", "name", "tool_calls", "tool_call_id")
_TEXT_FIELDS = ("type", "text")
_IMAGE_FIELDS = ("type", "image_url")
_NAMED_IMAGE_FIELDS = ("image",)
_URL_FIELDS = ("url", "detail")
_CALL_FIELDS = ("id", "type", "function", "index")
_CALLED_FIELDS = ("name", "arguments")
_TOOL_FIELDS = ("type", "function")
_FUNCTION_FIELDS = ("name", "description", "parameters", "strict")
_FAULTS_OF_ARGUMENTS = frozenset(
    {"duplicate_key", "too_many_values", "too_deep", "number_too_long", "nul", "half_surrogate"}
)
"""What may be wrong with a JSON object that is one all the same; said of arguments as it is of a row."""


@dataclass(frozen=True)
class Rules:
    """What a format allows in its conversations."""

    tools: bool = False
    images_of: frozenset[str] = frozenset()
    """Roles whose messages may hold images."""
    archive: bool = False
    """Whether images are named by their file, as `{"image": name}`."""
    needs_answer: bool = True
    """Whether the conversation holds the answer to be learned; otherwise it is a prompt."""
    fields: frozenset[str] = field(default=frozenset({"messages", "tag"}))

    @property
    def roles(self) -> tuple[str, ...]:
        return ("system", "user", "assistant", "tool") if self.tools else ("system", "user", "assistant")


def check_row(row: Row, findings: Findings, rules: Rules) -> None:
    """A row whose conversation stands in `messages`, beside `tools` and the tag."""
    check_fields({name: row[name] for name in row if not _is_absent(row, name)}, findings, (), rules.fields)
    check_tag(row, findings)
    names = check_tools(row, findings, ()) if rules.tools else None
    check_messages(row, findings, (), rules, names)


def _is_absent(row: Row, name: str) -> bool:
    """Whether a row says with `null` that it has no functions, as libraries write it that know only rows with all fields."""
    return name in ("tools", "parallel_tool_calls") and row[name] is None


def check_fields(row: Row, findings: Findings, path: Path, allowed: Iterable[str]) -> None:
    expected = ", ".join(sorted(allowed))
    for name, value in row.items():
        if name not in allowed:
            code = "unknown_field" if is_harmless(name, value) else "field_unread"
            findings.add(code, (*path, name), expected=expected, of_key=True)


def check_tag(row: Row, findings: Findings) -> None:
    if "tag" in row and not isinstance(row["tag"], str):
        findings.add("wrong_type", ("tag",), found=type_of(row["tag"]), expected="string")


def check_tools(row: Row, findings: Findings, path: Path) -> set[str] | None:
    """Check the declared functions; their names, or None where they cannot be told."""
    tools = row.get("tools")
    if tools is None:
        return set()
    path = (*path, "tools")
    if not isinstance(tools, list):
        findings.add("wrong_type", path, found=type_of(tools), expected="array")
        return None
    names: set[str] = set()
    is_known = True
    for place, tool in enumerate(tools):
        name = _check_tool(tool, findings, (*path, place))
        if name is None:
            is_known = False
        elif name in names:
            findings.add("duplicate_tool", (*path, place, "function", "name"), found=shown(name))
        else:
            names.add(name)
    return names if is_known else None


def _check_tool(tool: Any, findings: Findings, path: Path) -> str | None:
    if not isinstance(tool, dict):
        findings.add("wrong_type", path, found=type_of(tool), expected="object")
        return None
    check_fields(tool, findings, path, _TOOL_FIELDS)
    if tool.get("type", "function") != "function":
        findings.add("wrong_type", (*path, "type"), found=shown(tool["type"]), expected='"function"')
    function = tool.get("function")
    if not isinstance(function, dict):
        _missing_or_wrong(tool, "function", "object", findings, path)
        return None
    path = (*path, "function")
    check_fields(function, findings, path, _FUNCTION_FIELDS)
    if "description" in function and not isinstance(function["description"], str):
        _missing_or_wrong(function, "description", "string", findings, path)
    if (schema := function.get("parameters")) is not None and (fault := schema_fault(schema)):
        findings.add("bad_schema", (*path, "parameters"), found=fault)
    name = function.get("name")
    if not isinstance(name, str) or not name:
        _missing_or_wrong(function, "name", "string", findings, path)
        return None
    return name


def check_parallel(row: Row, findings: Findings, *path: str) -> None:
    """Check `parallel_tool_calls`, which is allowed and changes nothing."""
    if not isinstance(row.get("parallel_tool_calls"), bool | None):
        found = type_of(row["parallel_tool_calls"])
        findings.add("wrong_type", (*path, "parallel_tool_calls"), found=found, expected="boolean")


def check_messages(row: Row, findings: Findings, path: Path, rules: Rules, functions: set[str] | None) -> None:
    """Check `messages` of a row. `functions` are the names that may be called; None where that is not known."""
    messages = row.get("messages")
    if not isinstance(messages, list):
        _missing_or_wrong(row, "messages", "array", findings, path)
        return
    path = (*path, "messages")
    roles = [
        check_message(message, findings, (*path, place), rules, functions) for place, message in enumerate(messages)
    ]
    _check_order(messages, roles, findings, path, rules)


def check_message(message: Any, findings: Findings, path: Path, rules: Rules, functions: set[str] | None) -> str | None:
    """One message by itself; the role that is meant, or None where that cannot be told."""
    if not isinstance(message, dict):
        findings.add("wrong_type", path, found=type_of(message), expected="object")
        return None
    role = _role(message, findings, path, rules)
    fields = {"role", "content", "weight", "name"}
    if rules.tools:
        fields |= {"tool_calls", "tool_call_id"}
    for name, value in message.items():
        if name in ("tool_calls", "tool_call_id") and name not in fields:
            if value is not None:
                findings.add("tools_here", (*path, name), of_key=True)
        elif name not in fields:
            code = "unknown_field" if is_harmless(name, value) else "field_unread"
            findings.add(code, (*path, name), expected=", ".join(sorted(fields)), of_key=True)
    if "name" in message:
        findings.add("name_ignored", (*path, "name"), of_key=True)
    if "weight" in message:
        _check_weight(message["weight"], role, findings, path)
    calls = message.get("tool_calls") if rules.tools else None
    if calls is not None:
        _check_calls(calls, role, findings, path, functions)
    if role == "tool" and not isinstance(message.get("tool_call_id"), str):
        _missing_or_wrong(message, "tool_call_id", "string", findings, path)
    _check_content(message, role, findings, path, rules, has_calls=bool(calls))
    return role


def _role(message: Row, findings: Findings, path: Path, rules: Rules) -> str | None:
    allowed = rules.roles
    if "role" not in message:
        findings.add("missing_field", (*path, "role"), expected=", ".join(allowed))
        return None
    role = message["role"]
    if isinstance(role, str) and role in allowed:
        return role
    if isinstance(role, str) and (meant := _meant(role)) in allowed:
        findings.add("role_word", (*path, "role"), found=shown(role), expected=f'"{meant}"')
        return meant
    findings.add("unknown_role", (*path, "role"), found=shown(role), expected=", ".join(allowed))
    return None


def _meant(role: str) -> str:
    """The role that a word stands for, as far as it is known."""
    word = role.strip().lower()
    return ROLE_WORDS.get(word, word)


def _check_weight(weight: Any, role: str | None, findings: Findings, path: Path) -> None:
    if isinstance(weight, bool) or weight not in (0, 1):
        findings.add("bad_weight", (*path, "weight"), found=shown(weight))
    elif role not in ("assistant", None):
        findings.add("weight_of_others", (*path, "weight"), of_key=True)


def _check_content(
    message: Row, role: str | None, findings: Findings, path: Path, rules: Rules, *, has_calls: bool
) -> None:
    content, path = message.get("content"), (*path, "content")
    if content is None:
        if not has_calls:
            if "content" in message:
                findings.add("wrong_type", path, found="null", expected="string")
            else:
                findings.add("missing_field", path, expected="string")
        return
    if isinstance(content, list):
        text = _check_parts(content, role, findings, path, rules)
        if text is None:
            return
    elif isinstance(content, str):
        text = content
    else:
        findings.add("wrong_type", path, found=type_of(content), expected="string")
        return
    if not text.strip() and not has_calls and role in ("assistant", "user"):
        findings.add("empty_answer" if role == "assistant" else "empty_text", path)


def _check_parts(parts: list[Any], role: str | None, findings: Findings, path: Path, rules: Rules) -> str | None:
    """Check a content of parts; its text, or None where it may be empty because there is an image, or is wrong."""
    texts: list[str] = []
    has_image = False
    before = len(findings.problems)
    for place, part in enumerate(parts):
        inner = (*path, place)
        if not isinstance(part, dict):
            findings.add("wrong_type", inner, found=type_of(part), expected="object")
        elif is_image(part):
            has_image = True
            if not rules.images_of:
                findings.add("image_place", inner, found="no image format", expected="file of an image category")
            elif role is not None and role not in rules.images_of:
                findings.add(
                    "image_place", inner, found=f"message of {role}", expected=f"messages of {min(rules.images_of)}"
                )
            else:
                _check_image(part, findings, inner, rules)
        elif part.get("type", "text") != "text":
            findings.add("wrong_type", (*inner, "type"), found=shown(part["type"]), expected='"text"')
        elif isinstance(part.get("text"), str):
            check_fields(part, findings, inner, _TEXT_FIELDS)
            texts.append(part["text"])
        elif "text" in part:
            findings.add("wrong_type", (*inner, "text"), found=type_of(part["text"]), expected="string")
        else:
            findings.add("missing_field", (*inner, "text"), expected="string")
    return None if has_image or len(findings.problems) > before else "".join(texts)


def is_image(part: Row) -> bool:
    return part.get("type") == "image_url" or "image_url" in part or "image" in part


def _check_image(part: Row, findings: Findings, path: Path, rules: Rules) -> None:
    if rules.archive and "image" not in part and isinstance(address := source_of(part), str):
        is_elsewhere = address.startswith(("http://", "https://", "data:"))
        name = "" if is_elsewhere else address.rpartition("/")[2][:255]  # an archive has no folders
        expected = json.dumps({"image": name or "name.jpg"}, ensure_ascii=False)
        findings.add("image_by_url", path, found=shown(address[:60]), expected=expected)
        return
    if rules.archive:
        name = part.get("image")
        if not isinstance(name, str) or not name:
            _missing_or_wrong(part, "image", "string", findings, path)
        check_fields(part, findings, path, _NAMED_IMAGE_FIELDS)
        return
    check_fields(part, findings, path, _IMAGE_FIELDS)
    holder = part.get("image_url")
    if isinstance(holder, dict):
        path = (*path, "image_url")
        check_fields(holder, findings, path, _URL_FIELDS)
        url, name = holder.get("url"), "url"
    else:
        url, name, holder = holder, "image_url", part
    if not isinstance(url, str):
        _missing_or_wrong(holder, name, "string", findings, path)
        return
    path = (*path, name)
    if url.startswith("data:"):
        if not url.startswith(("data:image/jpeg;base64,", "data:image/png;base64,", "data:image/webp;base64,")):
            findings.add("image_prefix", path, found=shown(url[:30]), expected="data:image/jpeg;base64,")
    elif not url.startswith(("https://", "http://")):
        code = "image_prefix" if len(url) > 100 and " " not in url[:100] else "image_url"
        findings.add(code, path, found=shown(url[:30]), expected="data:image/jpeg;base64,")


def _check_calls(calls: Any, role: str | None, findings: Findings, path: Path, functions: set[str] | None) -> None:
    if role not in ("assistant", None):
        findings.add("tools_here", (*path, "tool_calls"), of_key=True)
    path = (*path, "tool_calls")
    if not isinstance(calls, list) or not calls:
        findings.add("wrong_type", path, found="empty array" if calls == [] else type_of(calls), expected="array")
        return
    ids: set[str] = set()
    for place, call in enumerate(calls):
        inner = (*path, place)
        if not isinstance(call, dict):
            findings.add("wrong_type", inner, found=type_of(call), expected="object")
            continue
        check_fields(call, findings, inner, _CALL_FIELDS)
        if call.get("type", "function") != "function":
            findings.add("wrong_type", (*inner, "type"), found=shown(call["type"]), expected='"function"')
        if not isinstance(call.get("id"), str):
            _missing_or_wrong(call, "id", "string", findings, inner)
        elif call["id"] in ids:
            findings.add("duplicate_id", (*inner, "id"), found=shown(call["id"]))
        else:
            ids.add(call["id"])
        function = call.get("function")
        if not isinstance(function, dict):
            _missing_or_wrong(call, "function", "object", findings, inner)
            continue
        _check_called(function, findings, (*inner, "function"), functions)


def _check_called(function: Row, findings: Findings, path: Path, functions: set[str] | None) -> None:
    check_fields(function, findings, path, _CALLED_FIELDS)
    name = function.get("name")
    if not isinstance(name, str):
        _missing_or_wrong(function, "name", "string", findings, path)
    elif functions is not None and name not in functions:
        expected = ", ".join(map(shown, sorted(functions)[:5])) or "none"
        findings.add("unknown_function", (*path, "name"), found=shown(name), expected=expected)
    arguments = function.get("arguments")
    if isinstance(arguments, dict):
        findings.add("arguments_object", (*path, "arguments"))
    elif not isinstance(arguments, str):
        _missing_or_wrong(function, "arguments", "string", findings, path)
    else:
        _check_arguments(arguments, findings, (*path, "arguments"))


def _check_arguments(written: str, findings: Findings, path: Path) -> None:
    """Arguments are JSON as a row is, and what a row may not hold they may not hold either."""
    if isinstance(strict(written.encode("utf-8", "replace")), dict):
        return
    parsed = parse(written)
    is_object = isinstance(parsed.value, dict) and not parsed.is_cut and not written[parsed.end :].strip(" \t\r\n")
    first = {fault.code: fault for fault in reversed(parsed.faults)}
    if not is_object or not first.keys() <= _FAULTS_OF_ARGUMENTS:
        findings.add("arguments_not_json", path, found=shown(written))
        return
    for code, fault in first.items():
        findings.add(code, path, found=fault.found, expected=fault.expected)


def _check_order(messages: list[Any], roles: list[str | None], findings: Findings, path: Path, rules: Rules) -> None:
    """The messages together. A message of which the role cannot be told may be of any."""
    earlier: str | None = None
    has_system = False
    for place, role in enumerate(roles):
        if role == "system":
            if place > 0:
                findings.add("system_twice" if has_system else "system_not_first", (*path, place, "role"))
            has_system = True
        if role is not None and role == earlier and role in ("user", "assistant") and not rules.images_of:
            findings.add("same_role_twice", (*path, place, "role"), found=role)
        earlier = role
    is_known = None not in roles
    if "user" not in roles and is_known:
        findings.add("no_user", path)
    if rules.tools and is_known:
        _check_answers(messages, roles, findings, path)
    if not rules.needs_answer:
        return
    answers = [message for message, role in zip(messages, roles, strict=True) if role == "assistant"]
    if not answers:
        if is_known:
            findings.add("no_assistant", path)
    elif is_known and all(_is_zero(message.get("weight")) for message in answers):
        findings.add("nothing_trained", path)
    elif roles[-1] == "user":
        findings.add("ends_with_user", (*path, len(roles) - 1, "role"))


def _is_zero(weight: Any) -> bool:
    return isinstance(weight, int | float) and not isinstance(weight, bool) and weight == 0


def _check_answers(messages: list[Row], roles: list[str | None], findings: Findings, path: Path) -> None:
    """Every call is answered before the conversation goes on, and every tool message answers a call."""
    open_calls: dict[str, Path] = {}
    made: dict[str, None] = {}
    for place, (message, role) in enumerate(zip(messages, roles, strict=True)):
        inner = (*path, place)
        if role == "tool":
            answered = message.get("tool_call_id")
            if not isinstance(answered, str):
                open_calls.clear()  # it may answer any of them
                continue
            if not made:
                findings.add("tool_without_call", (*inner, "role"))
            elif answered not in made:
                expected = ", ".join(shown(call) for call in list(made)[-5:])
                findings.add("unknown_call", (*inner, "tool_call_id"), found=shown(answered), expected=expected)
            open_calls.pop(answered, None)
            continue
        for call, where in open_calls.items():
            findings.add("unanswered_call", where, found=shown(call))
        open_calls = {}
        calls = message.get("tool_calls")
        for number, call in enumerate(calls if isinstance(calls, list) else ()):
            if not isinstance(call, dict) or not isinstance(call.get("id"), str):
                continue
            where = (*inner, "tool_calls", number, "id")
            if call["id"] in made and call["id"] not in open_calls:
                findings.add("duplicate_id", where, found=shown(call["id"]))
            made[call["id"]] = None
            open_calls[call["id"]] = where
    if roles and roles[-1] == "tool":  # a conversation may end with calls, but not with some of their answers
        for call, where in open_calls.items():
            findings.add("unanswered_call", where, found=shown(call))


def _missing_or_wrong(holder: Row, name: str, expected: str, findings: Findings, path: Path) -> None:
    if name in holder:
        findings.add("wrong_type", (*path, name), found=_described(holder[name]), expected=expected)
    else:
        findings.add("missing_field", (*path, name), expected=expected)


def _described(value: Any) -> str:
    return "empty string" if value == "" else type_of(value)


# What a row says


def conversation(row: Row) -> Conversation:
    return Conversation(tuple(map(message_of, row["messages"])), tools_of(row))


def tools_of(row: Row) -> tuple[Tool, ...]:
    return tuple(
        Tool(one["function"]["name"], one["function"].get("description", ""), one["function"].get("parameters"))
        for one in row.get("tools") or ()
    )


def message_of(message: Row) -> Message:
    content = message.get("content")
    calls = tuple(
        ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"])
        for call in message.get("tool_calls") or ()
    )
    return Message(
        message["role"],
        content if isinstance(content, str) else _parts(content),
        trained=message.get("weight", 1) != 0,
        tool_calls=calls,
        tool_call_id=message.get("tool_call_id"),
    )


def _parts(content: list[Row] | None) -> str | tuple[Text | Image, ...]:
    if content is None:
        return ""
    if not any(map(is_image, content)):
        return "".join(part["text"] for part in content)
    return tuple(Image(source_of(part)) if is_image(part) else Text(part["text"]) for part in content)


def source_of(part: Row) -> Any:
    """Where the image of a part is: a URL, or a name in the archive."""
    holder = part["image"] if "image" in part else part.get("image_url")
    return holder.get("url") if isinstance(holder, dict) else holder


def image_parts(messages: Any) -> list[tuple[Path, Row]]:
    """The image parts within `messages`, whatever else is wrong with them, and their paths."""
    found: list[tuple[Path, Row]] = []
    for place, message in enumerate(messages if isinstance(messages, list) else ()):
        content = message.get("content") if isinstance(message, dict) else None
        for number, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, dict) and is_image(part):
                found.append(((place, "content", number), part))
    return found


# Repairs


def repaired_messages(row: Row, rules: Rules) -> Row:
    """The row with role words in place, arguments as strings, and without fields that mean nothing.

    Only what the check finds is touched: what it does not look at stays as it is.
    """
    kept = without_harmless(row, rules.fields | {name for name in row if _is_absent(row, name)})
    if isinstance(kept.get("messages"), list):
        kept["messages"] = [repaired_message(message, rules) for message in kept["messages"]]
    if rules.tools and isinstance(kept.get("tools"), list):
        kept["tools"] = [_repaired_tool(tool) for tool in kept["tools"]]
    return kept


def repaired_message(message: Any, rules: Rules) -> Any:
    # Calls of tools where there are none stay: somebody meant something by them.
    kept = without_harmless(message, _MESSAGE_FIELDS)
    if not isinstance(kept, dict):
        return kept
    role = _meant(kept["role"]) if isinstance(kept.get("role"), str) else None
    if role in rules.roles:
        kept["role"] = role
    else:
        role = None
    if isinstance(kept.get("content"), list):
        kept["content"] = [_repaired_part(part, role, rules) for part in kept["content"]]
    if rules.tools and isinstance(kept.get("tool_calls"), list):
        kept["tool_calls"] = [_repaired_call(call) for call in kept["tool_calls"]]
    return kept


def _repaired_part(part: Any, role: str | None, rules: Rules) -> Any:
    if not isinstance(part, dict):
        return part
    if not is_image(part):
        is_text = part.get("type", "text") == "text" and isinstance(part.get("text"), str)
        return without_harmless(part, _TEXT_FIELDS) if is_text else part
    if not rules.images_of or (role is not None and role not in rules.images_of):
        return part
    if rules.archive:
        return without_harmless(part, _NAMED_IMAGE_FIELDS) if "image" in part else part
    kept = without_harmless(part, _IMAGE_FIELDS)
    return {**kept, "image_url": without_harmless(kept["image_url"], _URL_FIELDS)} if "image_url" in kept else kept


def _repaired_call(call: Any) -> Any:
    kept = without_harmless(call, _CALL_FIELDS)
    if not isinstance(kept, dict) or not isinstance(kept.get("function"), dict):
        return kept
    function = without_harmless(kept["function"], _CALLED_FIELDS)
    if isinstance(function.get("arguments"), dict):
        function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    return {**kept, "function": function}


def _repaired_tool(tool: Any) -> Any:
    kept = without_harmless(tool, _TOOL_FIELDS)
    if not isinstance(kept, dict) or "function" not in kept:
        return kept
    return {**kept, "function": without_harmless(kept["function"], _FUNCTION_FIELDS)}


def without_harmless(value: Any, names: Collection[str]) -> Any:
    """An object without fields that are neither among these nor mean anything; anything else as it is."""
    if not isinstance(value, dict):
        return value
    return {name: inner for name, inner in value.items() if name in names or not is_harmless(name, inner)}
