"""What may be asked of a job, what is refused, and what its list and events show."""

from __future__ import annotations

import asyncio
from itertools import count

import pytest

from luthier.control.datasets import service
from luthier.control.datasets.service import File
from luthier.control.jobs.lifecycle import Status
from luthier.control.jobs.values import JobRequest
from luthier.core import ids
from luthier.core.errors import (
    DatasetInvalid,
    FileNotFound,
    InvalidParameter,
    InvalidTransition,
    JobNotFound,
    LuthierError,
    ModelNotFound,
)
from luthier.core.pages import PageRequest
from luthier.testing import jsonl, toy_pairs, toy_rows
from tests.unit.control.conftest import ADA, BOB, House, add
from tests.unit.control.trainers import told


async def test_a_job_on_a_file_that_was_read_is_queued_with_every_number_written_down(house: House) -> None:
    job = await house.submit(suffix="Ada", seed=7, epochs=2)
    assert job.status is Status.QUEUED
    assert job.spec is not None
    assert (job.spec.epochs, job.spec.seed, job.spec.threads) == (2, 7, 2)
    assert job.spec.method.options["rank"] >= 1
    assert job.spec.learning_rate > 0
    assert job.model_name.startswith("toy-ada-")
    assert [event.message for event in await told(house.parts, ADA, job)] == [
        "The job was created.",
        "The job is queued.",
    ]


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (jsonl(toy_rows(12)), Status.QUEUED, None),
        (jsonl(toy_rows(9)), Status.FAILED, "invalid_training_file"),
        (b"{\n", Status.FAILED, "invalid_training_file"),
    ],
    ids=["good", "nine rows", "broken"],
)
async def test_a_job_on_a_file_that_was_not_read_waits_for_it(
    house: House, content: bytes, status: Status, code: str | None
) -> None:
    house.jobs.patience_seconds = 0.0
    file = await add(house.parts, ADA, content)
    job = await house.submit(training_files=[file.id], least_rows=10)
    await house.parts.preparer.once()
    assert (await house.jobs.get(ADA, job.id)).status is Status.CHECKING
    waits = "The files are still being checked; the job waits for them."
    assert [event.message for event in await told(house.parts, ADA, job)] == ["The job was created.", waits]
    await house.parts.inspector.once()
    await house.parts.preparer.once()
    done = await house.jobs.get(ADA, job.id)
    assert (done.status, done.error and done.error.code) == (status, code)
    assert not done.error or done.error.param == "training_file"


async def test_what_is_known_to_be_wrong_is_told_though_another_file_was_not_read(house: House) -> None:
    house.jobs.patience_seconds = 0.0
    pairs = await house.upload(content=jsonl(toy_pairs(3)))
    unread = await add(house.parts, ADA, b"{\n")
    for asked, error, param in (
        ({"validation_files": ["file-none"]}, FileNotFound, "validation_file"),
        ({"validation_files": [pairs.id]}, DatasetInvalid, "validation_file"),
        ({"base_model": "gpt-9"}, ModelNotFound, "model"),
        ({"max_length": 10**6}, InvalidParameter, "max_length"),
    ):
        with pytest.raises(error) as refused:
            await house.submit(training_files=[unread.id], **asked)
        assert refused.value.param == param


async def test_a_job_waits_a_little_for_a_file_that_was_uploaded_just_now(house: House) -> None:
    file = await add(house.parts, ADA, jsonl(toy_rows(12)))
    asked = asyncio.create_task(house.submit(training_files=[file.id]))
    await asyncio.sleep(0.05)
    await house.parts.inspector.once()
    assert (await asked).status is Status.QUEUED


async def files(house: House) -> dict[str, File]:
    return {
        "good": await house.upload(),
        "three rows": await house.upload(rows=3),
        "broken": await house.upload(content=b'{"messages": []}\n' * 12),
        "bob's": await house.upload(BOB),
        "deleted": (deleted := await house.upload()),
        "unread": await add(house.parts, ADA, b"{\n"),
        "": await house.parts.services.datasets.delete(ADA, deleted.id) or deleted,
    }


