"""Blocks of bytes into records: the same ones whatever the blocks, each with its place, none twice and none lost."""

from __future__ import annotations

import json

import pytest

from luthier.records.problems import Problem
from luthier.records.reader import Blank, Reader, Record, is_nothing, strict
from tests.fuzz.dataset_files import tried

ROW = '{"messages": [{"role": "user", "content": "Hi"}]}'


def told(text: str, **more) -> list[tuple]:
    found = []
    for one in Reader([text.encode()], **more):
        if isinstance(one, Record):
            found.append((one.row, one.line, one.column, *(problem.code for problem in one.problems)))
        else:
            found.append(("blank", one.line) if isinstance(one, Blank) else (one.code, one.row, one.line, one.column))
    return found


FILES = [
    (f"{ROW}\n{ROW}", [(1, 1, 1), (2, 2, 1)]),
    (f"{ROW}\n\n \r\n{ROW}\n", [(1, 1, 1), ("blank", 2), ("blank", 3), (2, 4, 1)]),
    (f"\ufeff{ROW}\r\n", [("byte_order_mark", None, 1, 1), (1, 1, 1)]),
    (f"[\n {ROW},\n\n {ROW} ]\n", [("json_array", None, 1, 1), (1, 2, 2), (2, 4, 2)]),
    (f"[{ROW}]\n\n", [("json_array", None, 1, 1), (1, 1, 2), ("blank", 2)]),
    (f"[{ROW}]\n{ROW}\n", [(1, 1, 1), (2, 2, 1)]),
    (f"[\n{ROW}]\n{ROW}\n", [("json_array", None, 1, 1), (1, 2, 1), (2, 3, 1)]),
    (f"[\n{ROW}] x", [("json_array", None, 1, 1), (1, 2, 1), ("text_after_record", None, 2, len(ROW) + 3)]),
    (f"[\n{ROW}\n", [("json_array", None, 1, 1), (1, 2, 1), ("unclosed", None, 1, 1)]),
    ('[{"role": "user"}]\n[{"role": "user"}]', [(1, 1, 1), (2, 2, 1)]),
    (
        f"{ROW},\n{ROW} x\n{ROW}{ROW}",
        [
            (1, 1, 1, "comma_after_record"),
            (2, 2, 1, "text_after_record"),
            (3, 3, 1, "shares_line"),
            (4, 3, len(ROW) + 1),
        ],
    ),
    (json.dumps(json.loads(ROW), indent=1) + f"\n{ROW}", [(1, 1, 1, "several_lines"), (2, 9, 1)]),
    (f"{ROW[:20]}\n{ROW}", [(1, 1, 1, "unclosed"), (2, 2, 1)]),
    ('{"text": "a\n{"text": "b"}', [(1, 1, 1, "unclosed"), (2, 2, 1)]),
    ('{"a": [\n{"b": 1}\n{"b": 2}\n', [(1, 1, 1, "unclosed"), (2, 2, 1), (3, 3, 1)]),
    (f"# mine\n{ROW}", [("comment", None, 1, 1), (1, 2, 1)]),
    ("\r".join([ROW, ROW]), [(1, 1, 1, "shares_line"), (2, 1, len(ROW) + 2)]),
]


@pytest.mark.parametrize(("text", "expected"), FILES)
def test_records_and_their_places(text: str, expected: list) -> None:
    assert told(text) == expected


def test_the_text_of_a_record_is_its_own() -> None:
    pretty = json.dumps(json.loads(ROW), indent=1)
    found = list(Reader([f"{pretty}\n{ROW}{ROW},\n{pretty}".encode()]))
    assert [one.text for one in found if isinstance(one, Record)] == [pretty, ROW, ROW, pretty]


@pytest.mark.parametrize("rows", [3, 1000])
@pytest.mark.parametrize("between", ["", " ", ",", ", ", "\n", ",\n"])
def test_records_on_several_lines_that_begin_where_the_one_before_ends_are_read_one_by_one(
    rows: int, between: str
) -> None:
    values = [{"messages": [{"role": "user", "content": f"{number}"}]} for number in range(rows)]
    found = list(Reader([between.join(json.dumps(value, indent=2) for value in values).encode()]))
    assert [one.value for one in found if isinstance(one, Record)] == values
    codes = {problem.code for one in found if isinstance(one, Record) for problem in one.problems}
    assert codes <= {"several_lines", "shares_line", "comma_after_record"}


def test_a_record_that_begins_behind_another_and_never_ends_stops_before_the_next_row() -> None:
    pretty = json.dumps(json.loads(ROW), indent=1)
    lines = pretty.count("\n")
    assert told(f'{pretty}{{"messages": [\n1,\n{ROW}\n') == [
        (1, 1, 1, "several_lines", "shares_line"),
        (2, lines + 1, 2, "unclosed"),
        (3, lines + 3, 1),
    ]


@pytest.mark.parametrize("block", [1, 3, 1000])
def test_a_line_that_is_too_long_is_not_kept_and_the_next_is_read(block: int) -> None:
    data = f"{ROW}\n{'x' * 200}\n{ROW}\n\n{'y' * 150}".encode()
    blocks = [data[place : place + block] for place in range(0, len(data), block)]
    reader = Reader(blocks, longest=100)
    found = [one.code if isinstance(one, Problem) else one.line for one in reader]
    assert found == [1, "record_too_long", 3, 4, "record_too_long"]
    assert (reader.rows, reader.lines) == (4, 5)
    assert reader.ended_at in (len(data), len(data) + 1)


def test_a_record_that_goes_on_beyond_the_blocks_is_read_to_its_end_and_no_further() -> None:
    pretty = json.dumps(json.loads(ROW), indent=1) + "\n"
    data = (pretty * 3).encode()
    end = data.index(b"\n", len(pretty) + 20) + 1  # within the second
    reader = Reader([data[:end]], beyond=lambda: [data[end:]])
    assert [one.row for one in reader if isinstance(one, Record)] == [1, 2]
    assert reader.ended_at == 2 * len(pretty)
    after = Reader([data[2 * len(pretty) :]], is_start=False)
    assert [one.row for one in after if isinstance(one, Record)] == [1]


@pytest.mark.parametrize(
    "line",
    [
        b'{"a": 1, "a": 2}',
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b'{"a": "\\ud800"}',
        b'{"a": "\\u0000"}',
        b'{"\\u0000": 1}',
        b'{"a": "\xff"}',
        b'{"a": ' + b"1" * 401 + b"}",
        b"[" * 65 + b"]" * 65,
        b"[" * 900 + b'"\\u0041"' + b"]" * 900,
        b"[" * 100_000,
        b"{} {}",
        b"{},",
        b"",
        b"[" + b"1," * 200_000 + b"1]",
    ],
)
def test_what_is_in_any_doubt_is_not_taken_for_json(line: bytes) -> None:
    assert is_nothing(strict(line))


def test_what_is_in_no_doubt_is_taken_for_json() -> None:
    for value in ({"a": [1, 2.5, None, True, "é\n"]}, [], "x", 1, None):
        assert strict(json.dumps(value).encode()) == value


def test_random_blocks() -> None:
    assert tried("blocks_do_not_matter", 150, is_random=False)
