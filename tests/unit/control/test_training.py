"""Jobs are carried out: in order, within the cores, through crashes of trainers and schedulers, each step told once."""

from __future__ import annotations

import asyncio
import math
import threading

import pytest
from sqlalchemy import select, update

from luthier.app import Parts
from luthier.control.jobs.lifecycle import Status
from luthier.control.jobs.tables import EventRow, JobRow, RunRow
from luthier.control.scheduling import training
from luthier.control.scheduling.leases import Stale, claim
from luthier.core.errors import NoCapacity
from luthier.core.pages import PageRequest
from luthier.executors.base import Handle, Launch
from luthier.testing import InlineExecutor, InlineProcess
from luthier.training.events import segment_key
from luthier.training.methods.base import methods
from tests.unit.control.conftest import ADA, BOB, House, add
from tests.unit.control.trainers import Trainer, played, rounds, told, trained_steps, whole

ENDS = (Status.SUCCEEDED, Status.FAILED, Status.CANCELLED)


async def runs(house: House) -> list[RunRow]:
    async with house.parts.db.read() as session:
        return list(await session.scalars(select(RunRow).order_by(RunRow.attempt)))


async def test_a_job_goes_from_an_unread_file_to_a_model_that_can_be_called(house: House) -> None:
    go_on = threading.Event()

    def play(trainer: Trainer) -> int:
        trainer.started()
        trainer.steps(1, 3)
        trainer.saved(3)
        assert go_on.wait(60)
        trainer.steps(4, 6)
        trainer.saved(6)
        return trainer.succeeded()

    executor = InlineExecutor(played(play))
    parts = house.again(executor)
    content = b"".join([chunk async for chunk in await parts.services.datasets.content(ADA, (await house.upload()).id)])
    file = await add(parts, ADA, content)
    await parts.inspector.once()
    job = await house.submit(training_files=[file.id])
    assert job.status is Status.QUEUED
    for expected in (Status.STARTING,):
        await rounds(parts, ADA, job, expected)
    assert executor.started == []
    running = await rounds(parts, ADA, job, Status.RUNNING)
    assert running.started_at == house.clock.now()
    go_on.set()
    done = await rounds(parts, ADA, job, *ENDS)
    assert (done.status, done.trained_tokens, done.seconds_left) == (Status.SUCCEEDED, 60, None)
    events = await told(parts, ADA, done)
    assert trained_steps(events) == [1, 2, 3, 4, 5, 6]
    assert [event.message for event in events if event.kind == "message"] == [
        "The job was created.",
        "The job is queued.",
        "The trainer is being started.",
        "Training has started.",
        "12 rows, 50 trained tokens an epoch, 6 steps, 7 trainable parameters.",
        f"Checkpoint created at step 3: {job.model_name}-step-3",
        f"Checkpoint created at step 6: {job.model_name}-step-6",
        f"New fine-tuned model created: {job.model_name}",
        "The job has successfully completed.",
    ]
    for name, sha256 in ((job.model_name, "sha-6"), (f"{job.model_name}-step-3", "sha-3")):
        adapter = (await parts.services.catalog.resolve(ADA, name)).adapter
        assert adapter is not None
        assert adapter.sha256 == sha256
    assert [one.step for one in (await house.jobs.checkpoints(ADA, job.id, PageRequest())).items] == [6, 3]
    [run] = await runs(house)
    assert run.ended_at is not None


@pytest.mark.parametrize(("method", "must"), [("lora", False), ("full", True)])
async def test_a_model_that_must_be_deployed_first_is_told_with_that(house: House, method: str, must: bool) -> None:
    parts = house.again(InlineExecutor(played(whole)))
    job = await rounds(parts, ADA, await house.submit(method={"name": method}), *ENDS)
    messages = [event.message for event in await told(parts, ADA, job)]
    named = [message for message in messages if message.startswith(("Checkpoint created", "New fine-tuned model"))]
    assert len(named) >= 2
    assert {message.endswith("; it must be deployed before it answers") for message in named} == {must}


