"""Makes the answers that were asked for asynchronously, and forgets them when their time is over."""

from __future__ import annotations

from sqlalchemy import or_

from luthier.control.db import Database
from luthier.control.inference.asynchronous import KEPT, AsyncCompletions
from luthier.control.inference.queries import AsyncCompletionQueries
from luthier.control.inference.tables import AsyncCompletionRow
from luthier.control.scheduling.leases import Lease, apply, release
from luthier.control.scheduling.reconciler import Reconciler
from luthier.control.tenancy import SYSTEM
from luthier.core.errors import InternalError, LuthierError, NoCapacity, ReplicaUnavailable, Unavailable

_AGAIN_AFTER_SECONDS = 2.0
_LONGEST_WAIT_SECONDS = 60.0


class AsyncCompleter(Reconciler[AsyncCompletionRow]):
    """A completion whose model does not answer now is tried again for a day, and takes no place meanwhile; one that fails
    otherwise fails with the reason.

    An answer that was made when the process died is made again: nobody has read it.
    """

    topic = "async_completions"
    at_once = 8  # so that many of them leave room for who waits at the other end of a connection

    def __init__(self, db: Database, completions: AsyncCompletions) -> None:
        super().__init__(db)
        self.completions = completions

    async def run(self) -> None:
        await self.run_side_by_side()

    def table(self) -> type[AsyncCompletionRow]:
        return AsyncCompletionRow

    def due(self) -> list:
        has_had_its_time = AsyncCompletionRow.ended_at <= self.completions.clock.now() - KEPT
        return [or_(AsyncCompletionRow.status == "processing", has_had_its_time)]

    async def work(self, lease: Lease[AsyncCompletionRow]) -> None:
        async with self.db.read() as session:
            row = await AsyncCompletionQueries(session, SYSTEM).get(lease.id)
        if row is None:
            return
        if row.ended_at is not None:
            await self._forget(lease)
            return
        try:
            answers = await self.completions.make(row)
        except LuthierError as refused:
            waited_long = row.created_at + KEPT <= self.completions.clock.now()
            if isinstance(refused, ReplicaUnavailable | NoCapacity) and not waited_long:
                await release(self.db, lease, again_after_seconds=self._again_after(row))
                return
            if isinstance(refused, Unavailable) and not waited_long:
                raise
            async with apply(self.db, lease) as (_, row):
                self.completions.fail(row, refused)
            return
        async with apply(self.db, lease, self.topic) as (_, row):
            self.completions.succeed(row, answers)

    def _again_after(self, row: AsyncCompletionRow) -> float:
        """Seconds until a row whose model does not answer is looked at again: the longer it has waited, the longer."""
        waited = (self.completions.clock.now() - row.created_at).total_seconds()
        return min(max(waited / 10, _AGAIN_AFTER_SECONDS), _LONGEST_WAIT_SECONDS)

    async def give_up(self, lease: Lease[AsyncCompletionRow], fault: Exception) -> bool:
        async with apply(self.db, lease) as (_, row):
            self.completions.fail(row, InternalError("The server made a mistake; its log has the rest."))
        return True

    async def _forget(self, lease: Lease[AsyncCompletionRow]) -> None:
        async with self.db.write() as session:
            queries = AsyncCompletionQueries(session, SYSTEM)
            row = await queries.get(lease.id)
            if row is not None and row.lease_token == lease.token:
                await queries.forget(row)
