"""Random and damaged dataset files against the reader, the formats and the check; a short form of it runs in the tests.

    python -m tests.fuzz.dataset_files                     # 5,000 inputs a property
    python -m tests.fuzz.dataset_files --inputs 100000     # as long as you like
    python -m tests.fuzz.dataset_files --only quick_and_careful_agree[messages]
    python -m tests.fuzz.dataset_files --huge              # also a line of 1 GB, and CPU time against length

Prints each property, how many inputs it was tried with, and at the end their sum. Stops at the first that fails, with the input.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any
from unittest.mock import patch

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker

from luthier.control.datasets import inspection
from luthier.control.datasets.report import DatasetReport
from luthier.formats._quick import QuickRows
from luthier.formats._quick_chat import QuickChat
from luthier.formats._schemas import is_plain
from luthier.formats.base import DatasetFormat, Example, Findings, Quick, known, measure, problems_of, recognised
from luthier.records.foreign import foreign
from luthier.records.lenient import DEEPEST, Path, parse
from luthier.records.problems import MEANINGS, Level, Problem
from luthier.records.reader import Blank, Reader, Record
from luthier.records.source import Given, Source

# Texts and values

signs = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
texts = st.text(signs, max_size=12) | st.sampled_from(
    [
        '"',
        "\\",
        '\\"',
        "\\\\",
        "a\nb",
        "\u2028",
        "/",
        "\t",
        "\r\n",
        "\x7f",
        "é",
        "😀",
        "你好",
        "\ufeff",
        "\\u0000",
        "'",
        "{}",
        '{"role":',
    ]
)
said = st.tuples(texts, st.sampled_from(["a", "好", "!", '"', "\\"])).map("".join)
plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
field_names = st.sampled_from(
    [
        "messages",
        "role",
        "content",
        "weight",
        "name",
        "tag",
        "tools",
        "tool_calls",
        "tool_call_id",
        "id",
        "type",
        "function",
        "arguments",
        "parameters",
        "properties",
        "required",
        "input",
        "preferred_output",
        "non_preferred_output",
        "chosen",
        "rejected",
        "text",
        "image",
        "image_url",
        "url",
        "prompt",
        "completion",
        "instruction",
        "output",
        "conversations",
        "from",
        "value",
        "parallel_tool_calls",
        "system",
        "history",
    ]
)
odd_values = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from(
        [0, 1, 2, 1.0, -1, 10**30, "user", "assistant", "system", "tool", "human", "function", "", " ", "{}"]
    )
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(field_names | st.text(max_size=3), inner, max_size=5),
    max_leaves=25,
)

# Rows without fault, one strategy a format


def _turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def _pairs(answer: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[list[dict[str, Any]]]:
    user = said.map(lambda text: _turn("user", text))
    return st.lists(st.tuples(user, answer), min_size=1, max_size=3).map(
        lambda pairs: [turn for pair in pairs for turn in pair]
    )


answers = said.map(lambda text: _turn("assistant", text))
systems = st.lists(texts.map(lambda text: _turn("system", text)), max_size=1)
questions = st.tuples(systems, st.lists(_pairs(answers), max_size=1), said).map(
    lambda parts: [*parts[0], *(turn for pairs in parts[1] for turn in pairs), _turn("user", parts[2])]
)
weighted = st.tuples(answers, st.sampled_from([{}, {"weight": 1}, {"weight": 0}])).map(
    lambda parts: {**parts[0], **parts[1]}
)
tags = st.sampled_from([{}, {"tag": "a"}, {"tag": "标签"}])


def _with_tag(strategy: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(strategy, tags).map(lambda parts: {**parts[0], **parts[1]})


chats = _with_tag(
    st.tuples(systems, _pairs(weighted), st.booleans()).map(
        lambda parts: {"messages": [*parts[0], *parts[1], *([_turn("assistant", "the last")] if parts[2] else [])]}
    )
).filter(lambda row: any(turn["role"] == "assistant" and turn.get("weight", 1) for turn in row["messages"]))
TOOL = {
    "type": "function",
    "function": {"name": "look", "description": "Look.", "parameters": {"type": "object", "properties": {}}},
}


def _tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


@st.composite
def callings(draw: Any) -> dict[str, Any]:
    """Conversations with calls, one after the other or several at once, and their answers in any order."""
    tools = draw(
        st.sampled_from([[TOOL, _tool("book")], [_tool("book"), TOOL], [TOOL, _tool("book", parameters=None)]])
    )
    messages = draw(systems)
    for turn in range(draw(st.integers(1, 3))):
        messages.append(_turn("user", draw(said)))
        made = [f"call_{turn}_{number}" for number in range(draw(st.integers(1 if turn == 0 else 0, 3)))]
        calls = [
            {
                "id": one,
                **draw(st.sampled_from([{}, {"type": "function"}])),
                "function": {"name": draw(st.sampled_from(["look", "book"])), "arguments": json.dumps(draw(arguments))},
            }
            for one in made
        ]
        if calls:
            content = draw(st.sampled_from([{}, {"content": None}, {"content": ""}, {"content": "Let me see."}]))
            messages.append({"role": "assistant", **content, "tool_calls": calls})
        messages += [_turn("tool", draw(texts), tool_call_id=one) for one in draw(st.permutations(made))]
        messages.append(_turn("assistant", draw(said), **draw(st.sampled_from([{}, {"weight": 1}]))))
    if draw(st.booleans()):
        messages.append(_turn("user", "Thanks"))
    return {"messages": messages, "tools": tools, **draw(st.sampled_from([{}, {"parallel_tool_calls": True}]))}


arguments = st.dictionaries(texts, texts | plain_values, max_size=3)


def _picture(question: str, answer: str, named: bool) -> dict[str, Any]:
    image = {"image": "a.png"} if named else {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,/9j/"}}
    return {"messages": [_turn("user", [{"text": question}, image]), _turn("assistant", answer)]}


rows: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "messages": chats,
    "function_calling": callings(),
    "preferred_output": st.builds(
        lambda prompt, one: {
            "input": {"messages": prompt, "tools": []},
            "preferred_output": [_turn("assistant", one)],
            "non_preferred_output": [_turn("assistant", one + "!")],
        },
        questions,
        said,
    ),
    "chosen_rejected": st.builds(
        lambda prompt, one: {
            "messages": prompt,
            "chosen": _turn("assistant", one),
            "rejected": _turn("assistant", one + "!"),
        },
        questions,
        said,
    ),
    "image_messages": st.builds(lambda question, answer: _picture(question, answer, False), said, said),
    "image_archive": st.builds(lambda question, answer: _picture(question, answer, True), said, said),
    "image_generation": st.builds(
        lambda question: {
            "messages": [
                _turn("user", question),
                _turn("assistant", [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]),
            ]
        },
        said,
    ),
    "text": _with_tag(said.map(lambda text: {"text": text})),
}
any_row = st.one_of(*rows.values())


# The same rows with what changes nothing of them

labels = st.sampled_from(
    ["name", "id", "source", "split", "_id", "timestamp", "tools", "parallel_tool_calls", "tag", "weight"]
)
label_values = st.sampled_from(
    [None, "a", "", 0, 7, -1, 2**70, 1.5, 1e300, 1717171717.125, True, [], {}, [1], '"', {"a": 1}]
).map(deepcopy)


@st.composite
def marked(draw: Any, strategy: st.SearchStrategy[Any]) -> Any:
    """A row with labels, names of its messages, and words for what there is none of."""
    row = json.loads(json.dumps(draw(strategy)))
    for name in draw(st.lists(labels, max_size=2)):
        row.setdefault(name, draw(label_values))
    for turn in _turns(row):
        if draw(st.integers(0, 3)) == 0:
            turn[draw(st.sampled_from(["name", "tool_calls", "tool_call_id", "weight"]))] = draw(
                st.sampled_from([None, "Ann", 0, 1])
            )
    return row


def _turns(row: dict[str, Any]) -> list[dict[str, Any]]:
    """All messages of a row, the answers of a preference too."""
    answers = [row[name] for name in ("chosen", "rejected") if name in row]
    outputs = [answer for name in ("preferred_output", "non_preferred_output") for answer in row.get(name, ())]
    return [*row.get("messages", row.get("input", {}).get("messages", [])), *answers, *outputs]


@st.composite
def overfull(draw: Any, strategy: st.SearchStrategy[Any]) -> Any:
    """A row, right or wrong, with fields that nobody knows: some say only which row it is, others may matter; and with words
    and arguments as other tools write them.
    """
    row = json.loads(json.dumps(draw(strategy)))
    for holder in list(_holders(row)):
        if isinstance(holder, dict) and draw(st.integers(0, 2)) == 0:
            name = draw(st.sampled_from(["id", "source", "summary", "system", "inpt", "role", "arguments", "type"]))
            holder[name] = draw(st.sampled_from([None, "", "IMPORTANT", 1, {"id": 1}, [], "Human", "function", "gpt"]))
    return row


@st.composite
def cut_short(draw: Any, strategy: st.SearchStrategy[Any]) -> Any:
    """A row whose conversation ends earlier, also between the answers to several calls."""
    row = json.loads(json.dumps(draw(strategy)))
    messages = row.get("messages", row.get("input", {}).get("messages", []))
    del messages[draw(st.integers(1, max(1, len(messages)))) :]
    return row


called_pairs = callings().map(
    lambda row: {
        "messages": row["messages"],
        "tools": row["tools"],
        "chosen": _turn("assistant", "a"),
        "rejected": _turn("assistant", "b"),
    }
)
called_outputs = called_pairs.map(
    lambda row: {
        "input": {"messages": row["messages"], "tools": row["tools"]},
        "preferred_output": [row["chosen"]],
        "non_preferred_output": [row["rejected"]],
    }
)
calling_rows = {"function_calling": callings(), "chosen_rejected": called_pairs, "preferred_output": called_outputs}


simple_schemas = st.sampled_from([{"type": "string"}, {"type": "integer", "minimum": 0}, {"enum": ["a", 1]}, {}])
schemas = st.recursive(
    simple_schemas,
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["object", "array", ["string", "null"], "text"]),
            "properties": st.dictionaries(texts, inner, max_size=3),
            "required": st.lists(texts, max_size=3),
            "items": inner,
            "anyOf": st.lists(inner, max_size=2),
            "additionalProperties": inner | st.booleans(),
            "description": texts,
            "maxItems": st.integers(),
            "default": plain_values,
            "$ref": texts,
        },
    ),
    max_leaves=6,
)
QUICK = tuple(name for name, form in known().items() if form.quick() is not None)


# How they are written


def _shuffled(value: Any, draw: Any) -> Any:
    if isinstance(value, dict):
        names = list(value)
        draw.shuffle(names)
        return {name: _shuffled(value[name], draw) for name in names}
    return [_shuffled(one, draw) for one in value] if isinstance(value, list) else value


def _escaped(text: str, draw: Any) -> str:
    """JSON of the same value, in which some signs of its texts, keys too, are written as escapes."""
    written, within, place = [], False, 0
    while place < len(text):
        sign = text[place]
        if within and sign == "\\":
            size = 6 if text[place + 1] == "u" else 2
            written.append(text[place : place + size])
            place += size
            continue
        if sign == '"':
            within = not within
        elif within and ord(sign) < 0x10000 and draw.random() < 0.2:
            sign = f"\\u{ord(sign):04{'x' if draw.random() < 0.5 else 'X'}}"
        elif within and sign == "/" and draw.random() < 0.5:
            sign = "\\/"
        elif not within and sign in ",:{[" and draw.random() < 0.1:
            sign += draw.choice([" ", "\t", "  ", " \t "])
        written.append(sign)
        place += 1
    return "".join(written)


styles = st.fixed_dictionaries(
    {
        "ensure_ascii": st.booleans(),
        "separators": st.sampled_from([None, (",", ":"), (" , ", " : "), (",\t", ":  ")]),
    }
)


@st.composite
def written(draw: Any, strategy: st.SearchStrategy[Any] = any_row) -> tuple[Any, str]:
    """A value and a line of JSON for it."""
    random = draw(st.randoms(use_true_random=False))
    value = _shuffled(draw(strategy), random)
    text = json.dumps(value, **draw(styles))
    return value, _escaped(text, random) if draw(st.booleans()) else text


# How they are damaged

NASTY = [
    '"',
    "\\",
    "'",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\n",
    "\r\n",
    "\r",
    " ",
    "\t",
    "\0",
    "\x01",
    "\ufeff",
    "“",
    "”",
    "‘",
    "//",
    "#",
    "/*",
    "*/",
    "\\u",
    "\\ud800",
    "\\udc00",
    "\\u0000",
    "\\x41",
    "\\\\",
    '\\"',
    '\\\\"',
    "null",
    "true",
    "True",
    "None",
    "NaN",
    "Infinity",
    "-",
    "0",
    "1.0",
    "1e999",
    "9" * 500,
    "é",
    "\udcff",
    "\udcc4\udce3",
    "\u2028",
    '{"messages": [',
    '{"messages":[]}',
    '{"text": "a"}',
    '"role":"user",',
    ' "role" : "user" ,',
    '"\\u0072ole":"user",',
    '"content":"a",',
    '"weight":0,',
    '"weight":1,',
    '"tag":"a",',
    '"messages":[],',
    '{"role":"user","content":"a"},',
    '{"role":"system","content":"a"},',
    "[" * 70,
    "{" * 70,
    '{"a":' * 70,
]


@st.composite
def damaged(draw: Any, strategy: st.SearchStrategy[str]) -> str:
    """A text with some signs replaced, put in, taken out or repeated."""
    text = draw(strategy)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 8)))
        how = draw(st.integers(0, 3))
        if how == 0:
            text = text[:start] + draw(st.sampled_from(NASTY)) + text[start:]
        elif how == 1:
            text = text[:start] + draw(st.sampled_from(NASTY)) + text[end:]
        elif how == 2:
            text = text[:start] + text[end:]
        else:
            text = text[:end] + text[start:]
    return text


@st.composite
def bent(draw: Any, strategy: st.SearchStrategy[Any]) -> Any:
    """A value of which something is another, is gone, stands twice or has changed its place, or with a field more."""
    value = json.loads(json.dumps(draw(strategy)))
    for _ in range(draw(st.integers(1, 3))):
        holders = list(_holders(value))
        holder = holders[draw(st.integers(0, len(holders) - 1))]
        places = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        how = draw(st.integers(0, 5))
        if isinstance(holder, dict) and (how == 0 or not places):
            holder[draw(labels)] = draw(label_values | odd_values)
        elif not places:
            holder.append(draw(odd_values))
        elif (place := draw(st.sampled_from(places))) is not None and how < 3:
            holder[place] = draw(odd_values)
        elif how == 3:
            del holder[place]
        elif isinstance(holder, list):
            holder.insert(0 if how == 4 else place, holder[place])
    return value


def _holders(value: Any) -> Iterator[Any]:
    """The value and all within it that can hold others."""
    if isinstance(value, dict | list):
        yield value
        for inner in list(value.values() if isinstance(value, dict) else value):
            yield from _holders(inner)


lines = written().map(lambda pair: pair[1])


def lines_like(name: str) -> st.SearchStrategy[str]:
    """Lines of rows of a format, right and wrong in what they say, whole and damaged, and now and then something else."""
    right = st.one_of(rows[name], rows[name], marked(rows[name]), chats if name == "function_calling" else rows[name])
    if name in calling_rows:
        right = st.one_of(right, cut_short(calling_rows[name]))
    wrong = bent(right)
    whole = written(st.one_of(right, right, wrong)).map(lambda pair: pair[1])
    return st.one_of(whole, whole, whole, damaged(whole), broken_lines)


odd_lines = odd_values.map(json.dumps)
broken_lines = damaged(lines | odd_lines)
pretty = st.tuples(any_row, st.sampled_from([0, 1, 2, "\t"])).map(
    lambda pair: json.dumps(pair[0], indent=pair[1], ensure_ascii=False)
)
any_lines = st.one_of(
    lines, lines, pretty, damaged(pretty), broken_lines, odd_lines, st.sampled_from(["", " ", *NASTY])
)


@st.composite
def files(draw: Any) -> bytes:
    """A file: lines right and wrong, pretty-printed records, arrays, byte order marks."""
    parts = draw(st.lists(any_lines, max_size=8))
    feed = draw(st.sampled_from(["\n", "\n", "\r\n", ",\n", ""]))
    text = feed.join(parts) + draw(st.sampled_from(["", "\n"]))
    if draw(st.integers(0, 3)) == 0:
        text = f"[{text}]" if draw(st.booleans()) else "[\n" + ",\n".join(parts) + "\n]\n"
    if draw(st.integers(0, 5)) == 0:
        text = draw(damaged(st.just(text)))
    start = draw(st.sampled_from([b"", b"", b"", b"\xef\xbb\xbf"]))
    return start + text.encode("utf-8", "surrogateescape")


# Properties: each takes one input and asserts


def rows_are_read_back(name: str, pair: tuple[Any, str], feed: str) -> None:
    """A row of a format, however it is written, has no problem, and is of that format alone."""
    value, text = pair
    form = known()[name]
    assert recognised(value) == [name]
    records = list(Reader([(text + feed).encode()]))
    assert len(records) == 1
    record = records[0]
    assert isinstance(record, Record)
    assert record.value == value
    assert problems_of(record, form) == []
    example = next(iter(form.read([(text + feed).encode()])))
    assert isinstance(example, Example)
    assert example.value == form.value(value)
    assert measure(example.value).characters >= 0
    assert form.repaired(value) == value


def quick_and_careful_agree(name: str, batch: list[str], full: frozenset[Level]) -> None:
    """What the quick way of a format takes, the careful way says the same of; a batch is judged as its lines are."""
    data = [line.encode("utf-8", "surrogateescape").replace(b"\n", b" ") for line in batch]
    together = known()[name].quick()
    assert together is not None
    left = set(together(data, 1, full))
    taken = [place for place in range(len(data)) if place not in left]
    for place, line in enumerate(data):
        alone = known()[name].quick()
        assert alone is not None
        is_taken = not alone([line], 1, full)
        assert is_taken == (place not in left)
        assert _tally(alone) == (_carefully(name, [line], full) if is_taken else _tally(known()[name].quick()))
    assert _tally(together) == _carefully(name, [data[place] for place in taken], full)
    assert list(together.lines) == [place + 1 for place in taken]


def _tally(quick: Quick | None) -> tuple[Any, ...]:
    assert quick is not None
    levels: dict[str, Counter[str]] = {"error": Counter(), "warning": Counter()}
    for code, number in quick.counts.items():
        levels[MEANINGS[code].level][code] = number
    return (
        quick.turns,
        quick.trained_turns,
        quick.characters,
        quick.tags,
        *levels.values(),
        list(quick.hashes),
        len(quick.lines),
        {},
    )


def _carefully(name: str, data: list[bytes], full: frozenset[Level]) -> tuple[Any, ...]:
    """The same of lines that are looked at by themselves. What is of a level that is not full may not be there at all."""
    whole = b"\n" + b"\n".join(data)
    with without_quick():
        piece = inspection.read_piece(Given(whole), name, 1, len(whole), full)
    assert not piece.counts or "error" in full
    assert not piece.warning_counts or "warning" in full
    counts = (piece.tags, piece.counts, piece.warning_counts, list(piece.hashes), piece.rows, piece.others)
    return piece.turns, piece.trained_turns, piece.characters, *counts


def plain_schemas_are_valid(schema: Any) -> None:
    """A schema that is told to be valid quickly is valid for the library too."""
    if isinstance(schema, dict) and is_plain(schema):
        Draft202012Validator.check_schema(schema, format_checker=FormatChecker(formats=()))


def valid_json_has_no_faults(pair: tuple[Any, str]) -> None:
    """The lenient reader says of valid JSON what the library says."""
    value, text = pair
    parsed = parse(text)
    if _depth(value) > DEEPEST:
        return
    assert parsed.faults == []
    assert not parsed.is_cut
    assert parsed.end == len(text)
    assert _same(parsed.value, json.loads(text))


def any_text_is_parsed(text: str) -> None:
    """Nothing raises, places lie within the text, and where there is no fault the library agrees."""
    parsed = parse(text)
    assert 0 <= parsed.end <= len(text)
    assert all(0 <= fault.offset <= len(text) and fault.code in MEANINGS for fault in parsed.faults)
    assert all(0 <= place <= len(text) for place in (*parsed.keys.values(), *parsed.values.values()))
    assert not parsed.is_cut or parsed.faults
    json.dumps(parsed.value, ensure_ascii=False).encode()
    if not parsed.faults and text.strip(" \t\r\n"):
        assert _same(parsed.value, json.JSONDecoder().raw_decode(text.lstrip(" \t\r\n"))[0])


def blocks_do_not_matter(data: bytes, sizes: list[int]) -> None:
    """The same records, blank lines and problems, whatever blocks the bytes come in."""
    whole = list(map(_plain, Reader([data])))
    for size in sizes:
        blocks = [data[place : place + size] for place in range(0, len(data), size)]
        reader = Reader(blocks)
        assert list(map(_plain, reader)) == whole, size
        assert reader.rows == sum(1 for one in whole if one[0] == "record" or (one[0] == "problem" and one[1].row))
        assert reader.ended_at >= len(data)


def pieces_do_not_matter(data: bytes, pieces: list[int], processes: int = 1) -> None:
    """The same report for one piece and for many, and with the quick way or without."""
    whole = told(inspection.inspect(Given(data)))
    for size in pieces:
        with piece_of(size):
            assert told(inspection.inspect(Given(data), processes=processes)) == whole, size
    with without_quick():
        assert told(inspection.inspect(Given(data))) == whole


def told(report: DatasetReport) -> dict[str, Any]:
    """A report without the places of the pieces that it was made from."""
    return report.model_dump(exclude={"starts"})


def any_bytes_are_inspected(data: bytes) -> None:
    """Nothing raises; every problem has its words in both languages and a place within the file; rows read are accounted for."""
    report = inspection.inspect(Given(data))
    assert report.fit or report.counts
    lines_ = data.count(b"\n") + 1
    for problem in (*report.problems, *report.warnings):
        said_ = problem.text
        assert said_.en and said_.zh and "{" + "found" not in said_.en
        assert len(said_.en) < 2000
        assert problem.line is None or 1 <= problem.line <= lines_
        assert problem.row is None or 1 <= problem.row <= max(report.rows, 1)
    report.model_dump_json().encode()
    assert sum(report.counts.values()) >= len(report.problems)


def any_row_is_checked(row: Any) -> None:
    """No JSON raises in any format; a row is right or has problems, and what was repaired can be checked again."""
    text = json.dumps(row)
    found = list(Reader([text.encode()]))
    for record in found:
        if not isinstance(record, Record):
            continue
        if isinstance(record.value, dict):
            recognised(record.value)
            foreign(record.value)
        for form in known().values():
            problems = problems_of(record, form)
            if not problems:
                measure(form.value(record.value))
            elif isinstance(record.value, dict):
                _check_repair(record, form, problems)


def a_repair_changes_only_what_was_found(row: Any) -> None:
    """Nothing of a row is gone or says something else after its repair but what the check has told as repairable."""
    for form in known().values():
        findings = _Paths()
        form.check(row, findings)
        told_ = {path for code, path in findings.found if MEANINGS[code].repairable}
        changed = set(_changed(row, form.repaired(row), ()))
        assert changed <= told_, (form.name(), changed - told_)


class _Paths(Findings):
    """Findings that keep every code with its path."""

    def __init__(self) -> None:
        super().__init__(Record(1, 1, "", None), unplaced=frozenset(("error", "warning")))
        self.found: list[tuple[str, Path]] = []

    def add(self, code: str, path: Path, *, found: str = "", expected: str = "", of_key: bool = False) -> None:
        self.found.append((code, path))
        super().add(code, path, found=found, expected=expected, of_key=of_key)


def _changed(before: Any, after: Any, path: Path) -> Iterator[Path]:
    """Where two values differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in {**before, **after}:
            if name in before and name in after:
                yield from _changed(before[name], after[name], (*path, name))
            else:
                yield (*path, name)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for place, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from _changed(one, other, (*path, place))
    elif not _same(before, after):
        yield path


