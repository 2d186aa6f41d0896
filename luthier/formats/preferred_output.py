"""Preference rows as Zhipu and OpenAI publish them: an `input`, one `preferred_output` and one `non_preferred_output`."""

from __future__ import annotations

from typing import Any

from luthier.chat.messages import PreferencePair
from luthier.formats._turns import (
    Rules,
    check_fields,
    check_message,
    check_messages,
    check_tag,
    check_tools,
    conversation,
    message_of,
    repaired_message,
    repaired_messages,
)
from luthier.formats.base import DatasetFormat, Findings, Row, Value
from luthier.formats.function_calling import check_parallel
from luthier.records.problems import shown, type_of

PROMPT = Rules(tools=True, needs_answer=False, fields=frozenset({"messages", "tools", "parallel_tool_calls"}))
OUTPUTS = ("preferred_output", "non_preferred_output")


class PreferredOutput(DatasetFormat):
    kind = "preference"
    describes = '{"input": {"messages": [...]}, "preferred_output": [...], "non_preferred_output": [...]}'

    @classmethod
    def recognises(cls, row: Row) -> bool:
        return any(name in row for name in OUTPUTS) or isinstance(row.get("input"), dict)

    @classmethod
    def check(cls, row: Row, findings: Findings) -> None:
        check_fields(row, findings, (), ("input", *OUTPUTS, "tag"))
        check_tag(row, findings)
        prompt = row.get("input")
        functions: set[str] | None = None
        if isinstance(prompt, dict):
            check_fields(prompt, findings, ("input",), PROMPT.fields)
            check_parallel(prompt, findings, "input")
            functions = check_tools(prompt, findings, ("input",))
            check_messages(prompt, findings, ("input",), PROMPT, functions)
            check_ends_with_question(prompt.get("messages"), findings, ("input", "messages"))
        elif "input" in row:
            findings.add("wrong_type", ("input",), found=type_of(prompt), expected="object")
        else:
            findings.add("missing_field", ("input",), expected="object with messages")
        answers = [_check_output(row, name, findings, functions) for name in OUTPUTS]
        if all(answer is not None for answer in answers):
            check_differ(*answers, findings=findings, path=("non_preferred_output", 0, "content"))

    @classmethod
    def value(cls, row: Row) -> Value:
        preferred, other = (message_of(row[name][0]) for name in OUTPUTS)
        return PreferencePair(conversation(row["input"]), preferred, other)

    @classmethod
    def repaired(cls, row: Row) -> Row:
        kept = {name: value for name, value in row.items() if name in ("input", *OUTPUTS, "tag")}
        if isinstance(kept.get("input"), dict):
            kept["input"] = repaired_messages(kept["input"], PROMPT)
        for name in OUTPUTS:
            if isinstance(kept.get(name), list):
                kept[name] = [repaired_message(answer, PROMPT) for answer in kept[name]]
        return kept


def _check_output(row: Row, name: str, findings: Findings, functions: set[str] | None) -> Any:
    answers = row.get(name)
    if name not in row:
        findings.add("missing_field", (name,), expected="array of one assistant message")
        return None
    if not isinstance(answers, list):
        findings.add("wrong_type", (name,), found=type_of(answers), expected="array of one assistant message")
        return None
    if len(answers) != 1:
        findings.add("one_answer", (name,), found=str(len(answers)))
        return None
    return check_answer(answers[0], findings, (name, 0), functions)


def check_answer(answer: Any, findings: Findings, path: tuple[str | int, ...], functions: set[str] | None) -> Any:
    """Check one of the two answers; the answer where it is right by itself, else None."""
    before = len(findings.problems)
    check_message(answer, findings, path, PROMPT, functions)
    if len(findings.problems) > before:
        return None
    if answer["role"] != "assistant":
        findings.add("unknown_role", (*path, "role"), found=shown(answer["role"]), expected='"assistant"')
        return None
    return answer


def check_differ(preferred: Any, other: Any, *, findings: Findings, path: tuple[str | int, ...]) -> None:
    """Two answers of which one is to be preferred must not be the same."""
    if message_of(preferred) == message_of(other):
        findings.add("same_answers", path)


def check_ends_with_question(messages: Any, findings: Findings, path: tuple[str | int, ...]) -> None:
    """What is answered is the user's last turn, or what a tool gave back."""
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        return
    role = messages[-1].get("role")
    if role in ("assistant", "system"):
        findings.add("prompt_ends", (*path, len(messages) - 1, "role"), found=role)
