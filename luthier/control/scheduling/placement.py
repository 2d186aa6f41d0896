"""Which cores runs and replicas get: what there is, divided between training and serving while both have work."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from luthier.control.db import Database
from luthier.control.deployments.queries import ReplicaQueries
from luthier.control.deployments.tables import ReplicaRow
from luthier.control.jobs.queries import JobQueries
from luthier.control.scheduling.reconciler import Loop
from luthier.control.tenancy import SYSTEM
from luthier.core.clock import Clock
from luthier.executors.base import Cores, Executor, Handle
from luthier.training.spec import TrainingSpec

BUSY_FOR = timedelta(minutes=1)
"""That a replica counts as busy after its use was noted."""
_STAYING = ("wanted", "starting", "ready")


@dataclass(frozen=True)
class Shares:
    """The cores that runs may use, and those of replicas: either no core in both, or all in both."""

    training: Cores
    serving: Cores


def divided(capacity: int, runs: Iterable[int], *, is_serving: bool) -> Shares:
    """What each side gets of so many cores. `runs` are the threads of runs that are alive; `is_serving`: a replica is busy.

    Replicas get what runs cannot use, at least half. Where there is one core, or one side has no work, nothing is divided.
    """
    every = tuple(range(capacity))
    wanted = sum(runs)
    if capacity == 1 or not wanted or not is_serving:
        return Shares(every, every)
    trained = min(wanted, capacity - _half(capacity))
    return Shares(every[:trained], every[trained:])


def fits(wanted: int, capacity: int, runs: Iterable[int], *, is_serving: bool) -> bool:
    """Whether a run of so many threads may start: beside others in what they leave of training's share, or alone."""
    others = list(runs)
    share = divided(capacity, [wanted, *others], is_serving=is_serving).training
    return not others or wanted + sum(others) <= len(share)


def replica_threads(capacity: int, replicas: int) -> int:
    """Threads of one of so many replicas: its part of half of the machine, and at least one."""
    return max(1, _half(capacity) // replicas)


def _half(capacity: int) -> int:
    return max(1, capacity // 2)


class Placement(Loop):
    """Knows all runs and replicas that are alive, says what one more gets, and moves them when that changes."""

    topic = "cores"

    def __init__(self, db: Database, executor: Executor, clock: Clock) -> None:
        super().__init__(db)
        self.executor = executor
        self.clock = clock

    async def has_room(self, spec: TrainingSpec) -> bool:
        """Whether a run may start now, beside those that are alive."""
        runs, replicas = await self._alive()
        threads = [one for one, _ in runs]
        return fits(_threads(spec), self.executor.cores, threads, is_serving=self._is_serving(replicas))

    async def shares(self) -> Shares:
        """What each side has now."""
        return self._divided(*await self._alive())

    async def replica_threads(self) -> int:
        """Threads of a replica that is about to start."""
        _, replicas = await self._alive()
        staying = [row for row in replicas if row.status in _STAYING]
        return replica_threads(self.executor.cores, max(1, len(staying)))

    async def once(self) -> None:
        """Move every process to what its side has now."""
        runs, replicas = await self._alive()
        shares = self._divided(runs, replicas)
        placed = [(handle, shares.training) for _, handle in runs]
        placed += [(row.handle, shares.serving) for row in replicas]
        for handle, cores in placed:
            await self._move(handle, cores)

    async def leave_to_runs(self) -> None:
        """Give runs every core, as no replica is left: they go on when the server has ended."""
        runs, _ = await self._alive()
        for _, handle in runs:
            await self._move(handle, tuple(range(self.executor.cores)))

    async def _move(self, handle: Handle | None, cores: Cores) -> None:
        if not handle:  # it has not been started
            return
        try:
            await asyncio.to_thread(self.executor.move, handle, cores)
        except Exception:
            self.log.exception("a process could not be moved; going on", handle=handle)

    async def _alive(self) -> tuple[list[tuple[int, Handle]], list[ReplicaRow]]:
        """Runs, by their threads and handles, and replicas, with those that are about to start."""
        async with self.db.read() as session:
            runs = await JobQueries(session, SYSTEM).runs_alive()
            replicas = await ReplicaQueries(session, SYSTEM).alive()
        return [(_threads(TrainingSpec.model_validate(spec)), run.handle) for run, spec in runs], replicas

    def _divided(self, runs: list[tuple[int, Handle]], replicas: list[ReplicaRow]) -> Shares:
        return divided(self.executor.cores, [threads for threads, _ in runs], is_serving=self._is_serving(replicas))

    def _is_serving(self, replicas: list[ReplicaRow]) -> bool:
        """Whether one of them answers, or did or was wanted a moment ago, or starts or ends."""
        since: datetime = self.clock.now() - BUSY_FOR
        return any(row.status not in ("wanted", "ready") or row.last_used_at >= since for row in replicas)


def _threads(spec: TrainingSpec) -> int:
    return spec.threads * spec.processes
