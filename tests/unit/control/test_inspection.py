"""The check of a file: every problem at its place, whatever the file is, in one reading with flat memory."""

from __future__ import annotations

import io
import json
import tracemalloc
import zipfile
from collections.abc import Callable

import pytest

from luthier.control.datasets.inspection import inspect
from luthier.control.datasets.repairing import repair
from luthier.control.datasets.report import KEPT
from luthier.formats.base import Findings, known, problems_of
from luthier.records.problems import MEANINGS
from luthier.records.reader import Reader, Record
from luthier.records.source import Given, Source, StoredFile
from luthier.storage import Storage
from tests.corpus.broken import BROKEN, FUNCTIONS, GOOD, Broken
from tests.fuzz.dataset_files import Endless, piece_of, told, tried
from tests.unit.control.conftest import ADA, House
from tests.unit.images.pictures import archive, picture


def checked(data: bytes | str, **more):
    return inspect(Given(data if isinstance(data, bytes) else data.encode()), advised_rows=0, **more)


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_every_problem_of_a_broken_file_is_told_at_its_place(broken: Broken) -> None:
    report = checked(broken.data)
    assert [(one.row, one.line, one.column, one.code) for one in report.problems] == broken.problems
    assert report.repairable == broken.is_repairable
    assert tuple(sorted(report.warning_counts)) == broken.warnings
    assert not report.fit


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_every_problem_has_words_in_both_languages_and_says_what_to_do(broken: Broken) -> None:
    report = checked(broken.data)
    for problem in (*report.problems, *report.warnings):
        assert problem.text.en.isprintable() and problem.text.zh.isprintable()
        assert any("\u4e00" <= sign <= "\u9fff" for sign in problem.text.zh)
        assert problem.level == "warning" or problem.fix
        if problem.line:
            assert problem.text.en.startswith(f"line {problem.line}")


def test_the_corpus_shows_every_code_that_the_text_of_a_file_can_give() -> None:
    elsewhere = {
        "check_stopped",
        "category_mismatch",
        "record_too_long",
        "too_many_values",
        "too_few_rows",  # below
        "image_not_fetched",
        "image_by_url",  # below
        "image_not_in_archive",
        "image_unreachable",
        "image_unreadable",
        "archive_too_large",
        "archive_too_many",
        "archive_unpacks_large",
        "tag_large",
        "tag_small",
        "too_many_tags",  # with images and tags
    }
    shown = {code for broken in BROKEN for _, _, _, code in broken.problems}
    shown |= {code for broken in BROKEN for code in broken.warnings}
    assert set(MEANINGS) - elsewhere == shown


def test_the_published_sample_has_exact_places_and_validates_once_repaired() -> None:
    report = checked(FUNCTIONS)
    lines = FUNCTIONS.split("\n")
    at = {(one.line, one.column): one.code for one in report.problems if one.line and one.code != "several_lines"}
    assert at == {(15, 10): "trailing_comma", (19, 5): "missing_comma", (19, 50): "trailing_comma"}
    assert lines[14][9] == "," and lines[18][49] == "," and lines[18][4] == "{"
    record = next(iter(Reader([FUNCTIONS.encode()])))
    assert isinstance(record, Record)
    repaired = checked(json.dumps(known()["function_calling"].repaired(record.value)))
    assert repaired.fit and repaired.format == "function_calling"


def test_rows_and_places_of_a_file_with_several_kinds_of_faults() -> None:
    data = f"{GOOD}\n\n{GOOD[:-1]},}}\n  \n{json.dumps(json.loads(GOOD), indent=1)}\n{GOOD}{GOOD}\n{GOOD}"
    report = checked(data)
    assert [(one.row, one.line, one.column, one.code) for one in report.problems] == [
        (2, 3, 92, "trailing_comma"),
        (3, 5, 1, "several_lines"),
        (4, 17, 93, "shares_line"),
    ]
    assert (report.rows, report.lines) == (6, 18)
    assert [one.found for one in report.warnings if one.code == "blank_lines"] == ["2"]


@pytest.mark.parametrize("name", known())
def test_a_sample_is_fit_in_its_category_and_in_no_other(name: str) -> None:
    form = known()[name]
    if form.in_archive:
        pytest.skip("read with its images")
    for category in known():
        report = checked(form.sample(), category=category)
        if category == name or name in known()[category].includes:
            assert report.fit and (report.format, report.kind) == (name, form.kind)
        else:
            assert report.counts == {"category_mismatch": 1}
            assert report.problems[0].found == name and report.problems[0].expected == category
            assert name in report.problems[0].text.en and category in report.problems[0].text.zh


def test_problems_are_listed_up_to_a_thousand_and_all_counted() -> None:
    report = checked(f"{GOOD[:-1]},}}\n" * 1500 + '{"messages": []}\n' * 3)
    assert len(report.problems) == KEPT
    assert report.counts == {"trailing_comma": 1500, "no_user": 3, "no_assistant": 3}
    assert report.rows == 1503


