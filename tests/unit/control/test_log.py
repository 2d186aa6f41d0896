"""A job's log and its events as they happen: every line keeps its place, none is left out, none comes twice."""

from __future__ import annotations

import asyncio
import threading

import pytest
from sqlalchemy import select

from luthier.control.jobs import service
from luthier.control.jobs.lifecycle import Status
from luthier.control.jobs.queries import JobQueries
from luthier.control.jobs.tables import EventRow
from luthier.control.tenancy import SYSTEM
from luthier.core.errors import JobNotFound
from luthier.testing import InlineExecutor
from tests.unit.control.conftest import ADA, BOB, House
from tests.unit.control.trainers import TOTAL, Trainer, played, rounds, whole

ENDS = (Status.SUCCEEDED, Status.FAILED, Status.CANCELLED)


async def append(house: House, job: str, *messages: str) -> None:
    for message in messages:
        async with house.parts.db.write() as session:
            row = await JobQueries(session, SYSTEM).get(job)
            assert row is not None
            house.jobs.history.tell(session, row, message, level="warn")


async def test_a_log_has_a_header_and_a_line_for_every_event(house: House) -> None:
    job = await house.submit()
    await append(house, job.id, "two\nlines\u2028or\r\nthree")
    assert await house.jobs.log(ADA, job.id, offset=0, lines=10) == [
        "time (UTC)           level  message",
        "2030-01-01 00:00:00  info   The job was created.",
        "2030-01-01 00:00:00  info   The job is queued.",
        "2030-01-01 00:00:00  warn   two lines or three",
    ]


@pytest.mark.parametrize(
    ("offset", "lines", "found"),
    [(0, 1, [0]), (0, 2, [0, 1]), (1, 1, [1]), (1, 100, [1, 2, 3]), (2, 1, [2]), (3, 5, [3]), (4, 5, []), (0, 0, [])],
)
async def test_a_page_of_a_log_begins_and_ends_where_it_was_asked_to(
    house: House, offset: int, lines: int, found: list[int]
) -> None:
    job = await house.submit()
    await append(house, job.id, "third")
    everything = await house.jobs.log(ADA, job.id, offset=0, lines=100)
    assert len(everything) == 4
    assert await house.jobs.log(ADA, job.id, offset=offset, lines=lines) == [everything[line] for line in found]


async def test_pages_of_a_log_that_grows_have_no_gap_and_nothing_twice(house: House) -> None:
    job = await house.submit()
    everything = await house.jobs.log(ADA, job.id, offset=0, lines=1000)
    writers = [append(house, job.id, *(f"{name}{number}" for number in range(12))) for name in "abc"]
    writing = asyncio.gather(*writers)
    read: list[str] = []
    while not writing.done() or len(read) < len(everything) + 36:
        page = await house.jobs.log(ADA, job.id, offset=len(read), lines=5)
        read += page
        assert await house.jobs.log(ADA, job.id, offset=0, lines=len(read)) == read  # no line changed its place
        await asyncio.sleep(0.005)
    await writing
    said = [line.split()[-1] for line in read[3:]]
    assert sorted(said) == sorted(f"{name}{number}" for name in "abc" for number in range(12))
    for name in "abc":
        assert [one for one in said if one.startswith(name)] == [f"{name}{number}" for number in range(12)]


async def test_what_was_superseded_keeps_its_line(house: House) -> None:
    def play(trainer: Trainer) -> int:
        if trainer.attempt == 1:
            trainer.started()
            trainer.steps(1, 2)
            return -9
        return whole(trainer)

    parts = house.again(InlineExecutor(played(play)))
    job = await rounds(parts, ADA, await house.submit(), *ENDS)
    lines = await house.jobs.log(ADA, job.id, offset=1, lines=1000)
    steps = [line.split("Step ")[1].split("/")[0] for line in lines if "Step " in line]
    assert steps == ["1", "2", "1", "2", "3", "4", "5", "6"]
    async with parts.db.read() as session:
        numbers = list(await session.scalars(select(EventRow.number).order_by(EventRow.number)))
    assert numbers == list(range(1, len(lines) + 1))


async def test_the_log_of_another_project_is_not_there(house: House) -> None:
    job = await house.submit(BOB)
    for asked in (house.jobs.log(ADA, job.id, offset=0, lines=1), house.jobs.follow(ADA, job.id)):
        with pytest.raises(JobNotFound):
            await asked


async def test_a_follower_hears_everything_as_it_happens_and_is_told_when_nothing_does(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_QUIET_SECONDS", 0.05)
    monkeypatch.setattr(service, "_FOLLOWED_AT_ONCE", 2)
    go_on = threading.Event()

    def play(trainer: Trainer) -> int:
        trainer.started()
        trainer.steps(1, 3)
        assert go_on.wait(60)
        trainer.steps(4, TOTAL)
        return trainer.succeeded()

    parts = house.again(InlineExecutor(played(play)))
    job = await house.submit()
    heard, quiet = [], 0

    async def follow() -> None:
        nonlocal quiet
        async for event in await parts.services.jobs.follow(ADA, job.id):
            quiet += event is None
            if event is not None:
                heard.append(event)

    following = asyncio.create_task(follow())
    async with asyncio.timeout(60):
        while not quiet or len(trained := [one for one in heard if one.kind == "metrics"]) < 3:
            await parts.training.once()
            await asyncio.sleep(0.01)
    assert [event.data["step"] for event in trained if event.data] == [1, 2, 3]
    assert not following.done()
    go_on.set()
    await rounds(parts, ADA, job, *ENDS)
    await asyncio.wait_for(following, 30)
    assert [event.number for event in heard] == list(range(1, len(heard) + 1))
    assert heard[-1].message == "The job has successfully completed."


@pytest.mark.parametrize("asked", ["pause", "cancel", "delete"])
async def test_a_follower_is_let_go_when_the_job_pauses_or_ends(house: House, asked: str) -> None:
    job = await house.submit()
    heard: list[str] = []

    async def follow() -> None:
        async for event in await house.jobs.follow(ADA, job.id):
            if event is not None:
                heard.append(event.message)

    following = asyncio.create_task(follow())
    async with asyncio.timeout(30):
        while len(heard) < 2:
            await asyncio.sleep(0.01)
    await getattr(house.jobs, asked)(ADA, job.id)
    await asyncio.wait_for(following, 30)
    assert heard[-1] == ("The job is paused." if asked == "pause" else "The job was cancelled.")


async def test_a_follower_holds_no_session_while_it_waits(house: House) -> None:
    job = await house.submit()
    events = await house.jobs.follow(ADA, job.id)
    assert (await anext(events)) is not None
    pool = house.parts.db._reader.pool
    assert pool.checkedout() == 0  # type: ignore[attr-defined]
    await events.aclose()