REFUSALS: dict[str, tuple[dict[str, object], type[LuthierError], str, str]] = {
    "unknown model": ({"base_model": "gpt-4o"}, ModelNotFound, "model", "no model 'gpt-4o'"),
    "a model's name that is none": ({"base_model": "../toy"}, ModelNotFound, "model", "no model"),
    "a suffix with a blank": ({"suffix": "my model"}, InvalidParameter, "suffix", "letters, digits"),
    "a suffix with a line feed": ({"suffix": "mine\n"}, InvalidParameter, "suffix", "letters, digits"),
    "a long suffix": ({"suffix": "x" * 65}, InvalidParameter, "suffix", "1 to 64"),
    "an empty suffix": ({"suffix": ""}, InvalidParameter, "suffix", "1 to 64"),
    "a negative seed": ({"seed": -1}, InvalidParameter, "seed", "got -1"),
    "a huge seed": ({"seed": 2**31}, InvalidParameter, "seed", "between 0 and"),
    "an unknown method": ({"method": {"name": "lore"}}, InvalidParameter, "method", "no method 'lore'"),
    "an option out of bounds": ({"method": {"name": "lora", "options": {"rank": 0}}}, InvalidParameter, "rank", "512, got 0"),
    "an unknown option": ({"method": {"name": "lora", "options": {"rnak": 4}}}, InvalidParameter, "rnak", "Did you mean 'rank'?"),
    "an unknown objective": ({"objective": {"name": "stf"}}, InvalidParameter, "objective", "known: cpt, dpo, sft"),
    "too few rows": ({"training_files": "three rows", "least_rows": 10}, DatasetInvalid, "training_file", "at least 10"),
    "a broken file": ({"training_files": "broken"}, DatasetInvalid, "training_file", "line 1"),
    "a broken validation file": ({"validation_files": "broken"}, DatasetInvalid, "validation_file", "line 1"),
    "another project's file": ({"training_files": "bob's"}, FileNotFound, "training_file", "Upload it first"),
    "another project's validation file": ({"validation_files": "bob's"}, FileNotFound, "validation_file", "no file"),
    "a deleted file": ({"training_files": "deleted"}, FileNotFound, "training_file", "no file"),
    "wrong options while the file is unread": (
        {"training_files": "unread", "method": {"name": "lora", "options": {"rank": 0}}}, InvalidParameter, "rank", "rank",
    ),
}  # fmt: skip


async def test_what_cannot_be_trained_is_refused_at_once_and_leaves_no_job(house: House) -> None:
    made = await files(house)
    for case, (asked, error, param, said) in REFUSALS.items():
        named = {k: [made[v].id] if k.endswith("_files") else v for k, v in asked.items()}  # type: ignore[index]
        request = JobRequest.model_validate({"base_model": "toy", "training_files": [made["good"].id]} | named)
        with pytest.raises(error) as refused:
            await house.jobs.submit(ADA, request)
        assert refused.value.param == param, case
        assert said in refused.value.text, case
    assert (await house.jobs.list(ADA, PageRequest())).items == []


async def test_the_name_of_the_tuned_model_is_nobody_elses(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = count()
    monkeypatch.setattr(ids, "short", lambda: f"{next(drawn) // 3:04}")  # every name is drawn three times
    names = [(await house.submit(who)).model_name for who in (ADA, BOB, ADA)]
    assert names == ["toy-0000", "toy-0001", "toy-0002"]


async def test_jobs_are_listed_newest_first_each_project_its_own(house: House) -> None:
    made = [(await house.submit()).id for _ in range(3)]
    other = await house.submit(BOB)
    first = await house.jobs.list(ADA, PageRequest(2))
    rest = await house.jobs.list(ADA, PageRequest(2, first.items[-1].id))
    assert ([job.id for job in [*first.items, *rest.items]], first.has_more, rest.has_more) == (made[::-1], True, False)
    assert [job.id for job in (await house.jobs.list(BOB, PageRequest())).items] == [other.id]


PAIRS = [
    {"k": "v"},
    {"k": "v", "team": "x"},
    {"k": "other"},
    None,
    {"a.b": "c", 'with "quotes"': "d", "谢谢": "好", "$": "'", "nested": '{"k": "v"}'},
    {},
    {"k": ""},
    {"metadata": "k", "v": "k"},
]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"k": "v"}, [0, 1]),
        ({"k": "v", "team": "x"}, [1]),
        ({"team": "v"}, []),
        ({"k": ""}, [6]),
        ({"a.b": "c"}, [4]),
        ({'with "quotes"': "d"}, [4]),
        ({"谢谢": "好"}, [4]),
        ({"$": "'"}, [4]),
        ({"谢": "好"}, []),
        ({"k": "%"}, []),
        (None, [3, 5]),
    ],
    ids=str,
)
async def test_jobs_are_found_by_their_metadata(house: House, asked: dict[str, str] | None, found: list[int]) -> None:
    file = await house.upload()
    made = [(await house.submit(training_files=[file.id], metadata=pairs)).id for pairs in PAIRS]
    await house.submit(BOB, metadata=asked)
    pages, after = [], None
    while True:
        page = await house.jobs.list(ADA, PageRequest(1, after), metadata=asked, without_metadata=asked is None)
        pages += [job.id for job in page.items]
        if not page.has_more:
            break
        after = pages[-1]
    assert pages == [made[place] for place in reversed(found)]