def _check_repair(record: Record, form: type[DatasetFormat], problems: list[Problem]) -> None:
    repaired = form.repaired(record.value)
    after = problems_of(next(one for one in Reader([json.dumps(repaired).encode()]) if isinstance(one, Record)), form)
    if all(problem.meaning.repairable for problem in problems):
        assert not [problem for problem in after if problem.code in {one.code for one in problems}], (repaired, after)


PROPERTIES: dict[str, tuple[Callable[..., None], dict[str, st.SearchStrategy[Any]]]] = {
    **{
        f"rows_are_read_back[{name}]": (
            rows_are_read_back,
            {"name": st.just(name), "pair": written(strategy), "feed": st.sampled_from(["", "\n", "\r\n", " \n"])},
        )
        for name, strategy in rows.items()
    },
    **{
        f"quick_and_careful_agree[{name}]": (
            quick_and_careful_agree,
            {
                "name": st.just(name),
                "batch": st.lists(lines_like(name), min_size=1, max_size=4),
                "full": st.sampled_from([frozenset(), frozenset({"warning"}), frozenset({"error", "warning"})]),
            },
        )
        for name in QUICK
    },
    "plain_schemas_are_valid": (plain_schemas_are_valid, {"schema": schemas | bent(schemas)}),
    "valid_json_has_no_faults": (valid_json_has_no_faults, {"pair": written(plain_values)}),
    "any_text_is_parsed": (any_text_is_parsed, {"text": any_lines | damaged(any_lines) | st.text()}),
    "blocks_do_not_matter": (blocks_do_not_matter, {"data": files() | st.binary(), "sizes": st.just([1, 2, 7, 64])}),
    "pieces_do_not_matter": (pieces_do_not_matter, {"data": files(), "pieces": st.just([1, 40, 300])}),
    "any_bytes_are_inspected": (any_bytes_are_inspected, {"data": files() | st.binary()}),
    "a_repair_changes_only_what_was_found": (
        a_repair_changes_only_what_was_found,
        {"row": overfull(st.one_of(any_row, bent(any_row), *calling_rows.values(), bent(callings())))},
    ),
    "any_row_is_checked": (any_row_is_checked, {"row": odd_values | any_row}),
}