async def test_a_job_whose_method_is_not_installed_any_more_ends_all_the_same(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await house.submit()
    monkeypatch.setattr(methods, "_loaded", {})
    monkeypatch.setattr(methods, "_files", list)
    parts = house.again(InlineExecutor(played(whole)))
    done = await rounds(parts, ADA, job, *ENDS)
    assert done.status is Status.SUCCEEDED
    messages = [event.message for event in await told(parts, ADA, done)]
    assert sum(message.endswith("; it must be deployed before it answers") for message in messages) >= 2


async def test_a_job_tells_its_best_checkpoint_and_what_its_objective_measures(house: House) -> None:
    def play(trainer: Trainer) -> int:
        trainer.started()
        trainer.steps(1, 3)
        trainer.evaluated(3, reward_margin=0.25)
        trainer.saved(3, is_best=True)
        trainer.steps(4, 6)
        trainer.saved(6)
        return trainer.succeeded(best=3)

    parts = house.again(InlineExecutor(played(play)))
    job = await rounds(parts, ADA, await house.submit(), *ENDS)
    events = await told(parts, ADA, job)
    messages = [event.message for event in events]
    assert f"Checkpoint created at step 3: {job.model_name}-step-3 (the best so far)" in messages
    assert f"New fine-tuned model created: {job.model_name} (the best checkpoint, of step 3)" in messages
    assert [event.data["reward_margin"] for event in events if event.data and event.data.get("eval_loss")] == [0.25]
    adapter = (await parts.services.catalog.resolve(ADA, job.model_name)).adapter
    assert adapter is not None
    assert (adapter.sha256, adapter.identity) == ("sha-3", "identity-3")


async def test_a_lost_trainer_is_started_again_and_each_step_is_listed_once_and_in_order(house: House) -> None:
    def play(trainer: Trainer) -> int:
        if trainer.attempt == 1:
            trainer.started()
            trainer.steps(1, 3)
            trainer.saved(3)
            trainer.steps(4, 5)
            return -9
        trainer.started(step=3)
        trainer.steps(4, 6)
        trainer.saved(6)
        return trainer.succeeded()

    executor = InlineExecutor(played(play))
    parts = house.again(executor)
    job = await rounds(parts, ADA, await house.submit(), *ENDS)
    assert job.status is Status.SUCCEEDED
    assert [launch.name for launch in executor.started] == [f"{job.id}-1", f"{job.id}-2"]
    events = await told(parts, ADA, job)
    assert trained_steps(events) == [1, 2, 3, 4, 5, 6]
    messages = [event.message for event in events]
    assert [m for m in messages if "signal 9" in m and m.endswith("the job goes on from its last checkpoint.")]
    assert "Resumed from the checkpoint of step 3." in messages
    assert [one.step for one in (await house.jobs.checkpoints(ADA, job.id, PageRequest())).items] == [6, 3]


async def test_a_checkpoint_that_was_taken_again_is_listed_once_and_both_may_be_called(house: House) -> None:
    def play(trainer: Trainer) -> int:
        trainer.started()
        trainer.steps(1, 3)
        trainer.saved(3)
        if trainer.attempt == 1:
            return -9
        trainer.steps(4, 6)
        return trainer.succeeded()

    parts = house.again(InlineExecutor(played(play)))
    job = await rounds(parts, ADA, await house.submit(), *ENDS)
    assert trained_steps(await told(parts, ADA, job)) == [1, 2, 3, 4, 5, 6]
    [checkpoint] = (await house.jobs.checkpoints(ADA, job.id, PageRequest())).items
    assert checkpoint.model_name == f"{job.model_name}-step-3-2"
    for name in (f"{job.model_name}-step-3", f"{job.model_name}-step-3-2"):
        assert (await parts.services.catalog.resolve(ADA, name)).adapter is not None


@pytest.mark.parametrize(("exit_code", "said"), [(-4, "signal 4"), (0, "exit code 0"), (3, "exit code 3")])
async def test_a_job_whose_trainer_is_lost_every_time_fails(house: House, exit_code: int, said: str) -> None:
    executor = InlineExecutor(lambda process: exit_code)
    job = await rounds(house.again(executor), ADA, await house.submit(), *ENDS)
    assert job.error is not None
    assert (job.status, job.error.code) == (Status.FAILED, "run_lost")
    assert said in job.error.message
    assert "3 attempts" in job.error.message
    assert [launch.name for launch in executor.started] == [f"{job.id}-{attempt}" for attempt in (1, 2, 3)]


async def test_what_a_run_says_of_its_end_is_what_the_job_says(house: House) -> None:
    executor = InlineExecutor(played(lambda trainer: trainer.failed("loss_diverged", "The loss became nan at step 1.")))
    parts = house.again(executor)
    job = await rounds(parts, ADA, await house.submit(), *ENDS)
    assert job.error is not None
    assert (job.error.code, job.error.message) == ("loss_diverged", "The loss became nan at step 1.")
    last = (await told(parts, ADA, job))[-1]
    assert (last.level, last.message) == ("error", "The job failed: The loss became nan at step 1.")
    assert len(executor.started) == 1


async def test_a_run_that_somebody_else_stopped_goes_on(house: House) -> None:
    def play(trainer: Trainer) -> int:
        if trainer.attempt == 1:
            trainer.started()
            trainer.steps(1, 2)
            return trainer.cancelled(2)
        return whole(trainer)

    parts = house.again(InlineExecutor(played(play)))
    job = await rounds(parts, ADA, await house.submit(), *ENDS)
    assert job.status is Status.SUCCEEDED
    assert trained_steps(await told(parts, ADA, job)) == [1, 2, 3, 4, 5, 6]


def until_stopped(trainer: Trainer) -> int:
    trainer.started()
    trainer.steps(1, 3)
    trainer.saved(3)
    assert trainer.process.stopping.wait(60)
    return trainer.cancelled(3)


async def test_a_running_job_is_cancelled_and_keeps_its_checkpoints(house: House) -> None:
    parts = house.again(InlineExecutor(played(until_stopped)))
    job = await rounds(parts, ADA, await house.submit(), Status.RUNNING)
    assert (await house.jobs.cancel(ADA, job.id)).status is Status.CANCELLING
    assert (await house.jobs.cancel(ADA, job.id)).status is Status.CANCELLING
    assert (await rounds(parts, ADA, job, *ENDS)).status is Status.CANCELLED
    [checkpoint] = (await house.jobs.checkpoints(ADA, job.id, PageRequest())).items
    assert (await parts.services.catalog.resolve(ADA, checkpoint.model_name)).adapter is not None


async def test_a_trainer_that_does_not_hear_is_ended_by_force(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    deaf = threading.Event()

    def play(trainer: Trainer) -> int:
        trainer.started()
        deaf.wait(60)
        return 0

    monkeypatch.setattr(training, "GRACE_SECONDS", 0.0)
    parts = house.again(InlineExecutor(played(play)))
    job = await rounds(parts, ADA, await house.submit(), Status.RUNNING)
    await house.jobs.cancel(ADA, job.id)
    assert (await rounds(parts, ADA, job, *ENDS)).status is Status.CANCELLED
    deaf.set()


async def test_a_job_that_ended_before_it_heard_of_the_cancel_has_succeeded(house: House) -> None:
    def play(trainer: Trainer) -> int:
        trainer.started()
        assert trainer.process.stopping.wait(60)
        trainer.steps(1, 6)
        return trainer.succeeded()

    parts = house.again(InlineExecutor(played(play)))
    job = await rounds(parts, ADA, await house.submit(), Status.RUNNING)
    await house.jobs.cancel(ADA, job.id)
    assert (await rounds(parts, ADA, job, *ENDS)).status is Status.SUCCEEDED


class Death(BaseException):
    """What no `except Exception` survives."""


class Dying(InlineExecutor):
    """The scheduler dies at the first start, `before` the process is there or after it."""

    def __init__(self, before: bool) -> None:
        super().__init__(played(whole))
        self.before = before
        self.deaths = 0

    def start(self, launch: Launch) -> Handle:
        handle = {} if self.before and not self.deaths else super().start(launch)
        self.deaths += 1
        if self.deaths == 1:
            raise Death
        return handle


@pytest.mark.parametrize("before", [True, False])
async def test_a_scheduler_that_dies_while_it_starts_a_process_starts_it_once_in_all(
    house: House, before: bool
) -> None:
    executor = Dying(before)
    job = await house.submit()
    first = house.again(executor)
    await first.training.once()
    with pytest.raises(Death):
        await first.training.once()
    [run] = await runs(house)  # written before anything was started
    assert (run.attempt, run.handle) == (1, {})
    async with house.parts.db.write() as session:  # its lease runs out
        await session.execute(update(JobRow).values(lease_until=0.0))
    done = await rounds(house.again(executor), ADA, job, *ENDS)
    assert done.status is Status.SUCCEEDED
    assert [launch.name for launch in executor.started] == [f"{job.id}-1"]


class Refusing(InlineExecutor):
    """Refuses to start anything, the first five times or always."""

    def __init__(self, fault: Exception, times: float) -> None:
        super().__init__(played(whole))
        self.fault = fault
        self.times = times

    def start(self, launch: Launch) -> Handle:
        self.times -= 1
        if self.times >= 0:
            raise self.fault
        return super().start(launch)


async def test_an_executor_that_has_no_room_now_is_asked_again(house: House) -> None:
    parts = house.again(Refusing(NoCapacity("All devices are taken."), times=5))
    parts.training.every_seconds = 0.0
    job = await rounds(parts, ADA, await house.submit(), *ENDS)
    assert job.status is Status.SUCCEEDED
    assert [run.attempt for run in await runs(house)] == [1]


async def test_an_executor_that_cannot_start_at_all_fails_the_job_after_every_attempt(house: House) -> None:
    parts = house.again(Refusing(PermissionError("not allowed"), times=math.inf))
    job = await rounds(parts, ADA, await house.submit(), *ENDS)
    assert job.error is not None
    assert (job.status, job.error.code) == (Status.FAILED, "run_lost")
    assert "not allowed" not in job.error.message  # that is the log's
    assert [run.attempt for run in await runs(house)] == [1, 2, 3]


async def starts(parts: Parts, executor: InlineExecutor, count: int) -> list[str]:
    """Go round until so many processes were started, and on for a while; the names of all that were, by their age.

    Jobs get their cores one by one, the oldest first; processes of two that have theirs are started beside each other.
    """
    async with asyncio.timeout(60):
        while len(executor.started) < count:
            await parts.training.once()
            await asyncio.sleep(0.01)
    for _ in range(5):
        await parts.training.once()
        await asyncio.sleep(0.01)
    return sorted(launch.name for launch in executor.started)


@pytest.mark.parametrize(("threads", "together"), [(1, 2), (2, 1), (5, 1)])
async def test_jobs_start_oldest_first_and_as_many_as_the_cores_hold(house: House, threads: int, together: int) -> None:
    executor = InlineExecutor(played(until_stopped), cores=2)
    parts = house.again(executor)
    house.jobs.preparation.cores = threads
    jobs = [(who, await house.submit(who)) for who in (ADA, BOB, ADA)]
    names = [f"{job.id}-1" for _, job in jobs]
    assert await starts(parts, executor, together) == names[:together]
    assert {launch.cores for launch in executor.started} == {(0, 1)}
    who, oldest = jobs[0]
    await house.jobs.cancel(who, oldest.id)
    await rounds(parts, who, oldest, Status.CANCELLED)
    assert await starts(parts, executor, together + 1) == names[: together + 1]
    for who, job in jobs[1:]:
        await house.jobs.cancel(who, job.id)
        await rounds(parts, who, job, Status.CANCELLED)


async def test_a_scheduler_that_lost_its_lease_applies_nothing(house: House) -> None:
    executor = InlineExecutor(played(whole))
    slow, quick = house.again(executor), house.again(executor)
    job = await rounds(slow, ADA, await house.submit(), Status.STARTING)
    [lost] = await claim(slow.db, JobRow, JobRow.id == job.id)
    async with slow.db.write() as session:
        await session.execute(update(JobRow).values(lease_until=0.0))
    done = await rounds(quick, ADA, job, *ENDS)
    before = [event.id for event in await told(quick, ADA, done)]
    with pytest.raises(Stale):
        await slow.training.work(lost)
    assert await house.jobs.get(ADA, job.id) == done
    assert [event.id for event in await told(quick, ADA, done)] == before
    assert len(executor.started) == 1


async def test_a_fault_on_one_job_leaves_the_others_alone(house: House) -> None:
    def play(trainer: Trainer) -> int:
        if trainer.spec.job == broken.id:
            trainer.storage.write(segment_key(trainer.spec.run_key, 1, 0), b"not an event\n")
            return 0
        return whole(trainer)

    parts = house.again(InlineExecutor(played(play)))
    house.jobs.preparation.cores = 1
    broken, good = await house.submit(), await house.submit()
    assert (await rounds(parts, ADA, good, *ENDS)).status is Status.SUCCEEDED
    assert (await house.jobs.get(ADA, broken.id)).status is Status.STARTING


async def test_what_was_superseded_is_kept_but_not_shown(house: House) -> None:
    def play(trainer: Trainer) -> int:
        trainer.started()
        trainer.steps(1, 2)
        return -9

    parts = house.again(InlineExecutor(played(play)))
    job = await rounds(parts, ADA, await house.submit(), *ENDS)
    assert trained_steps(await told(parts, ADA, job)) == [1, 2]
    async with parts.db.read() as session:
        steps = await session.scalars(select(EventRow.step).where(EventRow.kind == "metrics").order_by(EventRow.id))
        assert list(steps) == [1, 2, 1, 2, 1, 2]
    assert "It begins again: there is no checkpoint that it could go on from." in [
        event.message for event in await told(parts, ADA, job)
    ]


async def test_a_real_run_in_a_thread_trains_the_toy(house: House) -> None:
    pytest.importorskip("torch")
    from luthier.training.run import run

    def train(process: InlineProcess) -> int:
        trainer = Trainer(process)
        run(trainer.spec, trainer.storage, attempt=trainer.attempt, stop=process.stopping)
        return 0

    parts = house.again(InlineExecutor(train))
    job = await rounds(parts, ADA, await house.submit(epochs=2, seed=1), *ENDS, within_seconds=110)
    assert job.status is Status.SUCCEEDED, job.error
    assert job.spec is not None
    events = await told(parts, ADA, job)
    assert trained_steps(events) == [1, 2, 3, 4, 5, 6]
    adapter = (await parts.services.catalog.resolve(ADA, job.model_name)).adapter
    assert adapter is not None
    assert {path.name for path in parts.storage.folder(adapter.key).iterdir()} >= {"adapter_model.safetensors"}
