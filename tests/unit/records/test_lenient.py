"""The JSON reader that goes on after a fault: places, values meant, no text that it cannot read, no time that it wastes."""

from __future__ import annotations

import json

import pytest

from luthier.records.lenient import DEEPEST, MOST_FAULTS, MOST_VALUES, parse
from tests.fuzz.dataset_files import GROWING, steps, tried

MEANT = [
    ('{"a": 1,}', {"a": 1}, [("trailing_comma", 7)]),
    ('{"a": 1,, "b": 2}', {"a": 1, "b": 2}, [("trailing_comma", 8)]),
    ("[1, 2,]", [1, 2], [("trailing_comma", 5)]),
    ('{"a": 1 "b": 2}', {"a": 1, "b": 2}, [("missing_comma", 8)]),
    ('[{"a": 1} {"a": 2}]', [{"a": 1}, {"a": 2}], [("missing_comma", 10)]),
    ('{"a" 1}', {"a": 1}, [("missing_colon", 5)]),
    ("{'a': 'it is'}", {"a": "it is"}, [("single_quotes", 1)]),
    ("{'a': \"it's\"}", {"a": "it's"}, [("single_quotes", 1)]),
    ("{'a': 'it\\'s'}", {"a": "it's"}, [("single_quotes", 1)]),
    ("{“a”: “b”}", {"a": "b"}, [("single_quotes", 1)]),
    ("{a: 1, b: 2}", {"a": 1, "b": 2}, [("key_not_quoted", 1)]),
    ('{"a": True, "b": None}', {"a": True, "b": None}, [("python_literal", 6), ("python_literal", 17)]),
    ('{"a": "say "hi" now"}', {"a": 'say "hi" now'}, [("quote_not_escaped", 11), ("quote_not_escaped", 14)]),
    ('{"a": "b\nc"}', {"a": "b\nc"}, [("line_break_in_string", 8)]),
    ('{"a": "b\r\nc"}', {"a": "b\nc"}, [("line_break_in_string", 8)]),
    ('{"a": "b\tc"}', {"a": "b\tc"}, [("control_character", 8)]),
    ('{"a": "b}', {"a": "b"}, [("unclosed_string", 6)]),
    ('{\n"a": "b,\n"c": 1}', {"a": "b", "c": 1}, [("unclosed_string", 7)]),
    ('{"a": "\\d"}', {"a": "\\d"}, [("bad_escape", 7)]),
    ('{"a": "\\ud800"}', {"a": "\ufffd"}, [("half_surrogate", 7)]),
    ('{"a": "\\u0000"}', {"a": "\0"}, [("nul", 7)]),
    ('{"a": "\udcff\udcfe"}', {"a": "\ufffd"}, [("not_utf8", 7)]),
    ("{\udcff: 1}", {"\ufffd": 1}, [("key_not_quoted", 1), ("not_utf8", 1)]),
    ("{'a': '\0'}", {"a": "\0"}, [("single_quotes", 1), ("nul", 7)]),
    ('{"a": 1, "a": 2}', {"a": 1}, [("duplicate_key", 9)]),
    ('/* x */ {"a": 1} ', {"a": 1}, [("comment", 0)]),
    ('{"a": 1, // x\n"b": 2}', {"a": 1, "b": 2}, [("comment", 9)]),
    ('\ufeff{"a": 1}', {"a": 1}, [("byte_order_mark", 0)]),
    ('{"a": [1}', {"a": [1]}, [("wrong_closer", 8)]),
]


@pytest.mark.parametrize(("text", "value", "faults"), MEANT)
def test_a_fault_has_its_place_and_the_value_is_what_was_meant(text: str, value: object, faults: list) -> None:
    parsed = parse(text)
    assert parsed.value == value
    assert [(fault.code, fault.offset) for fault in parsed.faults] == faults
    assert not parsed.is_cut


@pytest.mark.parametrize(
    "text", ['{"a": ', '{"a"', "{", '{"a": "b', '{"a": [1, ', '[{"a": 1}, ', '{"a": 1', "{'a': 'b"]
)
def test_a_text_that_ends_too_early_is_cut_at_what_is_open(text: str) -> None:
    parsed = parse(text)
    assert parsed.is_cut
    assert parsed.end == len(text)
    (fault,) = [fault for fault in parsed.faults if fault.code != "single_quotes"]
    assert fault.code == "unclosed" and text[fault.offset] == fault.found


@pytest.mark.parametrize("first", ['{"messages": [{"role": "us', '{"text": "a', '{"text": ["a', '{"own": 1, "b": {'])
def test_a_row_that_begins_on_the_next_line_ends_one_that_is_open(first: str) -> None:
    row = first.split(":")[0] + ": 1}"
    parsed = parse(f"{first}\n{row}\n")
    assert parsed.is_cut and parsed.end == len(first)
    assert [fault.code for fault in parsed.faults] == ["unclosed"]


def test_bounds_of_depth_values_and_faults() -> None:
    assert parse("[" * DEEPEST + "]" * DEEPEST).faults == []
    deep = parse("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1) + "x")
    assert [fault.code for fault in deep.faults] == ["too_deep"] and not deep.is_cut and deep.end == 2 * DEEPEST + 2
    many = parse("[" + "1," * (MOST_VALUES + 5) + '"]"]x')
    assert [fault.code for fault in many.faults] == ["too_many_values"]
    assert not many.is_cut and many.end == 1 + 2 * (MOST_VALUES + 5) + 4
    assert len(parse("[" + "@," * 5000 + "]").faults) == MOST_FAULTS


def test_keys_and_values_have_their_places() -> None:
    text = '{"a": [1, {"b": "c"}]}'
    parsed = parse(text)
    assert {path: text[at:][:3] for path, at in parsed.keys.items()} == {("a",): '"a"', ("a", 1, "b"): '"b"'}
    assert text[parsed.values[("a", 1, "b")] :] == '"c"}]}'
    assert json.loads(text) == parsed.value


@pytest.mark.parametrize("name", GROWING)
def test_twice_the_text_takes_at_most_twice_the_steps(name: str) -> None:
    short, long = steps(GROWING[name](1000)), steps(GROWING[name](2000))
    assert long <= 2.2 * short + 200


@pytest.mark.parametrize("name", ["valid_json_has_no_faults", "any_text_is_parsed"])
def test_random_texts(name: str) -> None:
    assert tried(name, 300, is_random=False)
