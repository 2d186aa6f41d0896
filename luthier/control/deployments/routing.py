"""A model → a ready replica, of its deployment or of its base in the shared pool, and the adapter to use on it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Protocol
from weakref import WeakValueDictionary

from sqlalchemy.exc import IntegrityError

from luthier.control.catalog.service import Servable
from luthier.control.db import Database
from luthier.control.deployments.lifecycle import CALLABLE
from luthier.control.deployments.queries import DeploymentQueries, ReplicaQueries
from luthier.control.deployments.tables import ReplicaRow
from luthier.control.tenancy import SYSTEM
from luthier.core import ids
from luthier.core.clock import Clock
from luthier.core.errors import ModelNotDeployed, ReplicaUnavailable
from luthier.core.recent import Recent
from luthier.serving.client import ReplicaClient
from luthier.serving.protocol import AdapterRef, Finish, GenerateRequest, TokenChunk

_NOTED_EVERY = timedelta(seconds=30)
_TRIED_AGAIN_AFTER = timedelta(minutes=5)
"""Since the last start that failed, where nobody waits for the model at the other end of a connection."""


_BUSIER_BY = 3
"""Requests that a replica may have more than the idlest before one that has asked it before goes elsewhere."""


class Generating(Protocol):
    """What of a replica's client a request needs."""

    def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenChunk | Finish]: ...


@dataclass(frozen=True)
class Route:
    """`id` is the replica's."""

    replica: Generating
    adapter: AdapterRef | None
    id: str = ""


@dataclass
class _Member:
    """A replica that is ready, when its use was noted last, and the requests that this process has with it."""

    id: str
    client: ReplicaClient
    noted_at: datetime
    in_flight: int = 0

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenChunk | Finish]:
        self.in_flight += 1
        try:
            async with aclosing(self.client.generate(request)) as answer:
                async for part in answer:
                    yield part
        finally:
            self.in_flight -= 1