async def test_numbered_pages_of_jobs_count_all_of_them(house: House) -> None:
    file = await house.upload()
    made = [(await house.submit(training_files=[file.id])).id for _ in range(3)]
    await house.submit(BOB)

    async def page(number: int, size: int, **asked: str) -> tuple[list[str], int]:
        found = await house.jobs.numbered(ADA, number, size, **asked)
        assert (found.number, found.size) == (number, size)
        return [job.id for job in found.items], found.total

    assert await page(1, 2) == (made[:0:-1], 3)
    assert await page(2, 2) == (made[:1], 3)
    assert await page(3, 2) == ([], 3)
    assert await page(1, 10, base_model="toy") == (made[::-1], 3)
    assert await page(1, 10, base_model="tiny") == ([], 0)
    await house.jobs.delete(ADA, made[1])
    assert await page(1, 10) == ([made[2], made[0]], 2)


async def test_a_job_knows_whose_key_asked_for_it(house: House) -> None:
    assert (await house.jobs.get(ADA, (await house.submit()).id)).created_by == ADA.id


async def test_events_come_newest_first_page_by_page(house: House) -> None:
    job = await house.jobs.cancel(ADA, (await house.submit()).id)
    pages, after = [], None
    for _ in range(3):
        page = await house.jobs.events(ADA, job.id, PageRequest(1, after))
        pages.append((page.items[0].message, page.has_more))
        after = page.items[0].id
    assert pages == [("The job was cancelled.", True), ("The job is queued.", True), ("The job was created.", False)]
    assert (await house.jobs.events(ADA, job.id, PageRequest(1, after))).items == []


async def test_another_projects_job_is_not_there(house: House) -> None:
    job = await house.submit(BOB)
    for asked in (
        house.jobs.get(ADA, job.id),
        house.jobs.cancel(ADA, job.id),
        house.jobs.events(ADA, job.id, PageRequest()),
        house.jobs.checkpoints(ADA, job.id, PageRequest()),
    ):
        with pytest.raises(JobNotFound):
            await asked
    assert (await house.jobs.get(BOB, job.id)).status is Status.QUEUED


async def test_a_job_without_a_process_is_cancelled_at_once_and_again_changes_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    queued = await house.submit()
    monkeypatch.setattr(service, "_COUNTED_AT_ONCE", 10)
    counting = await house.submit()
    assert (queued.status, counting.status) == (Status.QUEUED, Status.CHECKING)
    for job in (queued, counting):
        cancelled = await house.jobs.cancel(ADA, job.id)
        assert (cancelled.status, cancelled.finished_at) == (Status.CANCELLED, house.clock.now())
        assert await house.jobs.cancel(ADA, job.id) == cancelled
    await house.parts.counter.once()
    await house.parts.preparer.once()
    assert (await house.jobs.get(ADA, counting.id)).status is Status.CANCELLED


async def test_a_job_that_has_ended_cannot_be_cancelled(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_COUNTED_AT_ONCE", 10)
    job = await house.submit(overlength="fail", max_length=8)
    await house.parts.counter.once()
    await house.parts.preparer.once()
    failed = await house.jobs.get(ADA, job.id)
    assert failed.status is Status.FAILED
    assert failed.error is not None
    assert (failed.error.code, failed.error.param) == ("invalid_training_file", "training_file")
    with pytest.raises(InvalidTransition, match="has failed already"):
        await house.jobs.cancel(ADA, job.id)
