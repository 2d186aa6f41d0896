"""The quick ways take rows that are plainly right, and nothing that the careful way would not."""

from __future__ import annotations

import json

import pytest

from luthier.control.datasets.inspection import inspect
from luthier.formats._quick_chat import QuickChat
from luthier.formats._schemas import is_plain
from luthier.formats.base import known
from luthier.records.problems import Level
from luthier.records.source import Given
from tests.fuzz.dataset_files import QUICK, quick_and_careful_agree, tried, without_quick

NOTHING: frozenset[Level] = frozenset()
EVERYTHING: frozenset[Level] = frozenset(("error", "warning"))

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
    quick_and_careful_agree("messages", [line], NOTHING)


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
    assert (quick.turns, quick.characters, len(quick.hashes), len(quick.lines), quick.tags) == (0, 0, 0, 0, {})


def test_a_batch_is_judged_line_by_line() -> None:
    lines = [one for pair in zip(TAKEN * 10, LEFT * 10, strict=False) for one in pair]
    quick = QuickChat()
    assert list(quick([line.encode() for line in lines], 1)) == [
        place for place, line in enumerate(lines) if line in LEFT
    ]
    assert len(quick.hashes) == len(quick.lines) == sum(line in TAKEN for line in lines)


CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "x"}'}}
OTHER = CALL | {"id": "c2"}
CALLS = {"role": "assistant", "tool_calls": [CALL]}
GIVEN = {"role": "tool", "content": "", "tool_call_id": "c1"}
LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
TOOLS = {"tools": [LOOK]}


def calling(*messages: dict, **more: object) -> str:
    return row(*messages, **(TOOLS | more))


def called(**more: object) -> dict:
    return {"role": "assistant", "tool_calls": [CALL | {"function": CALL["function"] | more}]}


def pair(*prompt: dict, chosen: object = ANSWER, rejected: object = ANSWER | {"content": "Ho"}, **more: object) -> str:
    return json.dumps({"messages": prompt, "chosen": chosen, "rejected": rejected, **more})


def outputs(prompt: object, preferred: list[dict], other: list[dict], **more: object) -> str:
    return json.dumps({"input": prompt, "preferred_output": preferred, "non_preferred_output": other, **more})


HO = ANSWER | {"content": "Ho"}
TAKEN_OF = [
    ("function_calling", calling(USER, CALLS, GIVEN, ANSWER)),
    ("function_calling", calling(SYSTEM, USER, CALLS | {"content": None}, GIVEN, ANSWER, parallel_tool_calls=False)),
    (
        "function_calling",
        calling(USER, CALLS | {"tool_calls": [CALL, OTHER]}, GIVEN | {"tool_call_id": "c2"}, GIVEN, ANSWER),
    ),
    ("function_calling", calling(USER, called(arguments='{"a": {"b": [1.5, "\\u00e9"]}}'), GIVEN, ANSWER)),
    ("function_calling", calling(USER, CALLS)),
    ("function_calling", calling(USER, CALLS | {"tool_calls": [CALL, OTHER]})),
    ("function_calling", calling(USER, called(arguments=json.dumps({"a": "," * 90_000})), GIVEN, ANSWER)),
    ("function_calling", calling(USER, called(arguments=json.dumps({"a": "[,{" * 100_000})), GIVEN, ANSWER)),
    ("function_calling", row(USER, ANSWER, tools=[])),
    ("function_calling", row(USER, ANSWER, tools=None, parallel_tool_calls=None)),
    ("function_calling", row(USER, ANSWER, tag="a")),
    ("messages", row(USER, ANSWER, tools=None)),
    ("chosen_rejected", pair(USER)),
    ("chosen_rejected", pair(USER, chosen=ANSWER | {"weight": 1})),
    ("chosen_rejected", pair(SYSTEM, USER, ANSWER | {"weight": 0}, USER, tag="a")),
    ("chosen_rejected", pair(USER, CALLS, GIVEN, **TOOLS)),
    ("preferred_output", outputs({"messages": [USER]}, [ANSWER], [HO])),
    (
        "preferred_output",
        outputs({"messages": [USER], "tools": [], "parallel_tool_calls": True}, [ANSWER], [HO], tag="a"),
    ),
    ("text", '{"text": "a"}'),
    ("text", '{"tag": "b", "text": " \\"a\\" "}'),
]