class Routing:
    def __init__(self, db: Database, clock: Clock, *, ready_within_seconds: float) -> None:
        self.db = db
        self.clock = clock
        self.ready_within_seconds = ready_within_seconds
        # By deployment, or weights of the pool. No replica is stopped as idle behind a route: its use was noted no longer than
        # _NOTED_EVERY before it was given out. One that is to go is drained for longer than a route is kept.
        self._ready: Recent[str, list[_Member]] = Recent(seconds=1.0)
        self._members: WeakValueDictionary[str, _Member] = WeakValueDictionary()

    async def choose(self, model: Servable, *, waits: bool = True, like: str = "") -> Route:
        """A ready replica for the model, waiting while one starts; who does not wait is told at once that it starts.

        Requests that are `like` each other prefer the same replica, unless it is busier than others: it has read their beginning
        already. Raises ReplicaUnavailable when none becomes ready in time, with the cause where it is known. One that was ready
        within the last second may have ended since: who finds out says so to `lost` and asks again.
        """
        ready = await self._ready.get(_pool_of(model), partial(self._find_ready, model))
        if ready:
            route = await self._route(model, ready, like)
            if route is not None:
                return route
            self._ready.forget(_pool_of(model))
        return await self._await_ready(model, waits=waits, like=like)

    async def is_ready(self, model: Servable) -> bool:
        """Whether `choose` need not wait."""
        return await self._ready.get(_pool_of(model), partial(self._find_ready, model)) is not None

    async def lost(self, model: Servable, route: Route) -> None:
        """A replica that was ready does not answer: let the reconciler look at it at once."""
        self._ready.forget(_pool_of(model))
        async with self.db.write("replicas") as session:
            queries = ReplicaQueries(session, SYSTEM)
            row = await (queries.get(route.id) if route.id else queries.of_weights(model.weights))
            if row is not None and row.status == "ready":
                row.status, row.last_used_at = "starting", self.clock.now()
                row.lease_until = None  # it need not wait for its next look
        self._ready.forget(_pool_of(model))  # somebody may have read it in between

    async def _find_ready(self, model: Servable) -> list[_Member] | None:
        return [self._member(row) for row in await self._replicas(model) if row.status == "ready"] or None

    def _member(self, row: ReplicaRow) -> _Member:
        assert row.socket is not None
        member = self._members.get(row.id)
        if member is None:
            member = self._members[row.id] = _Member(row.id, ReplicaClient(row.socket), row.last_used_at)
        return member

    async def _route(self, model: Servable, ready: list[_Member], like: str) -> Route | None:
        """The replica that a hash prefers for what is alike (rendezvous hashing: when one comes or goes, few others move); None
        where it is about to end.
        """
        idlest = min(ready, key=lambda one: one.in_flight)
        preferred = max(ready, key=lambda one: hashlib.sha256(f"{one.id} {like}".encode()).digest()) if like else idlest
        chosen = preferred if preferred.in_flight <= idlest.in_flight + _BUSIER_BY else idlest
        return Route(chosen, model.adapter, chosen.id) if await self._note(chosen) else None

    async def _note(self, member: _Member) -> bool:
        """Write down that a replica is used now, where that was not done of late; False where it is not ready any more."""
        before, now = member.noted_at, self.clock.now()
        if now - before <= _NOTED_EVERY:
            return True
        member.noted_at = now  # at once, so that others who come meanwhile do not write it too
        try:
            async with self.db.write("cores") as session:
                row = await ReplicaQueries(session, SYSTEM).get(member.id)
                if row is None or row.status != "ready":
                    return False
                row.last_used_at = now
        except BaseException:
            member.noted_at = before
            raise
        return True

    async def _await_ready(self, model: Servable, *, waits: bool, like: str) -> Route:
        """Look at least once, and have a replica of the pool started where there is none."""
        deadline = time.monotonic() + (self.ready_within_seconds if waits else 0.0)
        wanted: str | None = None  # the replica that was started for us: when it goes, another one would too
        while True:
            ready = await self._find_ready(model)
            if ready and (route := await self._route(model, ready, like)) is not None:
                return route
            if model.deployment is None:
                wanted = await self._started(model, wanted, waits=waits)
            else:
                await self._check_callable(model.deployment)
            if time.monotonic() >= deadline:
                break
            await self.db.nudged("routes", within_seconds=0.25)
        raise ReplicaUnavailable(f"The model {model.name} is still being loaded; try again.", retry_after=10)

    async def _started(self, model: Servable, wanted: str | None, *, waits: bool) -> str | None:
        """The replica of the pool that is waited for, asked for anew where none is under way."""
        [row] = await self._replicas(model) or [None]
        if row is not None and row.status != "gone":
            return wanted
        if row is not None and (row.id == wanted or (not waits and self._failed_now(row))):
            raise ReplicaUnavailable(
                f"The model {model.base_model} could not be started.", hint="The server's log says why.", retry_after=30
            )
        return await self._want(model)

    async def _check_callable(self, deployment: str) -> None:
        async with self.db.read() as session:
            row = await DeploymentQueries(session, SYSTEM).get(deployment)
        if row is None or row.status not in CALLABLE:
            raise ModelNotDeployed("The deployment was ended meanwhile.", param="model")

    def _failed_now(self, row: ReplicaRow) -> bool:
        """Whether a replica that is gone was started a moment ago and never became ready: so would another one."""
        return row.last_used_at == row.created_at and self.clock.now() - row.created_at < _TRIED_AGAIN_AFTER

    async def _replicas(self, model: Servable) -> list[ReplicaRow]:
        """Of a deployment those that are not gone; of the pool the one that there is, or the last that there was."""
        async with self.db.read() as session:
            queries = ReplicaQueries(session, SYSTEM)
            if model.deployment is not None:
                return await queries.of_deployment(model.deployment)
            row = await queries.of_weights(model.weights)
        return [] if row is None else [row]

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
            theirs = await self._replicas(model)
            return theirs[0].id if theirs else None
        return row.id


def _pool_of(model: Servable) -> str:
    return model.deployment or model.weights
