"""Every format keeps the promises of the contract: its sample is its own, rows come back, no row raises, faults are told."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest

from luthier.chat.messages import PreferencePair
from luthier.formats.base import DatasetFormat, Example, formats, known, measure, problems_of, recognised
from luthier.records.foreign import foreign, unread
from luthier.records.problems import Problem
from luthier.records.reader import Reader, Record
from tests.fuzz.dataset_files import PROPERTIES, tried

NAMES = formats.names()


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def form(name: str) -> type[DatasetFormat]:
    return known()[name]


def sample(form: type[DatasetFormat]) -> bytes:
    if not form.in_archive:
        return form.sample()
    with zipfile.ZipFile(io.BytesIO(form.sample())) as archive:
        return archive.read(next(one for one in archive.namelist() if one.endswith(".jsonl")))


def rows(form: type[DatasetFormat]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in sample(form).splitlines()]


def test_exactly_one_format_recognises_each_row_of_a_sample(name: str, form: type[DatasetFormat]) -> None:
    assert rows(form)
    assert all(recognised(row) == [name] and foreign(row) is None for row in rows(form))


def test_a_sample_has_no_problem_and_is_read_row_by_row(form: type[DatasetFormat]) -> None:
    found = list(form.read([sample(form)]))
    assert all(isinstance(one, Example) for one in found)
    assert [one.row for one in found] == [one.line for one in found] == list(range(1, len(rows(form)) + 1))
    for one in found:
        assert isinstance(one, Example)
        size = measure(one.value)
        assert size.turns and size.trained_turns and size.characters


def test_a_sample_is_also_read_with_escapes_and_windows_line_ends(form: type[DatasetFormat]) -> None:
    plain = [one.value for one in form.read([sample(form)]) if isinstance(one, Example)]
    written = "\r\n".join(json.dumps(row, ensure_ascii=True, separators=(",", ":")) for row in rows(form)).encode()
    assert [one.value for one in form.read([written]) if isinstance(one, Example)] == plain


def test_the_repair_leaves_a_row_without_fault_as_it_is(form: type[DatasetFormat]) -> None:
    assert all(form.repaired(row) == row for row in rows(form))


def test_the_images_of_a_row_have_their_path_and_their_source(form: type[DatasetFormat]) -> None:
    found = [form.images(row) for row in rows(form)]
    assert all(len(images) == (1 if form.kind.startswith("image") else 0) for images in found)
    for row, ((path, source),) in zip(rows(form), filter(None, found), strict=False):
        part: Any = row
        for place in path:
            part = part[place]
        assert source and source in json.dumps(part)


def test_reading_holds_one_row_at_a_time(form: type[DatasetFormat]) -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield sample(form)

    assert len(list(islice(form.read(endless()), 5))) == 5
    assert taken <= 6


HOSTILE = {
    "not JSON": b"{'a': 1, @}",
    "not UTF-8": b'{"a": "\xff"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a number": b"1",
    "an array": b"[]",
    "nothing": b"null",
    "not a number": b"NaN",
    "infinity": b'{"a": -Infinity}',
    "a key twice": b'{"a": 1, "a": 1}',
    "arrays 100,000 deep": b"[" * 100_000,
    "closed arrays 100,000 deep": b"[" * 100_000 + b"]" * 100_000,
    "objects 100,000 deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a number of a million digits": b"1" * 1_000_000,
    "a zero byte": b"\0",
    "an escaped zero as key": b'{"\\u0000": 1}',
    "half a surrogate as key": b'{"\\ud800": 1}',
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_line_is_told_and_the_next_line_is_read(form: type[DatasetFormat], case: str) -> None:
    found = list(form.read([HOSTILE[case] + b"\n" + sample(form)]))
    faults = [one for one in found if isinstance(one, Problem)]
    assert faults and all(one.line == 1 for one in faults)
    assert all(len(one.text.en.encode()) < 1500 and one.text.en.isprintable() for one in faults)
    assert [one.line for one in found if isinstance(one, Example)] == list(range(2, len(rows(form)) + 2))


def test_both_shapes_of_a_preference_mean_the_same() -> None:
    def theirs(row: dict[str, Any]) -> dict[str, Any]:
        prompt = {name: row[name] for name in ("messages", "tools") if name in row}
        return {"input": prompt, "preferred_output": [row["chosen"]], "non_preferred_output": [row["rejected"]]}

    def ours(row: dict[str, Any]) -> dict[str, Any]:
        prompt = {name: value for name, value in row["input"].items() if name != "parallel_tool_calls"}
        return {**prompt, "chosen": row["preferred_output"][0], "rejected": row["non_preferred_output"][0]}

    one, other = known()["chosen_rejected"], known()["preferred_output"]
    for mine, converted, here, there in [
        *((row, theirs(row), one, other) for row in rows(one)),
        *((row, ours(row), other, one) for row in rows(other)),
    ]:
        assert isinstance(here.value(mine), PreferencePair)
        assert here.value(mine) == there.value(converted)
        assert [
            problems_of(record, there)
            for record in Reader([json.dumps(converted).encode()])
            if isinstance(record, Record)
        ] == [[]]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [], "text": "a"},
        {"messages": [], "preferred_output": []},
        {"chosen": {}, "input": {}},
        {"text": "", "rejected": {}},
    ],
)
def test_a_row_with_the_fields_of_two_formats_is_recognised_by_both(row: dict[str, Any]) -> None:
    assert len(recognised(row)) == 2


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "a", "output": "b"},
        {"instruction": "a", "input": "b", "output": "c", "history": [["d", "e"]]},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"prompt": "a", "completion": "b"},
        {"question": "a", "answer": "b", "system": "c"},
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": "{}"}},
                {"role": "function", "name": "look", "content": "b"},
                {"role": "assistant", "content": "c", "function_call": None},
            ],
            "functions": [{"name": "look"}],
        },
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {
            "prompt": [{"role": "user", "content": "a"}],
            "chosen": [{"role": "assistant", "content": "b"}],
            "rejected": [{"role": "assistant", "content": "c"}],
        },
    ],
)
def test_a_row_of_another_tool_becomes_one_of_ours_without_fault(row: dict[str, Any]) -> None:
    assert recognised(row) == []
    found = foreign(row)
    assert found is not None
    (name,) = recognised(found[1])
    record = next(iter(Reader([json.dumps(found[1]).encode()])))
    assert isinstance(record, Record) and problems_of(record, known()[name]) == []


def test_calls_without_an_id_are_given_one_and_the_function_that_speaks_next_answers() -> None:
    def call(name: str) -> dict[str, Any]:
        return {"role": "assistant", "function_call": {"name": name, "arguments": "{}"}}

    def answer(name: str) -> dict[str, Any]:
        return {"role": "function", "name": name, "content": ""}

    row = {"messages": [call("a"), answer("a"), call("b"), answer("c"), 5], "functions": [{"name": "a"}], "tag": "x"}
    found = foreign(row)
    assert found is not None
    messages = found[1]["messages"]
    assert [one["tool_calls"][0]["id"] for one in messages[0::2][:2]] == ["call_0001", "call_0002"]
    assert messages[1] == {"role": "tool", "content": "", "tool_call_id": "call_0001"}
    assert messages[3] == {"role": "tool", "name": "c", "content": ""}  # of another function: only a person knows
    assert found[1]["tools"] == [{"type": "function", "function": {"name": "a"}}] and found[1]["tag"] == "x"
    assert unread(row) == [] and unread(row | {"system": "s", "function_call": "auto"}) == ["system", "function_call"]


def test_null_for_what_a_chat_row_has_none_of_is_no_fault() -> None:
    row = rows(known()["messages"])[0] | {"tools": None, "parallel_tool_calls": None}
    assert recognised(row) == ["messages"] and known()["messages"].repaired(row) == row
    record = next(iter(Reader([json.dumps(row).encode()])))
    assert isinstance(record, Record) and problems_of(record, known()["messages"]) == []


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "function"}, {"function_call": {}}, {"function_call": 5}, None], "functions": 7},
        {"conversations": [{"from": [], "value": {}}, 5, {}]},
        {"conversations": []},
        {"instruction": {}, "output": [], "history": [[1, 2], 3]},
        {"prompt": [], "chosen": [], "rejected": []},
        {},
    ],
)
def test_odd_rows_of_other_tools_do_not_raise(row: dict[str, Any]) -> None:
    foreign(row)


@pytest.mark.parametrize(
    "property_",
    [one for one in PROPERTIES if one.startswith("rows_are_read_back")]
    + ["any_row_is_checked", "a_repair_changes_only_what_was_found"],
)
def test_random_rows(property_: str) -> None:
    assert tried(property_, 60, is_random=False)