@pytest.mark.parametrize(("name", "line"), TAKEN_OF)
def test_a_plain_row_of_any_format_is_taken(name: str, line: str) -> None:
    quick = known()[name].quick()
    assert quick is not None and list(quick([line.encode()], 1, NOTHING)) == []
    quick_and_careful_agree(name, [line], NOTHING)


LEFT_OF = [
    ("function_calling", calling(USER, GIVEN, ANSWER)),
    ("function_calling", calling(USER, CALLS, ANSWER)),
    ("function_calling", calling(USER, CALLS, GIVEN | {"tool_call_id": "c2"}, ANSWER)),
    ("function_calling", calling(USER, CALLS | {"tool_calls": [CALL, OTHER]}, GIVEN)),
    (
        "function_calling",
        calling(USER, called(arguments=json.dumps(dict.fromkeys(map(str, range(100_000))))), GIVEN, ANSWER),
    ),
    ("chosen_rejected", pair(USER, CALLS | {"tool_calls": [CALL, OTHER]}, GIVEN, **TOOLS)),
    ("chosen_rejected", pair(USER, chosen=ANSWER | {"weight": 0})),
    ("preferred_output", outputs({"messages": [USER]}, [ANSWER], [HO | {"weight": 0}])),
    ("function_calling", calling(USER, CALLS, GIVEN, CALLS, GIVEN, ANSWER)),
    ("function_calling", calling(USER, CALLS | {"tool_calls": [CALL, CALL]}, GIVEN, ANSWER)),
    ("function_calling", calling(USER, CALLS | {"tool_calls": []}, GIVEN, ANSWER)),
    ("function_calling", calling(USER, called(name="see"), GIVEN, ANSWER)),
    ("function_calling", calling(USER, called(arguments={"at": "x"}), GIVEN, ANSWER)),
    ("function_calling", calling(USER, called(arguments="[]"), GIVEN, ANSWER)),
    ("function_calling", calling(USER, called(arguments='{"a": 1, "a": 1}'), GIVEN, ANSWER)),
    ("function_calling", calling(USER, called(arguments='{"a": "", "a": ""}'), GIVEN, ANSWER)),
    ("function_calling", calling(USER, called(arguments='{"a": "\\u0000"}'), GIVEN, ANSWER)),
    ("function_calling", calling(USER, called(arguments='{"a": "\\ud800"}'), GIVEN, ANSWER)),
    ("function_calling", calling(USER, called(arguments='{"a": ' + "9" * 500 + "}"), GIVEN, ANSWER)),
    ("function_calling", calling(USER, called(arguments='{"a": NaN}'), GIVEN, ANSWER)),
    ("function_calling", calling(USER, CALLS, GIVEN, ANSWER, tools=[LOOK, LOOK])),
    ("function_calling", calling(USER, CALLS, GIVEN, ANSWER, tools="look")),
    ("function_calling", calling(USER, CALLS, GIVEN, ANSWER).replace('"look", "par', '"look", "name": "look", "par')),
    ("function_calling", calling(USER, CALLS, GIVEN, ANSWER)[:-1] + ', "tools": []}'),
    ("function_calling", calling(USER, CALLS, GIVEN, ANSWER).replace("{}}}}]}", '{"\\ud800": {}}}}}]}')),
    ("function_calling", calling(USER, CALLS, GIVEN, ANSWER).replace('"properties": {}', '"properties": []')),
    ("function_calling", calling(USER, CALLS, GIVEN, ANSWER).replace('"properties": {}', '"maximum": ' + "9" * 500)),
    (
        "function_calling",
        calling(USER, CALLS, GIVEN, ANSWER).replace('"properties": {}', '"default": ' + "[" * 62 + "]" * 62),
    ),
    ("function_calling", calling(USER, CALLS, GIVEN, ANSWER, parallel_tool_calls="yes")),
    ("messages", calling(USER, CALLS, GIVEN, ANSWER)),
    ("messages", row(USER, ANSWER | {"tool_call_id": ""})),
    ("chosen_rejected", pair(USER, ANSWER)),
    ("chosen_rejected", pair()),
    ("chosen_rejected", pair(USER, chosen=HO)),
    ("chosen_rejected", pair(USER, chosen=USER)),
    ("chosen_rejected", pair(USER, chosen=ANSWER | {"content": " "})),
    ("chosen_rejected", pair(USER, chosen=[ANSWER])),
    ("chosen_rejected", pair(USER)[:-1] + ', "chosen": ' + json.dumps(ANSWER) + "}"),
    ("preferred_output", outputs({"messages": [USER, ANSWER]}, [ANSWER], [HO])),
    ("preferred_output", outputs({"messages": [USER]}, [ANSWER, ANSWER], [HO])),
    ("preferred_output", outputs({"messages": [USER]}, [ANSWER], [])),
    ("preferred_output", outputs([USER], [ANSWER], [HO])),
    ("text", '{"text": " \\n\u3000"}'),
    ("text", '{"text": "a", "text": "a"}'),
    ("text", '{"text": "a\\u0000"}'),
    ("text", '{"text": 5}'),
    ("text", '{"text": "a", "tag": null}'),
]


