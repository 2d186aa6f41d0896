"""The quick way through chat rows takes plain ones, and nothing that the careful way would not."""

from __future__ import annotations

import json

import pytest

from luthier.formats._quick import QuickChat
from tests.fuzz.dataset_files import quick_and_careful_agree, tried

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be kind"}


def row(*messages: dict, **more: object) -> str:
    return json.dumps({"messages": messages, **more}, ensure_ascii=False)


TAKEN = [
    row(USER, ANSWER),
    row(SYSTEM, USER, ANSWER, USER, ANSWER),
    row(USER, ANSWER | {"weight": 0}, USER, ANSWER | {"weight": 1}, tag="a"),
    row(USER, {"role": "assistant", "content": 'a "b" \\ \\" \n 你好 😀'}),
    row(USER, ANSWER) + " \r",
    row(USER, ANSWER).replace("role", "\\u0072ole"),
]


@pytest.mark.parametrize("line", TAKEN)
def test_a_plain_row_is_taken(line: str) -> None:
    quick = QuickChat()
    assert list(quick([line.encode()], 5)) == []
    assert list(quick.lines) == [5]
    quick_and_careful_agree([line])


LEFT = [
    row(),
    row(SYSTEM),
    row(USER),
    row(ANSWER),
    row(SYSTEM, ANSWER),
    row(USER, USER, ANSWER),
    row(USER, ANSWER, USER),
    row(USER, ANSWER | {"weight": 0}),
    row(USER, ANSWER | {"weight": None}),
    row(USER, ANSWER | {"weight": True}),
    row(USER, ANSWER | {"weight": 2}),
    row(USER | {"weight": 1}, ANSWER),
    row(USER, ANSWER | {"content": " \n\u3000"}),
    row(USER, ANSWER | {"content": ""}),
    row(USER, ANSWER | {"name": "a"}),
    row(USER, ANSWER, id=1),
    row(USER, ANSWER, tag=None),
    row(USER, ANSWER | {"content": "a\0"}),
    row(USER, ANSWER).replace("Hello", "\\\\\\u0000"),
    row(USER, ANSWER).replace("Hello", "\\ud800"),
    row(USER, ANSWER).replace('"role": "user"', '"role": "user", "role" :"user"'),
    row(USER, ANSWER).replace('"role": "user"', '"role": "user", "\\u0072ole":"user"'),
    row(USER, ANSWER)[:-1] + ', "messages": ' + row(USER, ANSWER)[13:],
    row(USER, ANSWER, tag="a")[:-1] + ', "tag": "a"}',
    row(USER, ANSWER | {"weight": 1})[:-3] + ', "weight": 1}]}',
    row(USER, ANSWER) + "}",
    row(USER, ANSWER) + row(USER, ANSWER),
    " " + row(USER, ANSWER),
    "\ufeff" + row(USER, ANSWER),
    row(USER, ANSWER)[:-1],
    row(USER, ANSWER)[:-1] + ', "x": ' + "[" * 10_000,
    row(USER, ANSWER)[:-1] + ', "x": ' + "9" * 10_000 + "}",
]


@pytest.mark.parametrize("line", LEFT)
def test_a_row_in_any_doubt_is_left_to_the_careful_way(line: str) -> None:
    quick = QuickChat()
    assert list(quick([line.encode()], 1)) == [0]
    assert (quick.rows, quick.turns, quick.characters, len(quick.hashes), quick.tags) == (0, 0, 0, 0, {})


def test_a_batch_is_judged_line_by_line() -> None:
    lines = [one for pair in zip(TAKEN * 10, LEFT * 10, strict=False) for one in pair]
    quick = QuickChat()
    assert list(quick([line.encode() for line in lines], 1)) == [
        place for place, line in enumerate(lines) if line in LEFT
    ]
    assert quick.rows == len(quick.hashes) == len(quick.lines) == sum(line in TAKEN for line in lines)


def test_random_lines() -> None:
    assert tried("quick_and_careful_agree", 200, is_random=False)
