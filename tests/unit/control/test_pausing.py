"""Jobs pause and go on, whatever they were doing, and no attempt is used up by it."""

from __future__ import annotations

import asyncio
import threading

import pytest
from sqlalchemy import select

from luthier.control.datasets import service
from luthier.control.jobs.lifecycle import Status, Wish
from luthier.control.jobs.service import EVENTS, Jobs
from luthier.control.jobs.tables import RunRow
from luthier.control.jobs.values import Job
from luthier.control.scheduling import training
from luthier.core.errors import InvalidTransition, JobNotFound
from luthier.core.pages import PageRequest
from luthier.testing import InlineExecutor, InlineProcess
from tests.unit.control.conftest import ADA, BOB, House
from tests.unit.control.trainers import TOTAL, Trainer, played, rounds, told, trained_steps, whole

ENDS = (Status.SUCCEEDED, Status.FAILED, Status.CANCELLED)


def in_stages(trainer: Trainer) -> int:
    """Two steps an attempt, which then waits to be asked to stop; the third one goes to the end."""
    done = 2 * (trainer.attempt - 1)
    trainer.started(step=done)
    if trainer.attempt == 3:
        trainer.steps(done + 1, TOTAL)
        trainer.saved(TOTAL)
        return trainer.succeeded()
    trainer.steps(done + 1, done + 2)
    assert trainer.process.stopping.wait(60)
    if trainer.is_pausing:
        trainer.saved(done + 2)
    return trainer.cancelled(done + 2)


async def test_a_running_job_pauses_and_goes_on_from_where_it_was(house: House) -> None:
    executor = InlineExecutor(played(in_stages))
    parts = house.again(executor)
    job = await house.submit()
    for attempt in (1, 2):
        job = await rounds(parts, ADA, job, Status.RUNNING)
        asked = await house.jobs.pause(ADA, job.id)
        assert (asked.status, asked.wish) == (Status.RUNNING, Wish.PAUSE)
        assert await house.jobs.pause(ADA, job.id) == asked  # again changes nothing
        job = await rounds(parts, ADA, job, Status.PAUSED)
        assert (job.wish, job.finished_at, job.seconds_left) == (None, None, None)
        assert (await house.jobs.pause(ADA, job.id)).status is Status.PAUSED
        assert len(executor.started) == attempt
        resumed = await house.jobs.resume(ADA, job.id)
        assert resumed.status is Status.QUEUED
    done = await rounds(parts, ADA, job, *ENDS)
    assert done.status is Status.SUCCEEDED
    events = await told(parts, ADA, done)
    assert trained_steps(events) == [1, 2, 3, 4, 5, 6]
    messages = [event.message for event in events]
    assert messages.count("The job will pause as soon as it has saved a checkpoint.") == 2
    assert messages.count("The job is paused.") == messages.count("The job goes on.") == 2
    assert not [event.message for event in events if event.level != "info"]
    steps = [one.step for one in (await house.jobs.checkpoints(ADA, job.id, PageRequest())).items]
    assert steps == [6, 4, 2]


async def test_a_checkpoint_that_is_saved_again_after_a_pause_stands_for_the_first(house: House) -> None:
    def play(trainer: Trainer) -> int:
        if trainer.attempt > 1:  # it was asked to pause while it evaluated, and does both again
            trainer.started(step=2)
            trainer.saved(2)
            trainer.steps(3, TOTAL)
            trainer.saved(TOTAL)
            return trainer.succeeded()
        trainer.started()
        trainer.steps(1, 2)
        assert trainer.process.stopping.wait(60)
        trainer.saved(2)
        return trainer.cancelled(2)

    parts = house.again(InlineExecutor(played(play)))
    job = await rounds(parts, ADA, await house.submit(), Status.RUNNING)
    await house.jobs.pause(ADA, job.id)
    await rounds(parts, ADA, job, Status.PAUSED)
    await house.jobs.resume(ADA, job.id)
    await rounds(parts, ADA, job, *ENDS)
    kept = (await house.jobs.checkpoints(ADA, job.id, PageRequest())).items
    assert [(one.step, one.model_name.endswith("-2")) for one in kept] == [(6, True), (2, True)]


