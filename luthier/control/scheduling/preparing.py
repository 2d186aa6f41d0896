"""Makes jobs ready to be trained: their files are read, joined, split and counted, which may take long."""

from __future__ import annotations

from luthier.control.db import Database
from luthier.control.jobs.lifecycle import Status
from luthier.control.jobs.service import CHECKING, EVENTS, Jobs, described
from luthier.control.jobs.tables import JobRow
from luthier.control.jobs.values import Error, Job
from luthier.control.scheduling.background import may_pass
from luthier.control.scheduling.leases import Lease, apply, release
from luthier.control.scheduling.reconciler import Reconciler
from luthier.control.tenancy import SYSTEM
from luthier.core.errors import InternalError, LuthierError

_SOON_SECONDS = 10.0  # a job that has waited no longer is looked at whenever something may have changed
_LONGEST_WAIT_SECONDS = 15.0


class JobPreparer(Reconciler[JobRow]):
    """A job of its own waits for nobody: files of others may be large."""

    topic = CHECKING
    at_once = 8

    def __init__(self, db: Database, jobs: Jobs) -> None:
        super().__init__(db)
        self.jobs = jobs

    async def run(self) -> None:
        await self.run_side_by_side()

    def table(self) -> type[JobRow]:
        return JobRow

    def due(self) -> list:
        return [JobRow.status == Status.CHECKING]

    async def work(self, lease: Lease[JobRow]) -> None:
        job = await self.jobs.get(SYSTEM, lease.id)
        if job.status is not Status.CHECKING:
            await release(self.db, lease)
            return
        try:
            prepared = await self.jobs.prepare(job)
        except LuthierError as refused:
            if may_pass(refused):
                raise
            await self._fail(lease, described(refused))
            return
        if prepared is None:
            await release(self.db, lease, again_after_seconds=self._again_after(job))
            return
        async with apply(self.db, lease, "jobs", CHECKING, EVENTS) as (session, row):
            if row.status in (Status.CHECKING, Status.PAUSED):
                self.jobs.keep(session, row, prepared)

    async def give_up(self, lease: Lease[JobRow], fault: Exception) -> bool:
        await self._fail(lease, described(InternalError("The server made a mistake; its log has the rest.")))
        return True

    async def _fail(self, lease: Lease[JobRow], why: Error) -> None:
        async with apply(self.db, lease, EVENTS) as (session, row):
            if row.status == Status.CHECKING:
                self.jobs.history.fail(session, row, why)

    def _again_after(self, job: Job) -> float:
        """Seconds until a job that waits for its files is looked at again: the longer it has waited, the longer."""
        waited = (self.jobs.clock.now() - job.created_at).total_seconds()
        return 0.0 if waited < _SOON_SECONDS else min(waited / 10, _LONGEST_WAIT_SECONDS)