@pytest.mark.parametrize(("name", "line"), LEFT_OF)
def test_a_row_of_any_format_is_left_where_there_is_doubt(name: str, line: str) -> None:
    for full in (NOTHING, EVERYTHING):
        quick = known()[name].quick()
        assert quick is not None and list(quick([line.encode()], 1, full)) == [0]


COUNTED = [
    (row(USER | {"name": "Ann"}, ANSWER), {"name_ignored": 1}),
    (row(USER, USER, ANSWER, USER), {"same_role_twice": 1, "ends_with_user": 1}),
    (row(USER, ANSWER, id=7), {"unknown_field": 1}),
    (row(USER | {"name": "Ann"}, ANSWER, id="a", timestamp=1.5, split=None), {"unknown_field": 3, "name_ignored": 1}),
]


@pytest.mark.parametrize(("line", "counts"), COUNTED)
def test_what_is_only_counted_any_more_is_counted_quickly(line: str, counts: dict[str, int]) -> None:
    quick = QuickChat()
    assert list(quick([line.encode()], 1, NOTHING)) == [0] and not quick.counts
    assert list(quick([line.encode()], 1, EVERYTHING)) == [] and quick.counts == counts
    quick_and_careful_agree("messages", [line], EVERYTHING)


@pytest.mark.parametrize("label", ["1" * 30, "1." + "0" * 500, '"a", "id": "a"', '"\\u0000"', "[1]", "1e999"])
def test_a_label_in_any_doubt_is_left_to_the_careful_way(label: str) -> None:
    line = row(USER, ANSWER)[:-1] + f', "id": {label}}}'
    assert list(QuickChat()([line.encode()], 1, EVERYTHING)) == [0]


def test_a_report_is_the_same_with_the_quick_way_and_without_when_its_lists_are_full() -> None:
    lines = [COUNTED[number % 4][0].replace("Hi", f"Hi {number}") for number in range(3000)]
    data = Given("\n".join(lines).encode())
    with without_quick():
        careful = inspect(data)
    assert inspect(data) == careful
    assert len(careful.problems) == 1000 and careful.counts == {"unknown_field": 3000}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "text"},
        {"required": ["a", "a"]},
        {"required": "a"},
        {"properties": []},
        {"properties": {"a": {"type": "text"}}},
        {"minLength": -1},
        {"maxItems": True},
        {"anyOf": []},
        {"description": None},
        {"items": [{}]},
        {"$ref": "#/a"},
    ],
)
def test_a_schema_in_any_doubt_is_left_to_the_library(schema: dict) -> None:
    assert is_plain({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]})
    assert not is_plain(schema)


@pytest.mark.parametrize("name", QUICK)
def test_random_lines(name: str) -> None:
    assert tried(f"quick_and_careful_agree[{name}]", 100, is_random=False)


def test_random_schemas() -> None:
    assert tried("plain_schemas_are_valid", 100, is_random=False)
