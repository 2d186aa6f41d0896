"""A model's name → a ready replica of its base in the shared pool, and the adapter to use on it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from sqlalchemy.exc import IntegrityError

from luthier.control.catalog.service import Servable
from luthier.control.db import Database
from luthier.control.deployments.queries import ReplicaQueries
from luthier.control.deployments.tables import ReplicaRow
from luthier.control.tenancy import SYSTEM
from luthier.core import ids
from luthier.core.clock import Clock
from luthier.core.errors import ReplicaUnavailable
from luthier.core.recent import Recent
from luthier.serving.client import ReplicaClient
from luthier.serving.protocol import AdapterRef

_NOTED_EVERY = timedelta(seconds=30)
_TRIED_AGAIN_AFTER = timedelta(minutes=5)
"""Since the last start that failed, where nobody waits for the model at the other end of a connection."""


@dataclass(frozen=True)
class Route:
    replica: ReplicaClient
    adapter: AdapterRef | None


class Routing:
    def __init__(self, db: Database, clock: Clock, *, ready_within_seconds: float) -> None:
        self.db = db
        self.clock = clock
        self.ready_within_seconds = ready_within_seconds
        # By weights. No replica is stopped as idle behind a route that is kept: its use was noted no longer than
        # _NOTED_EVERY before the route was read.
        self._ready: Recent[str, ReplicaClient] = Recent(seconds=1.0)

    async def choose(self, model: Servable, *, waits: bool = True) -> Route:
        """A ready replica for the model, waiting while one starts; who does not wait is told at once that it starts.

        Raises ReplicaUnavailable when none becomes ready in time, with the cause where it is known. One that was ready within
        the last second may have ended since: who finds out says so to `lost` and asks again.
        """
        ready = await self._ready.get(model.weights, partial(self._find_ready, model))
        if ready is not None:
            return Route(ready, model.adapter)
        return await self._await_ready(model, waits=waits)

    async def lost(self, model: Servable) -> None:
        """A replica that was ready does not answer: let the reconciler look at it at once."""
        self._ready.forget(model.weights)
        async with self.db.write("replicas") as session:
            row = await ReplicaQueries(session, SYSTEM).of_weights(model.weights)
            if row is not None and row.status == "ready":
                row.status = "starting"
                row.lease_until = None  # it need not wait for its next look
        self._ready.forget(model.weights)  # somebody may have read it in between

    async def _find_ready(self, model: Servable) -> ReplicaClient | None:
        row = await self._replica(model)
        return ReplicaClient(row.socket) if row is not None and row.status == "ready" and row.socket else None

    async def _await_ready(self, model: Servable, *, waits: bool) -> Route:
        """Look at least once, and have a replica started where there is none."""
        deadline = time.monotonic() + (self.ready_within_seconds if waits else 0.0)
        wanted: str | None = None  # the replica that was started for us: when it goes, another one would too
        while True:
            row = await self._replica(model)
            if row is not None and row.status == "ready" and row.socket:
                return Route(ReplicaClient(row.socket), model.adapter)
            if row is not None and row.status == "gone" and (row.id == wanted or (not waits and self._failed_now(row))):
                raise ReplicaUnavailable(
                    f"The model {model.base_model} could not be started.",
                    hint="The server's log says why.",
                    retry_after=30,
                )
            if row is None or row.status == "gone":
                wanted = await self._want(model)
            if time.monotonic() >= deadline:
                break
            await self.db.nudged("routes", within_seconds=0.25)
        raise ReplicaUnavailable(f"The model {model.base_model} is still being loaded; try again.", retry_after=10)

    def _failed_now(self, row: ReplicaRow) -> bool:
        """Whether a replica that is gone was started a moment ago and never became ready: so would another one."""
        return row.last_used_at == row.created_at and self.clock.now() - row.created_at < _TRIED_AGAIN_AFTER

    async def _replica(self, model: Servable) -> ReplicaRow | None:
        async with self.db.read() as session:
            row = await ReplicaQueries(session, SYSTEM).of_weights(model.weights)
        if row is not None and row.status == "ready" and self.clock.now() - row.last_used_at > _NOTED_EVERY:
            async with self.db.write() as session:
                kept = await ReplicaQueries(session, SYSTEM).get(row.id)
                if kept is not None:
                    kept.last_used_at = self.clock.now()
        return row

    async def _want(self, model: Servable) -> str | None:
        """Ask for a replica and return its id; when somebody else just did, theirs will do."""
        at = self.clock.now()
        row = ReplicaRow(
            id=ids.new("rep"),
            project_id=SYSTEM.project,
            status="wanted",
            base_model=model.base_model,
            weights=model.weights,
            weights_sha256=model.weights_sha256,
            last_used_at=at,
            created_at=at,
        )
        try:
            async with self.db.write("replicas") as session:
                session.add(row)
        except IntegrityError:
            theirs = await self._replica(model)
            return theirs.id if theirs else None
        return row.id
