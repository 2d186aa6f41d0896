"""Cores are handed out: never more than there are, and to one side only while both have work."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from luthier.app import Parts
from luthier.control.deployments.queries import ReplicaQueries
from luthier.control.deployments.tables import ReplicaRow
from luthier.control.jobs.lifecycle import Status
from luthier.control.scheduling.placement import BUSY_FOR, Shares, divided, fits, replica_threads
from luthier.control.tenancy import SYSTEM
from luthier.executors.base import Cores, Handle
from luthier.serving.spec import ReplicaSpec
from luthier.testing import InlineExecutor, InlineProcess
from tests.unit.control.conftest import ADA, BOB, House
from tests.unit.control.trainers import Trainer, rounds


@pytest.mark.parametrize(
    ("capacity", "runs", "is_serving", "training", "serving"),
    [
        (2, [2], False, (0, 1), (0, 1)),
        (2, [2], True, (0,), (1,)),
        (2, [], True, (0, 1), (0, 1)),
        (8, [8], True, (0, 1, 2, 3), (4, 5, 6, 7)),
        (8, [1, 1], True, (0, 1), (2, 3, 4, 5, 6, 7)),
        (3, [9], True, (0, 1), (2,)),
        (1, [1], True, (0,), (0,)),
    ],
)
def test_cores_are_divided_while_both_sides_have_work(
    capacity: int, runs: list[int], is_serving: bool, training: tuple[int, ...], serving: tuple[int, ...]
) -> None:
    assert divided(capacity, runs, is_serving=is_serving) == Shares(training, serving)


@pytest.mark.parametrize("capacity", range(1, 9))
def test_never_more_is_handed_out_than_there_is(capacity: int) -> None:
    for runs in product(range(4), repeat=3):
        for is_serving in (False, True):
            shares = divided(capacity, runs, is_serving=is_serving)
            assert shares.training and shares.serving
            assert {*shares.training, *shares.serving} <= set(range(capacity))
            if capacity > 1 and any(runs) and is_serving:
                assert not {*shares.training} & {*shares.serving}
            alive: list[int] = []
            for wanted in filter(None, runs):  # each starts where it may
                if fits(wanted, capacity, alive, is_serving=is_serving):
                    alive.append(wanted)
            room = len(divided(capacity, alive, is_serving=is_serving).training)
            assert len(alive) <= 1 or sum(alive) <= room
    for replicas in range(1, 9):
        threads = replica_threads(capacity, replicas)
        assert threads == 1 or threads * replicas <= capacity // 2


@pytest.mark.parametrize(
    ("wanted", "capacity", "runs", "is_serving", "may"),
    [
        (2, 2, [], True, True),  # alone, on the one core that there is for it
        (9, 2, [], False, True),
        (1, 2, [1], False, True),
        (1, 2, [1], True, False),
        (2, 2, [1], False, False),
        (2, 8, [2], True, True),
        (3, 8, [2], True, False),
    ],
)
def test_a_run_starts_in_what_is_free_or_alone(
    wanted: int, capacity: int, runs: list[int], is_serving: bool, may: bool
) -> None:
    assert fits(wanted, capacity, runs, is_serving=is_serving) is may


class Stage:
    """An executor whose trainers and replicas live until they are stopped."""

    def __init__(self, cores: int) -> None:
        self.processes: dict[str, InlineProcess] = {}
        self.executor = InlineExecutor(self._play, cores=cores)

    def _play(self, process: InlineProcess) -> int:
        self.processes[process.launch.name] = process
        if process.launch.name.startswith("ftjob-"):
            trainer = Trainer(process)
            trainer.started()
            process.stopping.wait(60)
            return trainer.cancelled(0)
        process.stopping.wait(60)
        return 0

    def threads(self, replica: str) -> int:
        command = self.processes[replica].launch.command
        return ReplicaSpec.model_validate_json(Path(command[3]).read_text()).threads

    async def replicas(self, parts: Parts, *names: str) -> None:
        """Have replicas of these names started, and be ready, having been used just now."""
        at = parts.placement.clock.now()
        async with parts.db.write() as session:
            session.add_all(
                ReplicaRow(
                    id=name,
                    project_id=SYSTEM.project,
                    status="wanted",
                    base_model="toy",
                    weights=f"models/{name}",
                    weights_sha256="0" * 64,
                    last_used_at=at,
                    created_at=at,
                )
                for name in names
            )
        for name in names:
            while name not in self.processes:
                await parts.replicas.once()
                await asyncio.sleep(0.01)
        await used(parts, *names)


async def used(parts: Parts, *replicas: str) -> None:
    async with parts.db.write() as session:
        for name in replicas:
            row = await ReplicaQueries(session, SYSTEM).get(name)
            assert row is not None
            row.status, row.last_used_at = "ready", parts.placement.clock.now()


async def test_a_run_and_a_replica_have_cores_of_their_own_while_the_replica_is_busy(house: House) -> None:
    stage = Stage(cores=2)
    parts = house.again(stage.executor)
    job = await rounds(parts, ADA, await house.submit(), Status.RUNNING)
    await stage.replicas(parts, "rep-1")
    trainer, replica = stage.processes[f"{job.id}-1"], stage.processes["rep-1"]
    assert (trainer.launch.cores, replica.launch.cores) == ((0, 1), (1,))

    async def placed() -> tuple[Cores, Cores]:
        await parts.placement.once()
        return trainer.cores, replica.cores

    assert await placed() == ((0,), (1,))
    house.clock.advance(BUSY_FOR.total_seconds() + 1)
    assert await placed() == ((0, 1), (0, 1))
    await used(parts, "rep-1")
    assert await placed() == ((0,), (1,))
    await parts.services.jobs.cancel(ADA, job.id)
    await rounds(parts, ADA, job, Status.CANCELLED)
    await parts.placement.once()
    assert replica.cores == (0, 1)


async def test_a_run_that_starts_beside_a_busy_replica_keeps_its_threads_on_the_cores_that_are_free(
    house: House,
) -> None:
    stage = Stage(cores=2)
    parts = house.again(stage.executor)
    await stage.replicas(parts, "rep-1")
    first, second = await house.submit(), await house.submit(BOB)
    await rounds(parts, ADA, first, Status.RUNNING)
    trainer = stage.processes[f"{first.id}-1"]
    assert (Trainer(trainer).spec.threads, trainer.launch.cores) == (house.jobs.preparation.cores, (0,))
    assert (await parts.services.jobs.get(BOB, second.id)).status is Status.QUEUED
    await parts.services.jobs.cancel(ADA, first.id)
    await rounds(parts, BOB, second, Status.RUNNING)


async def test_replicas_share_what_serving_has(house: House) -> None:
    stage = Stage(cores=8)
    parts = house.again(stage.executor)
    await stage.replicas(parts, "rep-1")
    await stage.replicas(parts, "rep-2", "rep-3")
    assert [stage.threads(name) for name in ("rep-1", "rep-2", "rep-3")] == [4, 1, 1]


async def test_a_replica_that_ends_leaves_its_threads_to_the_next(house: House) -> None:
    stage = Stage(cores=8)
    parts = house.again(stage.executor)
    await stage.replicas(parts, "rep-1")
    async with parts.db.write() as session:
        row = await ReplicaQueries(session, SYSTEM).get("rep-1")
        assert row is not None
        row.status = "draining"
    await stage.replicas(parts, "rep-2")
    assert stage.threads("rep-2") == 4


async def test_a_process_that_cannot_be_moved_keeps_no_other_from_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(cores=2)
    parts = house.again(stage.executor)
    job = await rounds(parts, ADA, await house.submit(), Status.RUNNING)
    await stage.replicas(parts, "rep-1")
    trainer, replica = stage.processes[f"{job.id}-1"], stage.processes["rep-1"]
    move = stage.executor.move

    def refused(handle: Handle, cores: Cores) -> None:
        if handle["name"] == trainer.launch.name:
            raise RuntimeError("not this one")
        move(handle, cores)

    monkeypatch.setattr(stage.executor, "move", refused)
    house.clock.advance(BUSY_FOR.total_seconds() + 1)
    await parts.placement.once()
    assert (trainer.cores, replica.cores) == ((0, 1), (0, 1))


async def test_a_run_has_every_core_when_the_server_has_ended(house: House) -> None:
    stage = Stage(cores=2)
    parts = house.again(stage.executor)
    job = await rounds(parts, ADA, await house.submit(), Status.RUNNING)
    await stage.replicas(parts, "rep-1")
    await parts.placement.once()
    trainer = stage.processes[f"{job.id}-1"]
    assert trainer.cores == (0,)
    await parts.placement.leave_to_runs()
    assert trainer.cores == (0, 1)


@pytest.mark.parametrize("busy", [True, False])
async def test_an_answer_that_takes_longer_than_a_replica_may_be_idle_keeps_it(
    house: House, monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    stage = Stage(cores=2)
    parts = house.again(stage.executor)

    async def is_busy(row: ReplicaRow) -> bool:
        return busy

    monkeypatch.setattr(parts.replicas, "_is_busy", is_busy)
    parts.replicas.pool = replace(parts.replicas.pool, idle_after_seconds=20)
    await stage.replicas(parts, "rep-1")
    house.clock.advance(21)
    await parts.replicas.once()
    async with parts.db.read() as session:
        row = await ReplicaQueries(session, SYSTEM).get("rep-1")
    assert row is not None
    assert (row.status == "ready" and row.last_used_at == house.clock.now()) is busy
