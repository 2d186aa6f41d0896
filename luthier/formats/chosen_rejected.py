"""Preference rows as Bailian publishes them: `messages` that end with the user, one `chosen` and one `rejected` answer."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from luthier.chat.messages import PreferencePair
from luthier.formats._pairs import PROMPT, check_answer, check_differ, check_ends_with_question, found_in_pair
from luthier.formats._quick import UNSET, Found, QuickRows, of_row
from luthier.formats._talk import Turn, declared
from luthier.formats._turns import (
    check_fields,
    check_messages,
    check_tag,
    check_tools,
    conversation,
    message_of,
    repaired_message,
    repaired_messages,
    without_harmless,
)
from luthier.formats.base import DatasetFormat, Findings, Quick, Row, Value

_ANSWERS = ("chosen", "rejected")
_FIELDS = ("messages", "tools", *_ANSWERS, "tag")
_PROMPT = replace(PROMPT, fields=frozenset(_FIELDS))


class _Plain(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    messages: list[Turn]
    chosen: Turn
    rejected: Turn
    tools: msgspec.Raw | msgspec.UnsetType = UNSET
    tag: str | msgspec.UnsetType = UNSET


class ChosenRejected(DatasetFormat):
    kind = "preference"
    describes = '{"messages": [...], "chosen": {"role": "assistant", ...}, "rejected": {"role": "assistant", ...}}'

    @classmethod
    def recognises(cls, row: Row) -> bool:
        return any(name in row for name in _ANSWERS) and "prompt" not in row

    @classmethod
    def check(cls, row: Row, findings: Findings) -> None:
        check_fields(row, findings, (), _FIELDS)
        check_tag(row, findings)
        functions = check_tools(row, findings, ())
        check_messages(row, findings, (), PROMPT, functions)
        check_ends_with_question(row.get("messages"), findings, ("messages",))
        answers = []
        for name in _ANSWERS:
            if name in row:
                answers.append(check_answer(row[name], findings, (name,), functions))
            else:
                findings.add("missing_field", (name,), expected="assistant message")
        if len(answers) == 2 and None not in answers:
            check_differ(*answers, findings=findings, path=("rejected", "content"))

    @classmethod
    def value(cls, row: Row) -> Value:
        return PreferencePair(conversation(row), message_of(row["chosen"]), message_of(row["rejected"]))

    @classmethod
    def repaired(cls, row: Row) -> Row:
        kept = repaired_messages(without_harmless(row, _FIELDS), _PROMPT)
        return {**kept, **{name: repaired_message(kept[name], PROMPT) for name in _ANSWERS if name in kept}}

    @classmethod
    def quick(cls) -> Quick:
        return QuickRows(_Plain, _found)


def _found(row: _Plain) -> Found | None:
    functions = declared(row.tools)
    found = found_in_pair(row.messages, row.chosen, row.rejected, functions)
    return found and functions and of_row(found, 3 + (row.tools is not UNSET), row.tag, functions.written)
