"""Files: taken in whole, read once, listed both ways, given back, deleted; and what their reading found."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import select

from luthier.control.audit import AuditRow
from luthier.control.datasets.inspection import inspect
from luthier.control.datasets.report import KEPT
from luthier.core.errors import DatasetInvalid, FileNotChecked, FileNotFound, InvalidParameter
from luthier.core.pages import PageRequest
from luthier.records.source import Given
from luthier.testing import jsonl, toy_rows
from tests.unit.control.conftest import ADA, BOB, House, add

GOOD = jsonl(toy_rows(3))


async def test_a_file_is_kept_whole_read_and_given_back(house: House) -> None:
    datasets = house.parts.services.datasets
    added = await add(house.parts, ADA, GOOD, name="my rows.jsonl")
    assert (added.filename, added.bytes, added.status, added.report) == ("my rows.jsonl", len(GOOD), "uploaded", None)
    with pytest.raises(FileNotChecked, match="still being checked"):
        await datasets.ready(ADA, added.id, param="training_file", wants="chat")
    await house.parts.inspector.once()
    ready = await datasets.ready(ADA, added.id, param="training_file", wants="chat", at_least=3)
    assert (ready.status, ready.report and ready.report.rows) == ("processed", 3)
    assert b"".join([chunk async for chunk in await datasets.content(ADA, added.id)]) == GOOD


async def test_an_upload_that_breaks_off_leaves_no_file(house: House) -> None:
    async def breaking() -> AsyncIterator[bytes]:
        yield GOOD
        raise ConnectionError

    datasets = house.parts.services.datasets
    with pytest.raises(ConnectionError):
        await datasets.add_file(ADA, "x", "fine-tune", breaking())
    assert (await datasets.list(ADA, PageRequest(), purpose=None, newest_first=True)).items == []
    assert house.parts.storage.list("files") == []


async def test_a_purpose_that_is_not_served_is_refused_before_anything_is_kept(house: House) -> None:
    with pytest.raises(InvalidParameter, match="purpose: must be 'fine-tune', got 'batch'"):
        await house.parts.services.datasets.add_file(ADA, "x", "batch", _never())
    assert house.parts.storage.list("files") == []


async def _never() -> AsyncIterator[bytes]:
    raise AssertionError("nobody should read this")
    yield b""


async def test_numbered_pages_of_files_count_all_of_them(house: House) -> None:
    datasets = house.parts.services.datasets
    made = [(await add(house.parts, ADA, GOOD)).id for _ in range(5)]
    await add(house.parts, BOB, GOOD)
    await datasets.delete(ADA, made.pop(2))
    pages = [await datasets.numbered(ADA, number, 3) for number in (1, 2, 3)]
    assert [[file.id for file in page.items] for page in pages] == [made[:0:-1], made[:1], []]
    assert [(page.number, page.size, page.total) for page in pages] == [(1, 3, 4), (2, 3, 4), (3, 3, 4)]


@pytest.mark.parametrize("newest_first", [True, False])
async def test_pages_go_through_all_files_in_either_direction(house: House, newest_first: bool) -> None:
    made = [(await add(house.parts, ADA, GOOD)).id for _ in range(5)]
    await add(house.parts, BOB, GOOD)
    seen: list[str] = []
    more = True
    while more:
        after = seen[-1] if seen else None
        page = await house.parts.services.datasets.list(
            ADA, PageRequest(2, after), purpose="fine-tune", newest_first=newest_first
        )
        assert len(page.items) <= 2
        seen += [file.id for file in page.items]
        more = page.has_more
    assert seen == (made[::-1] if newest_first else made)
    nothing = await house.parts.services.datasets.list(ADA, PageRequest(), purpose="other", newest_first=True)
    assert (nothing.items, nothing.has_more) == ([], False)


async def test_a_deleted_file_is_gone_for_every_question_and_cannot_be_deleted_twice(house: House) -> None:
    datasets = house.parts.services.datasets
    file = await add(house.parts, ADA, GOOD)
    await datasets.delete(ADA, file.id)
    for asked in (datasets.get(ADA, file.id), datasets.content(ADA, file.id), datasets.delete(ADA, file.id)):
        with pytest.raises(FileNotFound):
            await asked
    assert (await datasets.list(ADA, PageRequest(), purpose=None, newest_first=True)).items == []
    await house.parts.inspector.once()  # nothing to read any more
    assert house.parts.storage.exists(file.key)
    async with house.parts.db.read() as session:
        deeds = await session.scalars(select(AuditRow.deed).where(AuditRow.subject == file.id).order_by(AuditRow.id))
        assert list(deeds) == ["file.created", "file.deleted"]


@pytest.mark.parametrize("file_id", ["file-nonsense", "", "x" * 5000, "file-' OR 1=1 --"])
async def test_a_nonsense_id_is_a_file_that_is_not_there(house: House, file_id: str) -> None:
    with pytest.raises(FileNotFound):
        await house.parts.services.datasets.get(ADA, file_id)


async def test_another_projects_file_is_not_there(house: House) -> None:
    datasets = house.parts.services.datasets
    file = await add(house.parts, BOB, GOOD)
    for asked in (
        datasets.get(ADA, file.id),
        datasets.content(ADA, file.id),
        datasets.delete(ADA, file.id),
        datasets.ready(ADA, file.id, param="training_file", wants="chat"),
    ):
        with pytest.raises(FileNotFound):
            await asked
    assert (await datasets.get(BOB, file.id)).id == file.id


@pytest.mark.parametrize(
    ("content", "wants", "said"),
    [
        (b"", "chat", "The file has no rows"),
        (b"\xef\xbb\xbf\n \n\r\n", "chat", "The file has no rows"),
        (b"\xef\xbb\xbf[\n]\n", "chat", "The file has no rows"),
        (b"col,umn\n1,2\n", "chat", "line 1, column 1: .*begins with col,umn"),
        (GOOD + b"{\n", "chat", "line 4, column 1, row 4: "),
        (GOOD, "preference", "holds chat rows; this job wants preference"),
        (GOOD, "chat", "has 3 rows; at least 10 are needed"),
    ],
)
async def test_a_file_that_cannot_be_trained_on_says_why(house: House, content: bytes, wants: str, said: str) -> None:
    file = await house.upload(content=content)
    with pytest.raises(DatasetInvalid, match=said) as refused:
        await house.parts.services.datasets.ready(ADA, file.id, param="validation_file", wants=wants, at_least=10)
    assert refused.value.param == "validation_file"


async def test_what_reading_found_can_be_kept_whatever_the_file_holds(house: House) -> None:
    hostile = [b'{"\\u0000\\ud800": 1}', b'{"messages": [{"role": "\\u0000", "content": "\\ud800"}]}', b"\x00\xff"]
    file = await house.upload(content=GOOD + b"\n".join(hostile))
    assert file.status == "error"
    assert file.report is not None
    assert {problem.line for problem in file.report.problems} == {4, 5, 6}


def test_a_report_counts_every_row_and_every_problem_but_lists_the_first_thousand() -> None:
    report = inspect(Given(GOOD + b"1\n" * (KEPT + 5) + b"[]\n\n" + GOOD))
    assert (report.format, report.kind, report.rows, report.fit) == ("messages", "chat", KEPT + 12, False)
    assert report.counts == {"not_an_object": KEPT + 6}
    assert len(report.problems) == KEPT
    assert (report.problems[0].line, report.problems[0].code) == (4, "not_an_object")
    assert report.summary is not None
    assert report.summary.endswith("(1,005 more)")


def test_a_report_counts_the_characters_of_all_messages() -> None:
    turns = [{"role": "user", "content": "谢谢"}, {"role": "assistant", "content": "🙂!!"}]
    report = inspect(Given(json.dumps({"messages": turns}).encode()))
    assert (report.rows, report.characters, report.fit, report.summary) == (1, 5, True, None)


@pytest.mark.parametrize("name", ["rows.txt", "Rows.XLSX", "a.b.csv"])
async def test_a_name_that_says_it_is_no_file_of_rows_is_refused_before_anything_is_stored(
    house: House, name: str
) -> None:
    with pytest.raises(InvalidParameter, match=r"files of rows end with \.jsonl or \.json, archives .* with \.zip"):
        await add(house.parts, ADA, jsonl(toy_rows(12)), name)
    assert house.parts.storage.list("files") == []


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.JSON", "rows", "v1.2", "pictures.zip"])
async def test_other_names_are_taken(house: House, name: str) -> None:
    assert (await add(house.parts, ADA, jsonl(toy_rows(12)), name)).filename == name