async def test_pauses_use_up_no_attempt(house: House) -> None:
    parts = house.again(InlineExecutor(played(until_stopped)))
    job = await house.submit()
    for _ in range(4):  # there are three attempts
        job = await rounds(parts, ADA, job, Status.RUNNING)
        await house.jobs.pause(ADA, job.id)
        job = await rounds(parts, ADA, job, Status.PAUSED)
        await house.jobs.resume(ADA, job.id)
    assert (await rounds(parts, ADA, job, Status.RUNNING)).status is Status.RUNNING
    await house.jobs.cancel(ADA, job.id)
    await rounds(parts, ADA, job, Status.CANCELLED)


def until_stopped(trainer: Trainer) -> int:
    trainer.started(step=min(trainer.attempt - 1, 1))
    assert trainer.process.stopping.wait(60)
    return trainer.cancelled(1)


async def test_a_paused_job_leaves_its_cores_to_others_and_has_no_process(house: House) -> None:
    executor = InlineExecutor(played(until_stopped))
    parts = house.again(executor)
    first, second = await house.submit(), await house.submit()
    await rounds(parts, ADA, first, Status.RUNNING)
    await house.jobs.pause(ADA, first.id)
    await rounds(parts, ADA, first, Status.PAUSED)
    await rounds(parts, ADA, second, Status.RUNNING)
    assert [launch.name for launch in executor.started] == [f"{first.id}-1", f"{second.id}-1"]
    async with parts.db.read() as session:
        runs = {run.job_id: run for run in await session.scalars(select(RunRow))}
    assert runs[first.id].ended_at is not None
    await house.jobs.cancel(ADA, second.id)
    await rounds(parts, ADA, second, Status.CANCELLED)
    assert (await house.jobs.get(ADA, first.id)).status is Status.PAUSED


