"""Chat rows: what is read, and each fault with its code, its line and what to do."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.chat.messages import Conversation, Message
from luthier.formats.base import BadLine, Example
from luthier.formats.messages import Messages

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def read(*lines: bytes | dict[str, Any] | list[Any]) -> list[Example | BadLine]:
    return list(Messages().read([line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]))


def codes(*lines: Any) -> list[tuple[int, str]]:
    found = read(*lines)
    assert all(isinstance(one, BadLine) for one in found)
    return [(one.line, one.code) for one in found if isinstance(one, BadLine)]


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ([USER, ANSWER], [Message("user", "Hi"), Message("assistant", "Hello")]),
        ([USER, ANSWER | {"weight": 0}], [Message("user", "Hi"), Message("assistant", "Hello", trained=False)]),
        ([USER, ANSWER | {"weight": 1}], [Message("user", "Hi"), Message("assistant", "Hello")]),
        (
            [{"role": "system", "content": ""}, USER, ANSWER],
            [Message("system", ""), Message("user", "Hi"), Message("assistant", "Hello")],
        ),
        ([USER | {"name": "Ada"}, ANSWER], [Message("user", "Hi"), Message("assistant", "Hello")]),
        (
            [USER, {"role": "assistant", "content": " \u00a0谢谢 🙂\x00"}],
            [Message("user", "Hi"), Message("assistant", " \u00a0谢谢 🙂\x00")],
        ),
    ],
)
def test_a_row_becomes_a_conversation(row: list[dict[str, Any]], messages: list[Message]) -> None:
    assert read({"messages": row, "id": 7}) == [Example(1, Conversation(tuple(messages)))]


FAULTS: list[tuple[Any, str, str]] = [
    (b"{'messages': []}", "not_json", "column 2"),
    (b'{"messages": [', "not_json", "one JSON object on one line"),
    (b'{"messages": NaN}', "not_json", "NaN"),
    (b'{"messages": [], "messages": []}', "not_json", "'messages' stands twice"),
    (b'{"messages": "\xe9"}', "not_utf8", "byte 15"),
    (b"[" * 100_000, "not_json", "recursion"),
    (b" " * 9_000_000 + b"1", "line_too_long", "9,000,001 bytes"),
    ([USER, ANSWER], "not_an_object", "one object a line, not one array"),
    (b"17", "not_an_object", "found a number"),
    (b"null", "not_an_object", "found nothing"),
    ({"prompt": "a", "completion": "b"}, "missing_messages", "found 'completion', 'prompt'"),
    ({}, "missing_messages", "found no field"),
    ({"messages": "Hi"}, "messages_not_a_list", "found a text"),
    ({"messages": [USER, ANSWER], "tools": [{}]}, "tools_not_offered", "remove the row"),
    ({"messages": [USER, "Hello"]}, "message_not_an_object", "messages[1] must be an object, found a text"),
    ({"messages": [{"role": "human", "content": "Hi"}, ANSWER]}, "unknown_role", "Did you mean 'user'?"),
    ({"messages": [USER, ANSWER, {"role": "tool", "content": ""}]}, "unknown_role", "messages[2].role"),
    ({"messages": [{"role": ["user"], "content": "Hi"}, ANSWER]}, "unknown_role", "found ['user']"),
    ({"messages": [USER | {"content": None}, ANSWER]}, "content_not_text", "found nothing"),
    ({"messages": [USER | {"content": [{"type": "text"}]}, ANSWER]}, "content_not_text", "found a list"),
    ({"messages": [USER, ANSWER | {"content": " \n"}]}, "empty_answer", "messages[1].content is empty"),
    ({"messages": [USER, ANSWER | {"content": "\ud83d"}]}, "not_unicode", "surrogate"),
    ({"messages": [USER, ANSWER | {"weight": 0.5}]}, "unknown_weight", "found 0.5"),
    ({"messages": [USER, ANSWER | {"weight": True}]}, "unknown_weight", "found True"),
    ({"messages": [USER, {"role": "system", "content": "x"}, ANSWER]}, "system_not_first", "only be the first"),
    ({"messages": [ANSWER]}, "no_user_turn", "no user turn"),
    ({"messages": [USER]}, "no_assistant_turn", "nothing to learn"),
]


@pytest.mark.parametrize(("row", "code", "said"), FAULTS, ids=[f"{n}-{code}" for n, (_, code, _) in enumerate(FAULTS)])
def test_a_fault_has_its_line_its_code_and_words(row: Any, code: str, said: str) -> None:
    _, fault = read({"messages": [USER, ANSWER]}, row)
    assert isinstance(fault, BadLine)
    assert (fault.line, fault.code) == (2, code)
    assert said in fault.message


def test_every_code_that_the_file_can_give_is_in_the_table_above() -> None:
    import re
    from pathlib import Path

    import luthier.formats.messages as module

    source = Path(module.__file__).read_text()
    assert set(re.findall(r'append\(\s*\(\s*"(\w+)"', source)) == {code for _, code, _ in FAULTS}


def test_all_faults_of_a_row_are_told_at_once() -> None:
    row = {"messages": [{"role": "human", "content": 1}, {"role": "assistant", "content": ""}], "tools": [1]}
    assert codes(row) == [
        (1, code) for code in ("tools_not_offered", "unknown_role", "content_not_text", "empty_answer")
    ]


def test_what_is_quoted_from_a_row_is_cut() -> None:
    long = "x" * 100_000
    rows = [{long: 1}, {"messages": [{"role": long, "content": ""}]}, {"messages": [USER | {"weight": long}]}]
    found = read(*rows, b'{"%s": 1, "%s": 1}' % (long.encode(), long.encode()))
    assert [one.line for one in found] == [1, 2, 3, 4]
    assert all(isinstance(one, BadLine) and len(one.message) < 200 for one in found)


def test_a_pretty_printed_file_is_told_line_by_line() -> None:
    lines = json.dumps({"messages": [USER, ANSWER]}, indent=2).encode().split(b"\n")
    found = codes(*lines)
    assert {line for line, _ in found} == set(range(1, len(lines) + 1))
    assert found[0] == (1, "not_json")


def test_windows_and_unix_files_read_alike() -> None:
    rows = [json.dumps({"messages": [USER, ANSWER]}).encode()] * 2
    assert read(*rows) == read(*(row + b"\r" for row in rows)) == read(b"\xef\xbb\xbf" + rows[0], rows[1])


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
answers = st.builds(
    lambda content, trained: Message("assistant", content, trained), texts.filter(str.strip), st.booleans()
)
conversations = st.builds(
    lambda system, pairs: Conversation((*system, *(message for pair in pairs for message in pair))),
    st.lists(st.builds(lambda text: Message("system", text), texts), max_size=1),
    st.lists(st.tuples(st.builds(lambda text: Message("user", text), texts), answers), min_size=1, max_size=3),
)


@settings(deadline=None, derandomize=True)
@given(conversations, st.booleans())
def test_what_is_written_is_read_back(conversation: Conversation, ascii_only: bool) -> None:
    turns = [
        {"role": message.role, "content": message.content, **({} if message.trained else {"weight": 0})}
        for message in conversation.messages
    ]
    line = json.dumps({"messages": turns}, ensure_ascii=ascii_only).encode()
    assert read(line) == [Example(1, conversation)]
