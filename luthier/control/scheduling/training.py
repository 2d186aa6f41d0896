"""Jobs → runs: starts the trainers of jobs that are ready, follows what they tell, starts lost ones again."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncSession

from luthier.control.db import Database
from luthier.control.jobs.lifecycle import TERMINAL, Status, Wish
from luthier.control.jobs.queries import JobQueries
from luthier.control.jobs.service import EVENTS, Jobs
from luthier.control.jobs.tables import JobRow, RunRow
from luthier.control.jobs.values import Error, Job
from luthier.control.scheduling.leases import Lease, apply, release
from luthier.control.scheduling.placement import Placement
from luthier.control.scheduling.reconciler import Reconciler
from luthier.control.tenancy import SYSTEM
from luthier.core import ids
from luthier.core.clock import Clock
from luthier.core.errors import AlreadyExists, LuthierError, RunLost, Unavailable
from luthier.executors.base import Cores, Handle, Launch, State
from luthier.storage import Storage
from luthier.training.events import Cancelled, RunEvent, attempts_key, pause_key, read_events
from luthier.training.spec import TrainingSpec

GRACE_SECONDS = 6.0
"""How long a trainer that was asked to stop may take; then it is killed. A cancelled job ends within ten seconds."""

PAUSE_GRACE_SECONDS = 60.0
"""How long one may take that saves a checkpoint before; one that is killed goes on from the checkpoint before that."""


@dataclass(frozen=True)
class Trainers:
    """How a trainer is started: the interpreter that has the engine, the storage it shares with us, tries in all.

    `cache` is a folder for what does not lie on this machine.
    """

    python: str
    storage_url: str
    cache: Path
    attempts: int


class TrainingReconciler(Reconciler[JobRow]):
    topic = "jobs"

    def __init__(
        self, db: Database, jobs: Jobs, storage: Storage, placement: Placement, trainers: Trainers, clock: Clock
    ) -> None:
        super().__init__(db)
        self.jobs = jobs
        self.storage = storage
        self.placement = placement
        self.executor = placement.executor
        self.trainers = trainers
        self.clock = clock

    def table(self) -> type[JobRow]:
        return JobRow

    def due(self) -> list:
        return [JobRow.status.not_in(TERMINAL | {Status.CHECKING, Status.PAUSED})]

    async def work(self, lease: Lease[JobRow]) -> None:
        job = await self.jobs.get(SYSTEM, lease.id)
        if job.status is Status.QUEUED:
            await self._place(lease, job)
        else:
            await self._follow(lease, job)

    async def _place(self, lease: Lease[JobRow], job: Job) -> None:
        """Start the oldest queued job when its cores are free. The run's row is written before the process is started."""
        assert job.spec is not None
        async with self.db.read() as session:
            queued = await JobQueries(session, SYSTEM).in_status({Status.QUEUED})
        oldest = min((row.id for row in queued), default=None)
        if oldest != job.id or not await self.placement.has_room(job.spec):
            await release(self.db, lease)
            return
        async with apply(self.db, lease, "jobs", EVENTS) as (session, row):
            if row.status != Status.QUEUED:
                return
            last = await JobQueries(session, SYSTEM).last_run(job.id)
            session.add(
                RunRow(
                    id=ids.new("run"),
                    project_id=row.project_id,
                    job_id=row.id,
                    attempt=last.attempt + 1 if last else 1,
                    handle={},
                    last_event=-1,
                    is_pausing=False,
                    started_at=self.clock.now(),
                    ended_at=None,
                )
            )
            self.jobs.history.move(session, row, Status.STARTING)

    async def _follow(self, lease: Lease[JobRow], job: Job) -> None:
        async with self.db.read() as session:
            run = await JobQueries(session, SYSTEM).last_run(job.id)
        assert run is not None and job.spec is not None
        try:
            handle = run.handle or await self._started(job.spec, run.attempt)
        except Unavailable:
            raise  # no device or no storage now says nothing about the trainer: it is tried again
        except (LuthierError, OSError) as fault:
            self.log.exception("a trainer could not be started")
            async with apply(self.db, lease, EVENTS) as (session, row):
                await self._lost(session, row, f"could not be started: {type(fault).__name__}")
            return
        seen = await asyncio.to_thread(
            self.executor.observe, handle
        )  # first: what a process told before it ended is there then
        told = await asyncio.to_thread(read_events, self.storage, job.spec.run_key, run.attempt, run.last_event)
        is_pausing = run.is_pausing
        if seen.state is State.RUNNING and job.status is Status.CANCELLING:
            await asyncio.to_thread(lambda: self.executor.stop(handle, grace_seconds=GRACE_SECONDS))
        elif seen.state is State.RUNNING and (job.wish is Wish.PAUSE or is_pausing):
            # to the end, even where the wish was taken back meanwhile: it has begun to stop
            await asyncio.to_thread(self._pause, job.spec, run.attempt, handle)
            is_pausing = True
        gave_word = seen.state is State.ENDED and await asyncio.to_thread(self._gave_word, job.spec, run, told)
        news = (EVENTS,) if told or seen.state is State.ENDED else ()
        async with apply(self.db, lease, *news) as (session, row):
            run = await JobQueries(session, SYSTEM).last_run(job.id)
            assert run is not None
            run.handle = handle
            run.is_pausing = is_pausing
            for event in told:
                await self.jobs.recorder.record(session, row, run, event)
                run.last_event = event.number
            if row.status not in TERMINAL and seen.state is State.ENDED:
                await self._ended(session, row, run, _how(seen.exit_code), gave_word=gave_word)
            if row.status in TERMINAL:
                run.ended_at = self.clock.now()

    def _gave_word(self, spec: TrainingSpec, run: RunRow, told: list[RunEvent]) -> bool:
        """Whether the last that a run told is that it stopped as it was asked to, having saved what there was to save."""
        last = told or read_events(self.storage, spec.run_key, run.attempt, run.last_event - 1)
        return bool(last) and isinstance(last[-1], Cancelled)

    async def _started(self, spec: TrainingSpec, attempt: int) -> Handle:
        return await asyncio.to_thread(self._start, spec, attempt, (await self.placement.shares()).training)

    def _start(self, spec: TrainingSpec, attempt: int, cores: Cores) -> Handle:
        """Start the trainer of an attempt; again is harmless."""
        key = f"{spec.run_key}/spec.json"
        self.storage.write(key, spec.model_dump_json(indent=2).encode())
        try:  # what tells an older attempt, should it still live, that it is not wanted any more
            self.storage.create(f"{attempts_key(spec.run_key)}/{attempt:04d}", b"{}\n")
        except AlreadyExists:
            self.log.debug("this attempt was begun before", job=spec.job, attempt=attempt)
        program = [self.trainers.python, "-m", "luthier.training.program", key, "--attempt", str(attempt)]
        places = ["--storage", self.trainers.storage_url, "--cache", str(self.trainers.cache)]
        return self.executor.start(
            Launch(
                name=f"{spec.job}-{attempt}",
                command=[*program, *places],
                cores=cores,
            )
        )

    def _pause(self, spec: TrainingSpec, attempt: int, handle: Handle) -> None:
        """Ask a trainer to save a checkpoint and end; again is harmless."""
        self.storage.write(pause_key(spec.run_key, attempt), b"{}\n")  # first: it looks there once it is asked to stop
        self.executor.stop(handle, grace_seconds=PAUSE_GRACE_SECONDS)

    async def _lost(self, session: AsyncSession, row: JobRow, how: str) -> None:
        """There is no process; nothing is known of its end."""
        run = await JobQueries(session, SYSTEM).last_run(row.id)
        assert run is not None
        await self._ended(session, row, run, how)

    async def _ended(
        self, session: AsyncSession, row: JobRow, run: RunRow, how: str, *, gave_word: bool = False
    ) -> None:
        """The process is gone and its last event is not a last word of the job. `gave_word`: it said that it stopped."""
        run.ended_at = self.clock.now()
        history = self.jobs.history
        if row.status == Status.CANCELLING:
            history.move(session, row, Status.CANCELLED)
            return
        if (row.wish == Wish.PAUSE or run.is_pausing) and not gave_word:
            told = (
                f"The trainer {how} and did not save in time for the pause; the job goes on from its last checkpoint."
            )
            history.tell(session, row, told, level="warn")
        if row.wish == Wish.PAUSE:
            history.move(session, row, Status.PAUSED)
            return
        if run.is_pausing:
            history.move(session, row, Status.QUEUED, "The job had stopped for its pause already; it goes on.")
            return
        row.lost_runs += 1
        if row.lost_runs < self.trainers.attempts:
            history.move(session, row, Status.QUEUED, f"The trainer {how}; the job goes on from its last checkpoint.")
        else:
            told = (
                f"The trainer {how}, in the last of {row.lost_runs} attempts. Where memory may have been short, ask for shorter "
                "rows or a smaller batch; the operator finds the trainer's log beside the server's."
            )
            history.fail(session, row, Error(code=RunLost.code, message=told))


def _how(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        often = ", often for lack of memory" if exit_code == -signal.SIGKILL else ""
        return f"was ended by the system (signal {-exit_code}{often})"
    return "ended without a last word" + (f" (exit code {exit_code})" if exit_code is not None else "")
