"""Chat rows: what they say, and all faults of a row at once, each with its field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from luthier.chat.messages import Conversation, Message
from luthier.formats.base import Example
from luthier.formats.messages import Messages
from luthier.records.problems import Problem

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def read(*rows: Any) -> list[Example | Problem]:
    return list(Messages.read(["\n".join(map(json.dumps, rows)).encode()]))


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ([USER, ANSWER], [Message("user", "Hi"), Message("assistant", "Hello")]),
        (
            [USER, ANSWER | {"weight": 0}, ANSWER],
            [Message("user", "Hi"), Message("assistant", "Hello", trained=False), Message("assistant", "Hello")],
        ),
        ([USER, ANSWER | {"weight": 1}], [Message("user", "Hi"), Message("assistant", "Hello")]),
        (
            [{"role": "system", "content": ""}, USER, ANSWER],
            [Message("system", ""), Message("user", "Hi"), Message("assistant", "Hello")],
        ),
        ([USER | {"name": "Ada"}, ANSWER], [Message("user", "Hi"), Message("assistant", "Hello")]),
        (
            [USER | {"content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}, ANSWER],
            [Message("user", "Hi"), Message("assistant", "Hello")],
        ),
        ([USER, ANSWER] * 100, [Message("user", "Hi"), Message("assistant", "Hello")] * 100),
        ([USER, ANSWER, USER], [Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Hi")]),
    ],
)
def test_a_row_becomes_a_conversation(row: list[dict[str, Any]], messages: list[Message]) -> None:
    assert read({"messages": row, "tag": "a"}) == [Example(1, 1, Conversation(tuple(messages)))]


def test_all_faults_of_a_row_are_told_at_once_each_with_its_field() -> None:
    messages = [
        {"role": "gpt", "content": None},
        {"role": "system", "content": 1, "colour": "red"},
        {"role": "assistant", "content": " ", "weight": 3},
        "Hi",
    ]
    found = read({"messages": messages, "id": 1})
    assert {(one.code, one.field, one.message_index) for one in found if isinstance(one, Problem)} == {
        ("unknown_field", "id", None),
        ("role_word", "messages[0].role", 0),
        ("wrong_type", "messages[0].content", 0),
        ("wrong_type", "messages[1].content", 1),
        ("field_unread", "messages[1].colour", 1),
        ("system_not_first", "messages[1].role", 1),
        ("empty_answer", "messages[2].content", 2),
        ("bad_weight", "messages[2].weight", 2),
        ("wrong_type", "messages[3]", 3),
    }


def test_a_row_with_a_fault_comes_as_its_problems_and_the_others_as_examples() -> None:
    found = read({"messages": [USER, ANSWER]}, {"messages": [USER]}, {"messages": [USER, ANSWER]})
    assert [one.row for one in found] == [1, 2, 3]
    assert [type(one) for one in found] == [Example, Problem, Example]


def test_what_is_quoted_from_a_row_is_cut() -> None:
    long = "x" * 100_000
    found = read({long: 1, "messages": [USER, ANSWER]}, {"messages": [{"role": long, "content": ""}, ANSWER]})
    assert all(isinstance(one, Problem) and len(one.text.en) < 800 for one in found)