def test_a_piece_lists_nothing_once_those_before_it_filled_the_report() -> None:
    data = "\n".join(GOOD.replace("Hi", f"Hi {number}")[:-1] + ', "id": 7}' for number in range(1500)).encode()
    with piece_of(20_000):
        pieces, side_by_side = checked(data), checked(data, processes=2)
    assert told(pieces) == told(side_by_side) == told(checked(data))
    assert [one.line for one in pieces.problems] == list(range(1, KEPT + 1)) and pieces.counts == {
        "unknown_field": 1500
    }


def test_rows_that_repeat_are_found_across_pieces_and_processes() -> None:
    rows = [GOOD.replace("Hi", f"Hi {number}") for number in range(50)]
    data = "\n".join([*rows, rows[7], json.dumps(json.loads(rows[0]), indent=1)]).encode()
    with piece_of(300):
        one, two = checked(data), checked(data, processes=2)
    assert told(one) == told(two) == told(checked(data))
    assert one.duplicate_rows == 1
    assert [(w.line, w.expected) for w in one.warnings if w.code == "duplicates"] == [(51, "8")]


@pytest.mark.slow
def test_rows_that_repeat_are_found_in_a_remote_storage_too(tmp_path) -> None:
    storage = Storage(tmp_path.as_uri())
    data = "\n".join([GOOD.replace("Hi", f"Hi {number}") for number in range(50)] * 2).encode()
    storage.write("file", data)
    with piece_of(700):
        report = inspect(StoredFile(storage, "file", len(data)), processes=2)
    assert (report.rows, report.duplicate_rows) == (100, 50)


@pytest.mark.parametrize("piece", [1, 50, 200])
@pytest.mark.parametrize(
    "make",
    [
        lambda rows: "\n".join(json.dumps(row, indent=2) for row in rows),
        lambda rows: json.dumps(rows, indent=1),
        lambda rows: json.dumps(rows),
        lambda rows: "\n\n" + json.dumps(rows, indent=0) + "\n" + GOOD,
        lambda rows: "\n".join(json.dumps(row, indent=2)[:-40] for row in rows),
        lambda rows: '{"rows": [\n  ' + ",\n  ".join(map(json.dumps, rows)) + "\n]}",
    ],
)
def test_records_that_cross_the_bounds_of_pieces_are_read_once(make: Callable, piece: int) -> None:
    data = make([json.loads(GOOD.replace("Hi", f"Hi {number}")) for number in range(6)]).encode()
    whole = told(checked(data))
    with piece_of(piece):
        assert told(checked(data)) == whole
        assert told(checked(data, processes=2)) == whole


FLAT: dict[str, tuple[Source, set[str]]] = {
    "one line without an end": (Endless(120_000_000, b"x"), {"record_too_long"}),
    "one text without an end": (Endless(120_000_000, b"x", b'{"text": "'), {"record_too_long"}),
    "a long line among rows": (
        Endless(60_000_000, b" x", GOOD.encode() + b"\n", b"\n" + GOOD.encode()),
        {"record_too_long"},
    ),
    "an array without an end": (Endless(60_000_000, b"x", b'[{"text": "'), {"json_array", "record_too_long"}),
    "blanks": (Endless(60_000_000, b" "), {"record_too_long"}),
    "empty lines": (Given(b"\n" * 100_000), {"file_empty"}),
    "a million digits": (Endless(1_100_000, b"1", b'{"text": ', b"}"), {"number_too_long", "wrong_type"}),
    "a hundred thousand brackets": (Given(b'{"text": ' + b"[" * 100_000), {"too_deep"}),
    "arrays without number": (Given(b'{"text": [' + b"[]," * 101_000 + b"1]}"), {"too_many_values"}),
    "faults without number": (Given(b'{"text": [' + b"@," * 101_000 + b"]}"), {"not_json", "too_many_values"}),
}


@pytest.mark.parametrize("case", FLAT)
def test_a_hostile_file_is_refused_with_flat_memory(case: str) -> None:
    source, codes = FLAT[case]
    tracemalloc.start()
    try:
        report = inspect(source, advised_rows=0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert set(report.counts) == codes
    assert peak < 150_000_000
    assert len(report.model_dump_json()) < 2_000_000


def test_a_line_that_is_too_long_is_told_and_the_rows_around_it_are_read() -> None:
    report = inspect(FLAT["a long line among rows"][0], advised_rows=0)
    assert [(one.row, one.line, one.code) for one in report.problems] == [(2, 2, "record_too_long")]
    assert (report.rows, report.lines, report.turns) == (3, 3, 4)


@pytest.mark.parametrize("name", ["pieces_do_not_matter", "any_bytes_are_inspected"])
def test_random_files(name: str) -> None:
    assert tried(name, 60, is_random=False)


def test_a_message_index_is_that_of_a_message_and_the_field_says_where() -> None:
    row = {"input": {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": 5}]}, "tools": [1]}
    record = next(iter(Reader([json.dumps(row).encode()])))
    assert isinstance(record, Record)
    found = {one.field: one.message_index for one in problems_of(record, known()["preferred_output"])}
    assert found["input.messages[1].content"] == 1
    assert found["preferred_output"] is None and found["tools"] is None
    assert Findings(record).problems == []


def _pictured(part: dict | None) -> dict:
    content = [{"type": "text", "text": "What is it?"}, *([part] if part else [])]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "A tree."}]}


