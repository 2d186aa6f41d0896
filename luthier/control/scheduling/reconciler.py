"""The loop: claim → load → work → apply, again and again, woken by nudges."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from luthier.control.db import Database
from luthier.control.scheduling.leases import Claimable, Lease, Stale, claim, release, renewed
from luthier.core import logs
from luthier.core.errors import Unavailable

R = TypeVar("R", bound=Claimable)

_CLAIMED = 16  # rows a round
_LONGEST_WAIT_SECONDS = 300.0  # before a row that fails again and again is looked at again
_ATTEMPTS = 8  # at a row, in a row, before it is given up where giving up is possible


class Loop(ABC):
    """Does the same again and again, woken by nudges on its topic. A fault is logged, and the next round tries again."""

    topic: str
    every_seconds = 1.0

    def __init__(self, db: Database) -> None:
        self.db = db
        self.log = logs.get(self.topic)

    async def run(self) -> None:
        """Go round until cancelled."""
        while True:
            try:
                await self.once()
            except Exception:
                self.log.exception("a round failed; going on")
            await self.db.nudged(self.topic, within_seconds=self.every_seconds)

    @abstractmethod
    async def once(self) -> None:
        """One round."""


class Reconciler(Loop, Generic[R]):
    """Looks after the rows of one table. A fault on one row is logged, the row is tried again, the others go on."""

    at_once: int | None = None  # rows that are worked on side by side; None: any number

    def __init__(self, db: Database) -> None:
        super().__init__(db)
        self._failures: dict[str, int] = {}  # in a row, of rows that failed last

    @abstractmethod
    def table(self) -> type[R]: ...

    @abstractmethod
    def due(self) -> list:
        """Conditions on a row that needs work."""

    @abstractmethod
    async def work(self, lease: Lease[R]) -> None:
        """Look at one claimed row, do what is to be done outside any transaction, and apply it under the lease."""

    async def give_up(self, lease: Lease[R], fault: Exception) -> bool:
        """Bring a row to an end whose work failed again and again by a fault of ours; False where it is to be tried on."""
        return False

    async def once(self) -> None:
        """One round: claim rows that are due, and work on all of them side by side."""
        leases = await claim(self.db, self.table(), *self.due())
        done = await asyncio.gather(
            *(self._one(lease) for lease in leases), return_exceptions=True
        )  # also when cancelled
        for fault in done:
            if isinstance(fault, BaseException):
                raise fault

    async def run_side_by_side(self) -> None:
        """As `run`, for work that takes long: a round does not wait for the rows of the one before."""
        working: set[asyncio.Task[None]] = set()

        def ended(task: asyncio.Task[None]) -> None:
            if len(working) == self.at_once:  # somebody may wait for the room that it leaves
                self.db.nudge(self.topic)
            working.discard(task)

        try:
            while True:
                try:
                    free = _CLAIMED if self.at_once is None else min(self.at_once - len(working), _CLAIMED)
                    for lease in await claim(self.db, self.table(), *self.due(), limit=free) if free else []:
                        task = asyncio.create_task(self._one(lease))
                        working.add(task)
                        task.add_done_callback(ended)
                except Exception:
                    self.log.exception("a round failed; going on")
                await self.db.nudged(self.topic, within_seconds=self.every_seconds)
        finally:
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)

    async def _one(self, lease: Lease[R]) -> None:
        with logs.bind(row=lease.id):
            try:
                async with renewed(self.db, lease):
                    await self.work(lease)
            except Stale:
                self.log.warning("somebody else has this row now; what was done is dropped")
            except Exception as fault:
                await self._failed(lease, fault)
            else:
                self._failures.pop(lease.id, None)

    async def _failed(self, lease: Lease[R], fault: Exception) -> None:
        failures = self._failures[lease.id] = self._failures.get(lease.id, 0) + 1
        again = min(self.every_seconds * 2 ** (failures - 1), _LONGEST_WAIT_SECONDS)
        self.log.exception("work on a row failed", attempt=failures)
        try:
            if failures >= _ATTEMPTS and not isinstance(fault, Unavailable) and await self.give_up(lease, fault):
                self._failures.pop(lease.id, None)
                return
        except Stale:
            self.log.warning("somebody else has this row now")
            return
        self.log.info("the row will be tried again", after_seconds=again)
        await release(self.db, lease, again_after_seconds=again)
