"""Deployments → as many replicas as they are to have; what becomes of them is seen in their rows."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from luthier.control.db import Database
from luthier.control.deployments.lifecycle import ALIVE, MOST_FAILED_STARTS, Status
from luthier.control.deployments.queries import DeploymentQueries, ReplicaQueries
from luthier.control.deployments.service import DEPLOYMENTS
from luthier.control.deployments.tables import DeploymentRow, ReplicaRow
from luthier.control.scheduling.leases import Lease, apply, release
from luthier.control.scheduling.reconciler import Reconciler
from luthier.control.tenancy import SYSTEM
from luthier.core import ids
from luthier.core.clock import Clock
from luthier.core.errors import InternalError, LuthierError, NotFound
from luthier.storage import Storage, digest

_LOOKED_AT_EVERY_SECONDS = 1.0  # that something has changed may be said while it is looked at, and is not heard then
_TRIED_AGAIN_AFTER = timedelta(minutes=5)  # where replicas cannot be started beside others that answer
_IN_PLACE = ("wanted", "starting", "ready")


@dataclass(frozen=True)
class _Step:
    """Replicas to take out of routing, places to fill with new ones, and the status that follows; None: as it is."""

    drain: list[ReplicaRow] = field(default_factory=list)
    fill: list[int] = field(default_factory=list)
    status: Status | None = None
    answering: int = 0
    starts_again_at: datetime | None = None

    @property
    def is_rest(self) -> bool:
        return not (self.drain or self.fill or self.status or self.starts_again_at)


class DeploymentReconciler(Reconciler[DeploymentRow]):
    topic = DEPLOYMENTS
    every_seconds = 0.5

    def __init__(self, db: Database, storage: Storage, clock: Clock) -> None:
        super().__init__(db)
        self.storage = storage
        self.clock = clock

    async def run(self) -> None:
        await self.run_side_by_side()  # the weights of a large model are read for a while

    def table(self) -> type[DeploymentRow]:
        return DeploymentRow

    def due(self) -> list:
        return [DeploymentRow.status.in_(ALIVE | {Status.DELETING})]

    async def work(self, lease: Lease[DeploymentRow]) -> None:
        async with self.db.read() as session:
            row = await DeploymentQueries(session, SYSTEM).get(lease.id)
        assert row is not None
        if row.status == Status.PENDING:
            await self._prepare(lease, row)
            return
        async with self.db.read() as session:
            replicas = await ReplicaQueries(session, SYSTEM).of_deployment(row.id)
        if self._step(row, replicas).is_rest:
            await release(self.db, lease, again_after_seconds=_LOOKED_AT_EVERY_SECONDS)
            return
        async with apply(self.db, lease, "replicas", "routes") as (session, row):
            step = self._step(row, await ReplicaQueries(session, SYSTEM).of_deployment(row.id))
            await self._take(session, row, step)
        if step.status is not None:
            self.log.info("deployment changed", deployment=row.id, status=row.status, error=row.error)

    async def _prepare(self, lease: Lease[DeploymentRow], row: DeploymentRow) -> None:
        """Look at the files of a whole model: they must be those that were published, and its weights are known by their hash."""
        weights_sha256 = row.weights_sha256
        try:
            if weights_sha256 is None:
                weights_sha256 = await asyncio.to_thread(self._weights_of, row)
        except (InternalError, NotFound) as damaged:
            async with apply(self.db, lease) as (_, row):
                if row.status == Status.PENDING:
                    _fail(row, damaged)
            return
        async with apply(self.db, lease, DEPLOYMENTS) as (_, row):
            row.weights_sha256 = weights_sha256
            if row.status == Status.PENDING:
                row.status = Status.DEPLOYING

    def _weights_of(self, row: DeploymentRow) -> str:
        folder = self.storage.folder(row.weights)
        if digest(folder) != row.artifact_sha256:
            raise InternalError(f"The files of {row.model} are not the ones it was published with.")
        return digest(folder, "*.safetensors")

    async def give_up(self, lease: Lease[DeploymentRow], fault: Exception) -> bool:
        async with apply(self.db, lease, "replicas", "routes") as (session, row):
            if row.status in ALIVE:
                _fail(row, InternalError("A fault of the server's own, again and again; its log has the rest."))
                replicas = await ReplicaQueries(session, SYSTEM).of_deployment(row.id)
                self._drain([one for one in replicas if one.status in _IN_PLACE])
        return True

    def _step(self, row: DeploymentRow, replicas: list[ReplicaRow]) -> _Step:
        """What is to be done so that what there is becomes more like what there should be."""
        placed = [one for one in replicas if one.status in _IN_PLACE]
        now = self.clock.now()
        if row.status == Status.DELETING:
            return _Step(drain=placed, status=None if replicas else Status.DELETED)
        has_given_up = row.failed_starts >= MOST_FAILED_STARTS
        if has_given_up and not any(one.status == "ready" for one in placed):
            return _Step(drain=placed, status=Status.FAILED)
        kept = sorted(placed, key=lambda one: (one.status != "ready", one.place))[: row.capacity]
        taken = {one.place for one in kept}
        free = [place for place in range(row.capacity) if place not in taken][: row.capacity - len(kept)]
        may_start = not has_given_up and (row.start_after is None or row.start_after <= now)
        answering = sum(one.status == "ready" for one in kept)
        status = (
            Status.RUNNING if answering == row.capacity else Status.UPDATING if row.status == Status.RUNNING else None
        )
        return _Step(
            drain=[one for one in placed if one not in kept],
            fill=free if may_start else [],
            status=status if status != row.status else None,
            answering=answering,
            starts_again_at=now + _TRIED_AGAIN_AFTER if has_given_up else None,
        )

    async def _take(self, session: AsyncSession, row: DeploymentRow, step: _Step) -> None:
        self._drain(step.drain)
        await session.flush()  # their places are free
        session.add_all(self._wanted(row, place) for place in step.fill)
        if step.starts_again_at is not None:
            row.failed_starts, row.start_after = 0, step.starts_again_at
        if step.status is None:
            return
        row.status = step.status
        if step.status == Status.UPDATING:
            row.grown_from = step.answering
        elif step.status == Status.RUNNING:
            row.grown_from, row.failed_starts, row.start_after, row.error = row.capacity, 0, None, None

    def _drain(self, replicas: list[ReplicaRow]) -> None:
        """Take them out of routing."""
        for one in replicas:
            one.status, one.draining_since = "draining", self.clock.now()
            if one.lease_token is None:
                one.lease_until = None

    def _wanted(self, row: DeploymentRow, place: int) -> ReplicaRow:
        assert row.weights_sha256 is not None
        at = self.clock.now()
        return ReplicaRow(
            id=ids.new("rep"),
            project_id=row.project_id,
            status="wanted",
            base_model=row.base_model,
            weights=row.weights,
            weights_sha256=row.weights_sha256,
            tokenizer=row.tokenizer,
            deployment_id=row.id,
            place=place,
            last_used_at=at,
            created_at=at,
        )


def _fail(row: DeploymentRow, why: LuthierError) -> None:
    row.status, row.error = Status.FAILED, {"code": why.code, "message": why.text}