def _packed(*rows: dict, method: int = zipfile.ZIP_STORED, encoding: str = "utf-8") -> bytes:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    return archive({"rows.jsonl": text.encode(encoding), "a.jpg": picture()}, method)


NAMED = {"image": "a.jpg"}
ADDRESSED = {"type": "image_url", "image_url": {"url": "a.jpg"}}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("part", [NAMED, ADDRESSED, None], ids=["named", "addressed", "none"])
def test_rows_of_an_archive_with_a_wrong_byte_are_damaged_whatever_they_seem_to_say(
    method: int, part: dict | None
) -> None:
    whole = _packed(*[_pictured(part)] * 30, method=method)
    start = whole.index(b"rows.jsonl") + len(b"rows.jsonl")
    for place in (start + 3, start + 20, start + 60):
        wrong = bytearray(whole)
        wrong[place] ^= 1
        assert list(checked(bytes(wrong)).counts) == ["archive_damaged"]
    one = whole.replace(b'"image"', b'"imagf"', 1)  # each of its rows can still be read
    if one != whole:
        assert list(checked(one).counts) == ["archive_damaged"]


@pytest.mark.parametrize(
    ("part", "found", "expected"),
    [
        (ADDRESSED, '"a.jpg"', '{"image": "a.jpg"}'),
        ({"type": "image_url", "image_url": "a.jpg"}, '"a.jpg"', '{"image": "a.jpg"}'),
        ({"type": "image_url", "image_url": {"url": "./b/a.jpg"}}, '"./b/a.jpg"', '{"image": "a.jpg"}'),
        ({"type": "image_url", "image_url": {"url": "http://x/a.jpg"}}, '"http://x/a.jpg"', '{"image": "name.jpg"}'),
    ],
)
def test_an_image_of_an_archive_in_image_url_is_told_at_its_row_with_what_to_write(
    part: dict, found: str, expected: str
) -> None:
    report = checked(_packed(_pictured(NAMED), _pictured(part)))
    assert report.format == "image_archive"
    [problem] = report.problems
    assert (problem.code, problem.row, problem.line) == ("image_by_url", 2, 2)
    assert (problem.field, problem.found, problem.expected) == ("messages[0].content[1]", found, expected)
    assert f"Write {expected} in place of the whole part" in problem.fix


def test_an_archive_is_judged_row_by_row_as_soon_as_one_calls_an_image_by_a_name() -> None:
    report = checked(_packed(*[_pictured(ADDRESSED)] * 3))
    assert [(one.row, one.code) for one in report.problems] == [(row, "image_by_url") for row in (1, 2, 3)]
    report = checked(_packed(_pictured({**ADDRESSED, **NAMED}), _pictured(NAMED)))
    assert (report.format, report.rows) == ("image_archive", 2)
    assert {one.row for one in report.problems} == {1}
    for part in (None, {"type": "image_url", "image_url": {"url": "https://x/a.jpg"}}):
        assert list(checked(_packed(*[_pictured(part)] * 3)).counts) == ["archive_no_images"]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_rows_of_an_archive_in_utf_16_are_told_and_mended(encoding: str, method: int) -> None:
    data = _packed(*[_pictured(NAMED)] * 3, method=method, encoding=encoding)
    report = checked(data)
    assert (list(report.counts), report.repairable) == (["utf16"], True)
    mended = io.BytesIO()
    repair(Given(data), mended)
    report = checked(mended.getvalue())
    assert (report.fit, report.rows, report.format) == (True, 3, "image_archive")


async def test_the_server_mends_rows_of_an_archive_in_utf_16(house: House) -> None:
    datasets = house.parts.services.datasets
    data = _packed(*[_pictured(NAMED)] * 3, method=zipfile.ZIP_DEFLATED, encoding="utf-16-le")
    file = await house.upload(content=data)
    assert file.report is not None and file.report.repairable
    made, changes = await datasets.repair(ADA, file.id)
    assert changes["counts"] == {"utf16": 1}
    await house.parts.inspector.once()
    assert (await datasets.get(ADA, made.id)).status == "processed"


@pytest.mark.parametrize(("head", "name"), [(b"\x1f\x8b\x08", "gzip"), (b"PAR1", "Parquet"), (b"\x89PNG", "an image")])
def test_rows_of_an_archive_that_are_another_kind_of_file_are_told_as_that(head: bytes, name: str) -> None:
    [problem] = checked(archive({"rows.jsonl": head + b"x" * 50, "a.jpg": picture()})).problems
    assert (problem.code, problem.found) == ("file_type", name)
