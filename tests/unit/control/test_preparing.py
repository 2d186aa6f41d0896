"""Several files are trained as one, and rows are kept for validation where somebody asks for it; none is lost on the way."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from luthier.control.datasets import service
from luthier.control.datasets.tables import FileRow
from luthier.control.jobs.lifecycle import Status
from luthier.control.jobs.tables import JobRow
from luthier.control.jobs.values import Job
from luthier.core.errors import (
    DatasetInvalid,
    FileNotFound,
    InvalidRequest,
    Unavailable,
)
from luthier.core.pages import PageRequest
from luthier.testing import jsonl, toy_pairs, toy_rows
from luthier.training.spec import DataFile
from tests.unit.control.conftest import ADA, BOB, House, add
from tests.unit.control.trainers import told


async def on_files(house: House, *contents: list[dict[str, Any]], **asked: Any) -> Job:
    files = [(await house.upload(content=jsonl(rows))).id for rows in contents]
    return await house.submit(training_files=files, **asked)


async def ready(house: House, job: Job) -> Job:
    """The job once what was made for it has been read."""
    assert (job.status, job.spec) == (Status.CHECKING, None)
    for _ in range(3):
        await house.parts.inspector.once()
        await house.parts.preparer.once()
        job = await house.jobs.get(ADA, job.id)
        if job.status is not Status.CHECKING:
            break
    assert job.status is Status.QUEUED, job.error
    return job


def rows_of(house: House, file: DataFile | None) -> list[dict[str, Any]]:
    assert file is not None
    return [json.loads(line) for line in house.parts.storage.read(file.key).splitlines()]


async def test_several_files_are_trained_as_one(house: House) -> None:
    parts = [toy_rows(3, seed=seed) for seed in range(3)]
    job = await on_files(house, *parts)
    done = await ready(house, job)
    assert [event.message for event in await told(house.parts, ADA, job)] == [
        "The job was created.",
        "Its files are being made ready.",
        "The rows of its 3 training files were joined.",
        "The job is queued.",
    ]
    assert done.spec is not None
    assert rows_of(house, done.spec.training) == [row for rows in parts for row in rows]
    assert (done.spec.training.rows, done.spec.training.trained_rows) == (9, 9)
    assert done.request.training_files == job.request.training_files  # as they were asked for
    assert len(done.request.training_files) == 3
    [made] = await house.parts.services.datasets.children(ADA, done.request.training_files[0])
    operation = {"name": "join", "files": done.request.training_files, "made_for": job.id, "output": "joined"}
    assert made.operation == operation
    assert made.filename == "rows.joined.jsonl"


async def test_several_validation_files_are_one_too(house: House) -> None:
    valid = [(await house.upload(rows=count)).id for count in (2, 3)]
    done = await ready(house, await on_files(house, toy_rows(12), validation_files=valid))
    assert done.spec is not None
    assert done.spec.validation is not None
    assert (done.spec.training.rows, done.spec.validation.rows) == (12, 5)


@pytest.mark.parametrize(
    ("first", "second"),
    [(b"%s", b"%s\n"), (b"%s\r\n", b"%s"), (b"%s\n\n\n", b"\n%s\n")],
    ids=["no last line feed", "line ends of Windows", "blank lines"],
)
async def test_files_are_joined_at_the_ends_of_their_lines(house: House, first: bytes, second: bytes) -> None:
    rows = toy_rows(2)
    contents = [form.replace(b"%s", json.dumps(row).encode()) for form, row in zip((first, second), rows, strict=True)]
    files = [await house.upload(content=content) for content in contents]
    assert [file.status for file in files] == ["processed", "processed"]
    joined = await house.parts.services.datasets.join(ADA, files, param="training_file", made_for="ftjob-1")
    await house.parts.inspector.once()
    read = await house.parts.services.datasets.get(ADA, joined.id)
    assert (read.status, read.report and read.report.rows) == ("processed", 2)
    kept = house.parts.storage.read(joined.key)
    assert [json.loads(line) for line in kept.splitlines() if line.strip()] == rows


async def test_files_that_cannot_be_one_are_refused_and_nothing_is_made(house: House) -> None:
    chat = [(await house.upload(rows=3)).id for _ in range(2)]
    pairs = (await house.upload(content=jsonl(toy_pairs(3)))).id
    strange = (await house.upload(BOB)).id
    refusals: list[tuple[dict[str, Any], type[InvalidRequest | FileNotFound], str]] = [
        ({"training_files": [chat[0], pairs]}, DatasetInvalid, "holds preference rows; this job wants chat"),
        ({"training_files": [chat[0], pairs], "objective": None}, DatasetInvalid, "holds preference rows"),
        ({"training_files": chat, "least_rows": 7}, DatasetInvalid, "have 6 rows together; at least 7 are needed"),
        ({"training_files": [chat[0], strange]}, FileNotFound, "no file"),
    ]
    before = house.parts.storage.list("files")
    for asked, error, said in refusals:
        with pytest.raises(error, match=said) as refused:
            await house.submit(**asked)
        assert refused.value.param == "training_file"
    assert house.parts.storage.list("files") == before
    assert (await house.jobs.list(ADA, PageRequest())).items == []


async def test_files_of_two_formats_of_one_kind_are_not_joined(house: House) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "b"},
        {"role": "assistant", "content": "c"},
    ]
    files = [await house.upload(rows=3), await house.upload(content=jsonl([{"messages": turns, "tools": tools}]))]
    assert [file.report.format for file in files if file.report] == ["messages", "function_calling"]
    with pytest.raises(InvalidRequest, match="only files of one format can be trained together"):
        await house.submit(training_files=[file.id for file in files])


async def test_validation_files_that_cannot_be_one_are_refused_before_the_training_files_are_joined(
    house: House,
) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}]
    training = [(await house.upload(rows=3)).id for _ in range(2)]
    calling = (await house.upload(content=jsonl([{"messages": turns, "tools": tools}]))).id
    validation = [(await house.upload(rows=3)).id, calling]
    before = house.parts.storage.list("files")
    with pytest.raises(InvalidRequest, match="only files of one format") as refused:
        await house.submit(training_files=training, validation_files=validation)
    assert refused.value.param == "validation_file"
    assert house.parts.storage.list("files") == before
    assert not await house.parts.services.datasets.children(ADA, training[0])


@pytest.mark.parametrize(
    ("rows", "asked", "kept"),
    [
        (20, {"validation_share": 0.2}, 4),
        (20, {"validation_share": 0.2, "validation_rows_at_most": 3}, 3),
        (20, {"validation_share": 0.2, "validation_rows_at_most": 100}, 4),
        (3, {"validation_share": 0.1}, 1),
        (2, {"validation_share": 0.9}, 1),
        (7, {"validation_share": 0.99}, 6),
    ],
)
async def test_a_share_of_the_rows_is_kept_for_validation(
    house: House, rows: int, asked: dict[str, Any], kept: int
) -> None:
    job = await on_files(house, toy_rows(rows), **asked)
    done = await ready(house, job)
    assert done.spec is not None
    assert done.spec.validation is not None
    assert (done.spec.training.rows, done.spec.validation.rows) == (rows - kept, kept)
    found = rows_of(house, done.spec.training) + rows_of(house, done.spec.validation)
    assert sorted(map(json.dumps, found)) == sorted(map(json.dumps, toy_rows(rows)))
    [event] = [event for event in await told(house.parts, ADA, done) if event.level == "warn"]
    assert event.message == (f"{kept} of {rows} rows are kept for validation, drawn with the seed {done.spec.seed}.")
    for made in await house.parts.services.datasets.children(ADA, done.request.training_files[0]):
        assert made.operation is not None
        assert made.operation["options"]["seed"] == done.spec.seed


async def test_the_same_seed_keeps_the_same_rows(house: House) -> None:
    found: list[list[dict[str, Any]]] = []
    for seed in (5, 5, 6):
        done = await ready(house, await on_files(house, toy_rows(40), validation_share=0.5, seed=seed))
        assert done.spec is not None
        assert done.spec.seed == seed
        found.append(rows_of(house, done.spec.validation))
    assert found[0] == found[1] != found[2]


async def test_rows_are_kept_of_several_files_together(house: House) -> None:
    job = await on_files(house, toy_rows(6), toy_rows(4, seed=1), validation_share=0.3)
    done = await ready(house, job)
    assert done.spec is not None
    assert done.spec.validation is not None
    assert (done.spec.training.rows, done.spec.validation.rows) == (7, 3)


async def test_nothing_is_split_where_a_validation_file_is_named(house: House) -> None:
    valid = await house.upload(rows=2)
    job = await on_files(house, toy_rows(12), validation_share=0.5, validation_files=[valid.id])
    assert job.spec is not None
    assert job.spec.validation is not None
    assert (job.spec.training.rows, job.spec.validation.rows) == (12, 2)
    assert not [event for event in await told(house.parts, ADA, job) if event.level == "warn"]


async def test_one_row_cannot_be_split(house: House) -> None:
    with pytest.raises(DatasetInvalid, match="has one row; two are needed") as refused:
        await on_files(house, toy_rows(1), validation_share=0.5)
    assert refused.value.param == "training_file"


async def test_the_rows_asked_for_are_counted_before_some_are_kept(house: House) -> None:
    job = await on_files(house, toy_rows(10), validation_share=0.5, least_rows=10)
    assert (await ready(house, job)).status is Status.QUEUED


async def test_a_job_waits_for_what_was_made_for_it_and_is_split_once(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_COUNTED_AT_ONCE", 10)
    job = await on_files(house, toy_rows(6), toy_rows(6, seed=1), validation_share=0.25)
    for _ in range(4):
        await house.parts.preparer.once()
    assert (await house.jobs.get(ADA, job.id)).status is Status.CHECKING
    for _ in range(3):
        await house.parts.inspector.once()
        await house.parts.preparer.once()
    assert (await house.jobs.get(ADA, job.id)).status is Status.CHECKING  # its tokens are not counted
    await house.parts.counter.once()
    await house.parts.preparer.once()
    done = await house.jobs.get(ADA, job.id)
    assert done.status is Status.QUEUED
    files = await house.parts.services.datasets.list(ADA, PageRequest(100), purpose=None, newest_first=True)
    made = [file.operation["name"] for file in files.items if file.operation]
    assert sorted(made) == ["join", "split", "split"]


async def test_a_split_that_cannot_be_done_now_is_tried_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.parts.preparer.every_seconds = 0.0
    job = await on_files(house, toy_rows(6), toy_rows(6, seed=1), validation_share=0.25)
    await house.parts.preparer.once()
    await house.parts.inspector.once()
    split = service.Datasets.split
    faults = iter([Unavailable("The storage does not answer.")])

    async def failing(self, *asked, **named):
        for fault in faults:
            raise fault
        return await split(self, *asked, **named)

    monkeypatch.setattr(service.Datasets, "split", failing)
    await house.parts.preparer.once()
    assert (await house.jobs.get(ADA, job.id)).status is Status.CHECKING
    assert (await ready(house, job)).status is Status.QUEUED


async def test_a_file_that_was_made_is_not_made_again_where_what_follows_fails(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.parts.preparer.every_seconds = 0.0
    validation = [(await house.upload(rows=count)).id for count in (2, 3)]
    job = await on_files(house, toy_rows(6), toy_rows(6, seed=1), validation_files=validation)
    join, faults = service.Datasets.join, iter([Unavailable("The storage does not answer.")])

    async def failing(self, who, files, *, param, made_for):
        if param == "validation_file":
            for fault in faults:
                raise fault
        return await join(self, who, files, param=param, made_for=made_for)

    monkeypatch.setattr(service.Datasets, "join", failing)
    for _ in range(3):
        await house.parts.preparer.once()
    done = await ready(house, job)
    assert next(faults, None) is None
    assert done.spec is not None and done.spec.validation is not None
    assert (done.spec.training.rows, done.spec.validation.rows) == (12, 5)
    assert len(await house.parts.services.datasets.children(ADA, job.request.training_files[0])) == 1


async def test_what_was_made_and_is_gone_again_fails_the_job(house: House) -> None:
    job = await on_files(house, toy_rows(6), toy_rows(6, seed=1))
    await house.parts.preparer.once()
    datasets = house.parts.services.datasets
    [made] = await datasets.children(ADA, job.request.training_files[0])
    await datasets.delete(ADA, made.id)
    await house.parts.preparer.once()
    failed = await house.jobs.get(ADA, job.id)
    assert failed.error is not None
    assert (failed.status, failed.error.code) == (Status.FAILED, "file_not_found")


async def test_others_go_on_while_the_files_of_a_job_are_joined(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    may_go_on, join = asyncio.Event(), service.Datasets.join

    async def slow(self, *asked, **named):
        await may_go_on.wait()
        return await join(self, *asked, **named)

    monkeypatch.setattr(service.Datasets, "join", slow)
    preparer = house.parts.preparer
    preparer.every_seconds = 0.02
    held = await on_files(house, toy_rows(6), toy_rows(6, seed=1))
    running = asyncio.create_task(preparer.run())
    try:
        await asyncio.sleep(0.2)
        monkeypatch.setattr(service, "_COUNTED_AT_ONCE", 10)
        other = await house.submit()
        await house.parts.counter.once()
        async with asyncio.timeout(20):
            while (await house.jobs.get(ADA, other.id)).status is Status.CHECKING:
                await asyncio.sleep(0.02)
        assert (await house.jobs.get(ADA, held.id)).status is Status.CHECKING
    finally:
        may_go_on.set()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_what_is_made_while_a_job_is_paused_is_not_made_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await on_files(house, toy_rows(6), toy_rows(6, seed=1))
    join = service.Datasets.join

    async def pausing(self, *asked, **named):
        await house.jobs.pause(ADA, job.id)
        return await join(self, *asked, **named)

    monkeypatch.setattr(service.Datasets, "join", pausing)
    await house.parts.preparer.once()
    assert (await house.jobs.get(ADA, job.id)).status is Status.PAUSED
    assert (await ready(house, await house.jobs.resume(ADA, job.id))).status is Status.QUEUED
    assert len(await house.parts.services.datasets.children(ADA, job.request.training_files[0])) == 1


@pytest.mark.parametrize("asked", [{}, {"validation_share": 0.25}], ids=["joined", "joined and split"])
async def test_what_was_made_before_a_crash_is_found_again(house: House, asked: dict[str, Any]) -> None:
    job = await on_files(house, toy_rows(6), toy_rows(6, seed=1), **asked)
    for _ in range(2):
        async with house.parts.db.read() as session:
            before = (await session.get_one(JobRow, job.id)).inputs
        await house.parts.inspector.once()
        await house.parts.preparer.once()
        async with house.parts.db.write() as session:  # as if it had died before it wrote down what it had made
            row = await session.get_one(JobRow, job.id)
            row.inputs, row.status, row.spec = before, Status.CHECKING, None
        await house.parts.inspector.once()
        await house.parts.preparer.once()
    await house.parts.inspector.once()
    await house.parts.preparer.once()
    assert (await house.jobs.get(ADA, job.id)).status is Status.QUEUED
    files = await house.parts.services.datasets.list(ADA, PageRequest(100), purpose=None, newest_first=True)
    made = [file.operation["output"] for file in files.items if file.operation]
    assert sorted(made) == (["joined", "training", "validation"] if asked else ["joined"])


async def test_rows_are_split_anew_where_half_of_an_earlier_try_was_deleted(house: House) -> None:
    job = await on_files(house, toy_rows(12), validation_share=0.25)
    async with house.parts.db.read() as session:
        before = (await session.get_one(JobRow, job.id)).inputs
    await house.parts.preparer.once()
    datasets = house.parts.services.datasets
    made = await datasets.children(ADA, job.request.training_files[0])
    await datasets.delete(ADA, made[0].id)
    async with house.parts.db.write() as session:  # as if it had died before it wrote down what it had made
        (await session.get_one(JobRow, job.id)).inputs = before
    done = await ready(house, await house.jobs.get(ADA, job.id))
    assert done.spec is not None and done.spec.validation is not None
    assert (done.spec.training.rows, done.spec.validation.rows) == (9, 3)


async def test_a_job_waits_for_a_file_that_is_read_once_more_before_it_is_joined(house: House) -> None:
    job = await on_files(house, toy_rows(6), toy_rows(6, seed=1))
    async with house.parts.db.write() as session:  # as a newer version of ours has it done
        row = await session.get_one(FileRow, job.request.training_files[1])
        row.status, row.report = "uploaded", None
    await house.parts.preparer.once()
    assert (await house.jobs.get(ADA, job.id)).status is Status.CHECKING
    assert (await ready(house, await house.jobs.get(ADA, job.id))).status is Status.QUEUED


async def test_a_fault_of_ours_fails_a_job_in_the_end(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async def failing(self, *asked, **named):
        raise OSError("no room left")

    monkeypatch.setattr(service.Datasets, "join", failing)
    house.parts.preparer.every_seconds = 0.0
    job = await on_files(house, toy_rows(6), toy_rows(6, seed=1))
    for _ in range(8):
        await house.parts.preparer.once()
    failed = await house.jobs.get(ADA, job.id)
    assert failed.error is not None
    assert (failed.status, failed.error.code) == (Status.FAILED, "internal_error")


async def test_a_file_that_fits_no_objective_is_told_by_its_own_name(house: House) -> None:
    house.jobs.patience_seconds = 0.0
    pairs = await house.upload(content=jsonl(toy_pairs(3)))
    read = await house.upload(rows=3)
    unread = await add(house.parts, ADA, jsonl(toy_rows(3)))
    with pytest.raises(DatasetInvalid, match="holds preference rows") as refused:
        await house.submit(training_files=[read.id, unread.id], validation_files=[pairs.id], objective=None)
    assert refused.value.param == "validation_file"