def tried(name: str, inputs: int, *, is_random: bool) -> int:
    """Try a property with that many inputs; how many there were."""
    function, strategies = PROPERTIES[name]
    count = 0

    def counted(**arguments: Any) -> None:
        nonlocal count
        count += 1
        function(**arguments)

    settings(
        max_examples=inputs,
        derandomize=not is_random,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )(given(**strategies)(counted))()
    return count


# Helpers of the properties


def _depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(_same(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other


def _plain(found: Record | Blank | Problem) -> tuple[Any, ...]:
    if isinstance(found, Record):
        return ("record", found.row, found.line, found.column, found.text, repr(found.value), found.problems)
    return ("blank", found.line) if isinstance(found, Blank) else ("problem", found)


@contextmanager
def piece_of(size: int) -> Iterator[None]:
    """Let the check read pieces of so many bytes."""
    before, inspection.PIECE = inspection.PIECE, size
    try:
        yield
    finally:
        inspection.PIECE = before


@contextmanager
def without_quick() -> Iterator[None]:
    """Let the check look at every line carefully."""

    def none(self: Any, lines: list[bytes], first_line: int, full: Any) -> range:
        return range(len(lines))

    with patch.object(QuickRows, "__call__", none), patch.object(QuickChat, "__call__", none):
        yield


# What grows with a text, and must not grow faster than it

GROWING: dict[str, Callable[[int], str]] = {
    "brackets": lambda n: "[" * n,
    "braces": lambda n: '{"a":' * n,
    "commas": lambda n: "{" + "," * n,
    "quotes": lambda n: '{"a": "' + '"' * n,
    "quotes and blanks": lambda n: '{"a": "' + '" ' * n,
    "quotes and commas": lambda n: '{"a": "' + '", w' * n,
    "one word behind many quotes": lambda n: '{"a": "' + '",' * n + "w" * n,
    "line feeds in a text": lambda n: '{"a": "' + "b\n" * n,
    "line feeds and closers in a text": lambda n: '{"a": "' + "b}\n" * n,
    "commas and line feeds in a text": lambda n: '{"a": "' + "b,\n" * n,
    "backslashes": lambda n: '{"a": "' + "\\" * n,
    "escapes": lambda n: '{"a": "' + "\\ud800" * n,
    "controls": lambda n: '{"a": "' + "\x01" * n,
    "bytes": lambda n: '{"a": "' + "\udcff." * n,
    "single quotes": lambda n: "{'a': '" + "' " * n,
    "curly quotes": lambda n: "{“a”: “" + "“" * n,
    "blanks": lambda n: "{" + " " * n,
    "blank lines": lambda n: "{" + "\n{ " * n,
    "comments": lambda n: "{" + "/*" * n,
    "line comments": lambda n: "{" + "#\n" * n,
    "keys": lambda n: "{" + "a " * n,
    "words": lambda n: "[" + "a " * n,
    "colons": lambda n: "{" + ":" * n,
    "digits": lambda n: "[" + "1" * n,
    "numbers": lambda n: "[" + "1," * n,
    "objects": lambda n: "[" + "{}" * n,
    "the same key": lambda n: "{" + '"a":1,' * n,
    "deep and closed": lambda n: "[" * 70 + "[]," * n,
    "deep quotes": lambda n: "[" * 70 + '"' * n,
    "closers": lambda n: "{" + "]" * n,
    "marks": lambda n: "{" + "\ufeff" * n,
    "junk": lambda n: "[" + "@ ] " * n,
}


def steps(text: str) -> int:
    """Calls, of C too, that it takes to read a text."""
    count = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        parse(text)
    finally:
        sys.setprofile(before)
    return count


class Endless(Source):
    """A file of that many bytes that is nowhere: one short text again and again, between a beginning and an end."""

    def __init__(self, size: int, repeated: bytes, start: bytes = b"", end: bytes = b"") -> None:
        self._block = repeated * (1024 * 1024 // len(repeated))
        self._start, self._end = start, end
        count = max(1, (size - len(start) - len(end)) // len(self._block))
        self._size = len(start) + len(end) + count * len(self._block)

    @property
    def size(self) -> int:
        return self._size

    def blocks(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        end = self._size if end is None else min(end, self._size)
        while start < end:
            block = self._at(start)
            yield block[: end - start]
            start += min(len(block), end - start)

    def _at(self, place: int) -> bytes:
        if place < len(self._start):
            return self._start[place:]
        if place >= self._size - len(self._end):
            return self._end[place - self._size + len(self._end) :]
        within = (place - len(self._start)) % len(self._block)
        return self._block[within:][: self._size - len(self._end) - place]


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--inputs", type=int, default=5000, help="of each property")
    asked.add_argument("--only", choices=PROPERTIES, help="one property")
    asked.add_argument("--huge", action="store_true", help="also a line of 1 GB, and CPU time against length")
    arguments = asked.parse_args()
    total = 0
    for name in [arguments.only] if arguments.only else PROPERTIES:
        began = time.perf_counter()
        count = tried(name, arguments.inputs, is_random=True)
        total += count
        print(f"{name:<40} {count:>9,} inputs {time.perf_counter() - began:8.1f} s", flush=True)
    if arguments.huge:
        total += _huge()
    print(f"{total:,} inputs tried, no failure")


def _huge() -> int:
    for name, make in GROWING.items():
        seconds = []
        for size in (100_000, 400_000):
            text = make(size)
            began = time.process_time()
            parse(text)
            seconds.append(time.process_time() - began)
        print(f"{name:<40} {seconds[0]:8.3f} s, four times as long {seconds[1]:8.3f} s", flush=True)
    for repeated, start in ((b"x", b'{"text": "'), (b"x", b'["'), (b" ", b""), (b"{", b""), (b"9", b"[")):
        began = time.perf_counter()
        report = inspection.inspect(Endless(10**9, repeated, start))
        print(f"1 GB of {repeated!r} after {start!r}: {report.counts}, {time.perf_counter() - began:.1f} s", flush=True)
    return 2 * len(GROWING) + 5


if __name__ == "__main__":
    main()
