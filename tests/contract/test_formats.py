"""Every format keeps the promises of the contract: each line accounted for, faults told, one line held at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.formats.base import BadLine, DatasetFormat, Example, formats

GOOD = {"messages": b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}'}
"""A row of each format; a new format adds one."""


@pytest.fixture(scope="module", params=formats.names())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def format_(name: str) -> DatasetFormat:
    return formats.load(name)()


def test_it_recognises_its_own_rows(name: str, format_: DatasetFormat) -> None:
    assert format_.recognises(GOOD[name] + b"\n")
    assert not format_.recognises(b"col,umn\n1,2\n")


def test_lines_are_counted_from_one_and_blank_ones_give_nothing(name: str, format_: DatasetFormat) -> None:
    lines = [GOOD[name], b"", b"  \r", GOOD[name], b"{", GOOD[name] + b"\r"]
    assert [(found.line, type(found)) for found in format_.read(lines)] == [
        (1, Example),
        (4, Example),
        (5, BadLine),
        (6, Example),
    ]


HOSTILE = {
    "not JSON": b"{'a': 1}",
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
    "a number of 100,000 digits": b"1" * 100_000,
    "a line of nine megabytes": b'"' + b"x" * 9_000_000 + b'"',
    "a zero byte": b"\0",
    "an escaped zero as key": b'{"\\u0000": 1}',
    "half a surrogate as key": b'{"\\ud800": 1}',
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_line_is_a_fault_that_can_be_kept_and_the_next_line_is_read(name, format_, case: str) -> None:
    *faults, good = format_.read([HOSTILE[case], GOOD[name]])
    assert faults
    assert all(isinstance(fault, BadLine) and fault.line == 1 and fault.message for fault in faults)
    text = "".join(fault.message for fault in faults)
    assert "\0" not in text
    assert len(text.encode()) < 1000
    assert isinstance(good, Example)


def test_a_byte_order_mark_at_the_beginning_is_passed_over(name: str, format_: DatasetFormat) -> None:
    assert [type(found) for found in format_.read([b"\xef\xbb\xbf" + GOOD[name]])] == [Example]
    assert list(format_.read([b"\xef\xbb\xbf", b""])) == []


def test_reading_holds_one_line_at_a_time(name: str, format_: DatasetFormat) -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield GOOD[name]

    assert len(list(islice(format_.read(endless()), 5))) == 5
    assert taken == 5


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9) | st.just("messages"), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line), max_size=5))
def test_no_bytes_raise_and_every_line_that_is_not_blank_is_accounted_for(lines: list[bytes]) -> None:
    for name in formats.names():
        told = {found.line for found in formats.load(name)().read(lines)}
        blank = {
            n for n, line in enumerate(lines, start=1) if not line.removeprefix(b"\xef\xbb\xbf" * (n == 1)).strip()
        }
        assert told | blank == set(range(1, len(lines) + 1))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(json_values)
def test_no_json_raises_and_it_gives_an_example_or_faults_but_never_both(value: object) -> None:
    for name in formats.names():
        found = list(formats.load(name)().read([json.dumps(value).encode()]))
        assert found
        assert len({type(one) for one in found}) == 1