async def test_a_job_that_waits_is_paused_at_once_and_goes_on_where_it_waited(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    queued = await house.submit()
    monkeypatch.setattr(service, "_COUNTED_AT_ONCE", 10)
    checking = await house.submit()
    assert (queued.status, checking.status) == (Status.QUEUED, Status.CHECKING)
    for job in (queued, checking):
        assert (await house.jobs.pause(ADA, job.id)).status is Status.PAUSED
    await house.parts.counter.once()
    for _ in range(2):
        await house.parts.preparer.once()
    for job in (queued, checking):
        assert (await house.jobs.get(ADA, job.id)).status is Status.PAUSED
        assert (await house.jobs.resume(ADA, job.id)).status is job.status
    await house.parts.preparer.once()
    assert (await house.jobs.get(ADA, checking.id)).status is Status.QUEUED


async def test_a_pause_that_is_taken_back_in_time_stops_nothing(house: House) -> None:
    parts = house.again(InlineExecutor(played(in_stages)))
    job = await rounds(parts, ADA, await house.submit(), Status.RUNNING)
    await house.jobs.pause(ADA, job.id)
    resumed = await house.jobs.resume(ADA, job.id)
    assert (resumed.status, resumed.wish) == (Status.RUNNING, None)
    for _ in range(3):
        await parts.training.once()
    assert not executor_of(parts).stopping(f"{job.id}-1")
    with pytest.raises(InvalidTransition, match="is running; only a paused job can go on"):
        await house.jobs.resume(ADA, job.id)
    await house.jobs.cancel(ADA, job.id)
    await rounds(parts, ADA, job, Status.CANCELLED)


class Watched:
    def __init__(self, executor: InlineExecutor) -> None:
        self.executor = executor

    def stopping(self, name: str) -> bool:
        return self.executor._processes[name].stopping.is_set()

    def is_killed(self, name: str) -> bool:
        return self.executor._processes[name].is_killed


def executor_of(parts) -> Watched:
    return Watched(parts.training.executor)


async def test_a_pause_that_is_taken_back_too_late_is_a_short_one(house: House) -> None:
    go_on = threading.Event()

    def play(trainer: Trainer) -> int:
        if trainer.attempt > 1:
            trainer.started(step=2)
            trainer.steps(3, TOTAL)
            trainer.saved(TOTAL)
            return trainer.succeeded()
        trainer.started()
        trainer.steps(1, 2)
        assert trainer.process.stopping.wait(60)
        assert go_on.wait(60)
        trainer.saved(2)
        return trainer.cancelled(2)

    parts = house.again(InlineExecutor(played(play)))
    job = await rounds(parts, ADA, await house.submit(), Status.RUNNING)
    await house.jobs.pause(ADA, job.id)
    while not executor_of(parts).stopping(f"{job.id}-1"):
        await parts.training.once()
    await house.jobs.resume(ADA, job.id)
    for _ in range(2):
        await parts.training.once()
    assert not executor_of(parts).is_killed(f"{job.id}-1")
    go_on.set()
    done = await rounds(parts, ADA, job, *ENDS)
    assert done.status is Status.SUCCEEDED
    events = await told(parts, ADA, done)
    assert trained_steps(events) == [1, 2, 3, 4, 5, 6]
    assert "The job had stopped for its pause already; it goes on." in [event.message for event in events]
    assert not [event.message for event in events if event.level != "info"]


@pytest.mark.parametrize("ends", [Status.SUCCEEDED, Status.FAILED])
async def test_a_job_that_ended_before_it_heard_of_the_pause_keeps_its_end(house: House, ends: Status) -> None:
    def play(trainer: Trainer) -> int:
        trainer.started()
        assert trainer.process.stopping.wait(60)
        if ends is Status.FAILED:
            return trainer.failed("loss_diverged", "It rose.")
        trainer.steps(1, TOTAL)
        return trainer.succeeded()

    parts = house.again(InlineExecutor(played(play)))
    job = await rounds(parts, ADA, await house.submit(), Status.RUNNING)
    await house.jobs.pause(ADA, job.id)
    done = await rounds(parts, ADA, job, *ENDS)
    assert (done.status, done.wish) == (ends, None)


async def test_a_trainer_that_dies_instead_of_saving_is_paused_where_it_last_saved(house: House) -> None:
    def play(process: InlineProcess) -> int:
        trainer = Trainer(process)
        if trainer.attempt > 1:
            return whole(trainer)
        trainer.started()
        trainer.steps(1, 2)
        assert process.stopping.wait(60)
        return -9

    parts = house.again(InlineExecutor(play))
    job = await rounds(parts, ADA, await house.submit(), Status.RUNNING)
    await house.jobs.pause(ADA, job.id)
    await rounds(parts, ADA, job, Status.PAUSED)
    await house.jobs.resume(ADA, job.id)
    done = await rounds(parts, ADA, job, *ENDS)
    assert done.status is Status.SUCCEEDED
    events = await told(parts, ADA, done)
    assert trained_steps(events) == [1, 2, 3, 4, 5, 6]
    assert UNSAVED in warnings_of(events)[0]


UNSAVED = "did not save in time for the pause; the job goes on from its last checkpoint."


def warnings_of(events) -> list[str]:
    return [event.message for event in events if event.level == "warn"]


async def test_a_trainer_that_does_not_hear_of_its_pause_is_ended_by_force(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf = threading.Event()

    def play(trainer: Trainer) -> int:
        if trainer.attempt > 1:
            trainer.started(step=0)
            trainer.steps(1, TOTAL)
            trainer.saved(TOTAL)
            return trainer.succeeded()
        trainer.started()
        deaf.wait(60)
        return 0

    monkeypatch.setattr(training, "PAUSE_GRACE_SECONDS", 0.0)
    parts = house.again(InlineExecutor(played(play)))
    job = await rounds(parts, ADA, await house.submit(), Status.RUNNING)
    await house.jobs.pause(ADA, job.id)
    assert (await rounds(parts, ADA, job, Status.PAUSED)).status is Status.PAUSED
    await house.jobs.resume(ADA, job.id)
    done = await rounds(parts, ADA, job, *ENDS)
    deaf.set()
    assert done.status is Status.SUCCEEDED
    [warning] = warnings_of(await told(parts, ADA, done))
    assert UNSAVED in warning


async def test_a_trainer_that_was_asked_to_pause_is_ended_by_force_though_the_pause_was_taken_back(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf = threading.Event()

    def play(trainer: Trainer) -> int:
        trainer.started()
        deaf.wait(60)
        return 0

    parts = house.again(InlineExecutor(played(play)))
    job = await rounds(parts, ADA, await house.submit(), Status.RUNNING)
    await house.jobs.pause(ADA, job.id)
    while not executor_of(parts).stopping(f"{job.id}-1"):
        await parts.training.once()
    await house.jobs.resume(ADA, job.id)
    monkeypatch.setattr(training, "PAUSE_GRACE_SECONDS", 0.0)
    async with asyncio.timeout(20):
        while f"{job.id}-2" not in [launch.name for launch in parts.training.executor.started]:  # pyright: ignore
            await parts.training.once()
    deaf.set()
    events = await told(parts, ADA, job)
    assert UNSAVED in warnings_of(events)[0]
    assert (await house.jobs.get(ADA, job.id)).status in (Status.STARTING, Status.RUNNING)


async def test_who_follows_events_is_woken_only_by_news(house: House) -> None:
    parts = house.again(InlineExecutor(played(until_stopped)))
    job = await rounds(parts, ADA, await house.submit(), Status.RUNNING)
    await parts.training.once()  # whatever it had still to tell
    await parts.db.nudged(EVENTS, within_seconds=0)
    await parts.training.once()
    assert not parts.db._nudges[EVENTS].is_set()
    await house.jobs.cancel(ADA, job.id)
    await parts.db.nudged(EVENTS, within_seconds=0)
    await rounds(parts, ADA, job, Status.CANCELLED)
    assert parts.db._nudges[EVENTS].is_set()


async def ended(house: House) -> Job:
    return await rounds(house.again(InlineExecutor(played(whole))), ADA, await house.submit(), *ENDS)


async def test_what_is_no_pause_is_refused_in_plain_words(house: House) -> None:
    done = await ended(house)
    for asked in (house.jobs.pause, house.jobs.resume):
        with pytest.raises(InvalidTransition, match="has succeeded already"):
            await asked(ADA, done.id)
    queued = await house.submit()
    with pytest.raises(InvalidTransition, match="is queued; only a paused job can go on"):
        await house.jobs.resume(ADA, queued.id)
    await house.jobs.pause(ADA, queued.id)
    assert (await house.jobs.cancel(ADA, queued.id)).status is Status.CANCELLED
    with pytest.raises(InvalidTransition, match="was cancelled already"):
        await house.jobs.pause(ADA, queued.id)


async def test_a_job_that_is_about_to_pause_can_be_cancelled(house: House) -> None:
    parts = house.again(InlineExecutor(played(in_stages)))
    job = await rounds(parts, ADA, await house.submit(), Status.RUNNING)
    await house.jobs.pause(ADA, job.id)
    cancelled = await house.jobs.cancel(ADA, job.id)
    assert (cancelled.status, cancelled.wish) == (Status.CANCELLING, None)
    with pytest.raises(InvalidTransition, match="is being cancelled; it cannot be paused"):
        await house.jobs.pause(ADA, job.id)
    assert (await rounds(parts, ADA, job, *ENDS)).status is Status.CANCELLED


async def test_a_deleted_job_is_nowhere_and_its_model_stays(house: House) -> None:
    done = await ended(house)
    deleted = await house.jobs.delete(ADA, done.id)
    assert deleted == done
    jobs: Jobs = house.jobs
    for asked in (
        jobs.get(ADA, done.id),
        jobs.events(ADA, done.id, PageRequest()),
        jobs.checkpoints(ADA, done.id, PageRequest()),
        jobs.log(ADA, done.id, offset=0, lines=5),
        jobs.follow(ADA, done.id),
        jobs.cancel(ADA, done.id),
        jobs.pause(ADA, done.id),
        jobs.resume(ADA, done.id),
        jobs.delete(ADA, done.id),
    ):
        with pytest.raises(JobNotFound):
            await asked
    assert (await jobs.list(ADA, PageRequest())).items == []
    assert (await jobs.numbered(ADA, 1, 10)).total == 0
    assert (await house.parts.services.catalog.resolve(ADA, done.model_name)).adapter is not None


async def test_a_job_that_waits_is_cancelled_when_it_is_deleted_and_a_running_one_stays(house: House) -> None:
    executor = InlineExecutor(played(until_stopped))
    parts = house.again(executor)
    running = await rounds(parts, ADA, await house.submit(), Status.RUNNING)
    with pytest.raises(InvalidTransition, match="is running; it cannot be deleted"):
        await house.jobs.delete(ADA, running.id)
    queued, paused = await house.submit(), await house.submit()
    await house.jobs.pause(ADA, paused.id)
    for job in (queued, paused):
        with pytest.raises(JobNotFound):
            await house.jobs.delete(BOB, job.id)
        gone = await house.jobs.delete(ADA, job.id)
        assert (gone.status, gone.finished_at) == (Status.CANCELLED, house.clock.now())
    await house.jobs.cancel(ADA, running.id)
    await rounds(parts, ADA, running, Status.CANCELLED)
    for _ in range(3):
        await parts.training.once()
    assert [launch.name for launch in executor.started] == [f"{running.id}-1"]
    assert [job.id for job in (await house.jobs.list(ADA, PageRequest())).items] == [running.id]
