"""Preference rows as Zhipu and OpenAI publish them: an `input`, one `preferred_output` and one `non_preferred_output`."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from luthier.chat.messages import PreferencePair
from luthier.formats._pairs import PROMPT, check_answer, check_differ, check_ends_with_question, found_in_pair
from luthier.formats._quick import UNSET, Found, QuickRows, of_row
from luthier.formats._talk import Turn, declared
from luthier.formats._turns import (
    check_fields,
    check_messages,
    check_parallel,
    check_tag,
    check_tools,
    conversation,
    message_of,
    repaired_message,
    repaired_messages,
    without_harmless,
)
from luthier.formats.base import DatasetFormat, Findings, Quick, Row, Value
from luthier.records.problems import type_of

OUTPUTS = ("preferred_output", "non_preferred_output")
_FIELDS = ("input", *OUTPUTS, "tag")

_Answers = Annotated[list[Turn], msgspec.Meta(min_length=1, max_length=1)]


class _Input(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    messages: list[Turn]
    tools: msgspec.Raw | msgspec.UnsetType = UNSET
    parallel_tool_calls: bool | msgspec.UnsetType = UNSET


class _Plain(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    input: _Input
    preferred_output: _Answers
    non_preferred_output: _Answers
    tag: str | msgspec.UnsetType = UNSET


class PreferredOutput(DatasetFormat):
    kind = "preference"
    describes = '{"input": {"messages": [...]}, "preferred_output": [...], "non_preferred_output": [...]}'

    @classmethod
    def recognises(cls, row: Row) -> bool:
        return any(name in row for name in OUTPUTS) or isinstance(row.get("input"), dict)

    @classmethod
    def check(cls, row: Row, findings: Findings) -> None:
        check_fields(row, findings, (), _FIELDS)
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
        kept = without_harmless(row, _FIELDS)
        if isinstance(kept.get("input"), dict):
            kept["input"] = repaired_messages(kept["input"], PROMPT)
        for name in OUTPUTS:
            if isinstance(kept.get(name), list) and len(kept[name]) == 1:  # of several none is looked at
                kept[name] = [repaired_message(kept[name][0], PROMPT)]
        return kept

    @classmethod
    def quick(cls) -> Quick:
        return QuickRows(_Plain, _found)


def _found(row: _Plain) -> Found | None:
    prompt = row.input
    functions = declared(prompt.tools)
    found = found_in_pair(prompt.messages, row.preferred_output[0], row.non_preferred_output[0], functions)
    strings = 4 + (prompt.tools is not UNSET) + (prompt.parallel_tool_calls is not UNSET)
    return found and functions and of_row(found, strings, row.tag, functions.written)


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
