"""Deployments: made, scaled, ended; and which of them answers for a name."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from luthier.control import audit
from luthier.control.catalog.queries import ModelQueries
from luthier.control.catalog.service import Catalog, Loadable, Servable, answers_at_once, offered
from luthier.control.db import Database
from luthier.control.deployments.lifecycle import ALIVE, CALLABLE, Status
from luthier.control.deployments.queries import DeploymentQueries
from luthier.control.deployments.tables import DeploymentRow
from luthier.control.tenancy import Principal
from luthier.core import ids
from luthier.core.clock import Clock
from luthier.core.errors import (
    AlreadyExists,
    DeploymentNotFound,
    InvalidParameter,
    InvalidTransition,
    ModelNotDeployed,
    ReplicaUnavailable,
)
from luthier.core.pages import NumberedPage, Page, PageRequest
from luthier.serving.protocol import AdapterRef

MOST_REPLICAS = 64
"""Of one deployment."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,159}")
"""Private names, which stand in addresses and are written as a request's model."""

DEPLOYMENTS = "deployments"
"""What is nudged when a deployment has to be looked at."""

_SETTLED = (Status.RUNNING, Status.FAILED)
_LOOK_AGAIN_SECONDS = 0.5  # at a deployment that is followed
_QUIET = timedelta(seconds=10)  # after which a follower is told that nothing changed

_PREFIX = "deploy"
_LIKE_AN_ID = re.compile(rf"{_PREFIX}-[0-9a-z]{{24}}")


@dataclass(frozen=True)
class Failure:
    code: str
    message: str


@dataclass(frozen=True)
class Deployment:
    """`name` or `id` is what a request writes as its model. `ready` replicas of `capacity` answer now; `method` made its model,
    None: a base model. `progress` is from 0 to 1. `error` is the last thing that went wrong, and why it has failed if it has.
    """

    id: str
    project: str
    name: str
    model: str
    method: str | None
    base_model: str
    capacity: int
    ready: int
    status: Status
    progress: float
    error: Failure | None
    created_by: str
    created_at: datetime
    changed_at: datetime


class Deployments:
    def __init__(self, db: Database, catalog: Catalog, clock: Clock) -> None:
        self.db = db
        self.catalog = catalog
        self.clock = clock

    async def context_length(self, model: Servable) -> int | None:
        """Tokens that a model can read; None when its base model is not installed any more."""
        return await self.catalog.context_length(model)

    async def create(self, who: Principal, model: str, *, capacity: int = 1, name: str | None = None) -> Deployment:
        """Have `capacity` replicas answer with a base model, a fine-tuned model or a checkpoint, under a private name.

        Returns at once; `get` tells how far it is. Without a name one is made of the model's. Raises ModelNotFound,
        InvalidParameter, and AlreadyExists for a name that leads to something else.
        """
        _check_capacity(capacity)
        found = await self.catalog.find(who, model)
        if found is None:
            raise await self.catalog.unknown(model)
        if name is not None:
            await self._check_name(who, name)
        row = self._planned(who, found, capacity, name or f"{model}-{ids.short(6)}")
        try:
            async with self.db.write(DEPLOYMENTS) as session:
                if found.method is not None and await ModelQueries(session, who).named(model) is None:
                    raise await self.catalog.unknown(model)  # it was deleted in between
                session.add(row)
                await session.flush()
                audit.note(session, who, "deployment.created", row.id, self.clock)
        except IntegrityError as taken:
            raise AlreadyExists(f"There is a deployment {row.name!r} already.", param="name") from taken
        return _deployment(row, ready=0)

    async def get(self, who: Principal, name: str) -> Deployment:
        """By its id or its name. Raises DeploymentNotFound."""
        async with self.db.read() as session:
            row = _found(await DeploymentQueries(session, who).called(name), name)
            return await _told(session, who, row)

    async def list(self, who: Principal, page: PageRequest) -> Page[Deployment]:
        """Newest first."""
        async with self.db.read() as session:
            queries = DeploymentQueries(session, who)
            found = await queries.page(page)
            ready = await queries.ready([row.id for row in found.items])
        return Page([_deployment(row, ready=ready.get(row.id, 0)) for row in found.items], found.has_more)

    async def numbered(self, who: Principal, number: int, size: int) -> NumberedPage[Deployment]:
        """What `list` lists; `number` counts pages from 1."""
        async with self.db.read() as session:
            queries = DeploymentQueries(session, who)
            found = await queries.numbered(number, size)
            ready = await queries.ready([row.id for row in found.items])
        items = [_deployment(row, ready=ready.get(row.id, 0)) for row in found.items]
        return NumberedPage(items, number, size, found.total)

    async def scale(self, who: Principal, name: str, capacity: int) -> Deployment:
        """Have so many replicas from now on; those that go end their answers first, as long as the grace lasts.

        Raises DeploymentNotFound, InvalidParameter, and InvalidTransition for one that has failed or is being deleted.
        """
        _check_capacity(capacity)
        async with self.db.write(DEPLOYMENTS) as session:
            queries = DeploymentQueries(session, who)
            row = _found(await queries.called(name), name)
            if row.status not in ALIVE:
                raise InvalidTransition(
                    f"The deployment {row.name!r} is {row.status}; it cannot be scaled.",
                    hint="Delete it, and make it anew.",
                )
            ready = (await queries.ready([row.id])).get(row.id, 0)
            if row.capacity != capacity:
                row.capacity, row.grown_from, row.failed_starts, row.start_after = capacity, ready, 0, None
                if row.status == Status.RUNNING:
                    row.status = Status.UPDATING
                self._change(session, who, row, "deployment.scaled")
            return _deployment(row, ready=ready)

    async def delete(self, who: Principal, name: str) -> Deployment:
        """End it: from the commit on nobody new is answered. Answers that are running have the grace to end.

        One that is being deleted already stays as it is. Raises DeploymentNotFound.
        """
        async with self.db.write(DEPLOYMENTS) as session:
            row = _found(await DeploymentQueries(session, who).called(name), name)
            if row.status != Status.DELETING:
                self._end(session, who, row)
            return await _told(session, who, row)

    async def delete_model(self, who: Principal, name: str) -> None:
        """End a fine-tuned model or a checkpoint with all its deployments. Raises what `Catalog.delete` raises."""

        async def end(session: AsyncSession) -> None:
            for row in await DeploymentQueries(session, who).of_model(name):
                self._end(session, who, row)

        await self.catalog.delete(who, name, DEPLOYMENTS, with_it=end)

    async def follow(self, who: Principal, name: str) -> AsyncGenerator[Deployment | None, None]:
        """A deployment as it is, and again whenever that changes, until it runs, has failed or is gone; None when nothing
        changed for a while. Raises DeploymentNotFound before this returns.
        """
        return self._followed(who, (await self.get(who, name)).id)

    async def _followed(self, who: Principal, deployment_id: str) -> AsyncGenerator[Deployment | None, None]:
        told: Deployment | None = None
        told_at = self.clock.now()
        while told is None or told.status not in _SETTLED:
            try:
                now = await self.get(who, deployment_id)
            except DeploymentNotFound:
                return
            if now != told:
                told, told_at = now, self.clock.now()
                yield told
            else:
                if self.clock.now() - told_at >= _QUIET:
                    told_at = self.clock.now()
                    yield None
                # not for a nudge: one who waits for it takes it from the others
                await self.clock.sleep(_LOOK_AGAIN_SECONDS)

    async def resolve(self, who: Principal, name: str) -> Servable:
        """What answers for a name: a model that the shared pool answers for, a deployment by its private name or id, or the
        newest running deployment of a model that the pool cannot answer for. The rows are read anew for every request, so
        what was deleted is refused at once, by every server.

        Raises ModelNotFound and ModelNotDeployed, which tell what to do, and ReplicaUnavailable while it is being deployed.
        """
        found = await self.catalog.find(who, name)
        if found is not None and (found.method is None or answers_at_once(found.method)):
            return offered(name, found)
        async with self.db.read() as session:
            queries = DeploymentQueries(session, who)
            row = await queries.called(name) if found is None else await queries.callable_of(name)
        if row is None:
            if found is None:
                raise await self.catalog.unknown(name)
            return offered(name, found)  # which raises what there is to say
        if row.status in (Status.PENDING, Status.DEPLOYING):
            raise ReplicaUnavailable(f"The deployment {row.name!r} is still {row.status}; try again.", retry_after=10)
        if row.status == Status.FAILED:
            why = (row.error or {}).get("message", "")
            raise ModelNotDeployed(
                f"The deployment {row.name!r} has failed: {why}", param="model", hint="Make it anew."
            )
        if row.status not in CALLABLE:
            raise ModelNotDeployed(f"The deployment {row.name!r} is being deleted.", param="model")
        return servable(row)

    async def _check_name(self, who: Principal, name: str) -> None:
        if not NAME.fullmatch(name) or _LIKE_AN_ID.fullmatch(name):
            raise InvalidParameter(
                "name",
                "must be 1 to 160 letters, digits, '.', '_' or '-', a letter or digit first, and not look like an id; "
                f"got {name!r}",
            )
        if await self.catalog.find(who, name) is not None:
            raise AlreadyExists(f"{name!r} is the name of a model.", param="name", hint="Choose another name.")

    def _planned(self, who: Principal, model: Loadable, capacity: int, name: str) -> DeploymentRow:
        at = self.clock.now()
        return DeploymentRow(
            id=ids.new(_PREFIX),
            project_id=who.project,
            name=name,
            model=model.model,
            method=model.method,
            base_model=model.base_model,
            weights=model.weights,
            weights_sha256=model.weights_sha256,
            artifact_sha256=model.artifact_sha256,
            tokenizer=model.tokenizer,
            renderer_sha256=model.renderer_sha256,
            adapter=model.adapter.model_dump(mode="json") if model.adapter else None,
            capacity=capacity,
            grown_from=0,
            status=Status.PENDING,
            error=None,
            failed_starts=0,
            start_after=None,
            created_by=who.id,
            created_at=at,
            changed_at=at,
        )

    def _end(self, session: AsyncSession, who: Principal, row: DeploymentRow) -> None:
        row.status = Status.DELETING
        self._change(session, who, row, "deployment.deleted")

    def _change(self, session: AsyncSession, who: Principal, row: DeploymentRow, deed: str) -> None:
        row.changed_at = self.clock.now()
        row.lease_until = None  # it need not wait for its next look
        audit.note(session, who, deed, row.id, self.clock)


def servable(row: DeploymentRow) -> Servable:
    """What its replicas load. Its weights must have been looked at."""
    assert row.weights_sha256 is not None
    return Servable(
        row.name,
        row.base_model,
        row.weights,
        row.weights_sha256,
        row.renderer_sha256 or "",
        AdapterRef.model_validate(row.adapter) if row.adapter else None,
        tokenizer=row.tokenizer,
        deployment=row.id,
    )


async def _told(session: AsyncSession, who: Principal, row: DeploymentRow) -> Deployment:
    return _deployment(row, ready=(await DeploymentQueries(session, who).ready([row.id])).get(row.id, 0))


def _deployment(row: DeploymentRow, *, ready: int) -> Deployment:
    return Deployment(
        id=row.id,
        project=row.project_id,
        name=row.name,
        model=row.model,
        method=row.method,
        base_model=row.base_model,
        capacity=row.capacity,
        ready=ready,
        status=Status(row.status),
        progress=_progress(row, ready),
        error=Failure(**row.error) if row.error else None,
        created_by=row.created_by,
        created_at=row.created_at,
        changed_at=row.changed_at,
    )


def _progress(row: DeploymentRow, ready: int) -> float:
    """The part of the replicas that are to change which have; those that stood before do not count."""
    if row.status == Status.RUNNING:
        return 1.0
    to_change = row.capacity - row.grown_from
    if row.status not in ALIVE or to_change == 0:
        return 0.0
    return min(max((ready - row.grown_from) / to_change, 0.0), 1.0)


def _check_capacity(capacity: int) -> None:
    if not 1 <= capacity <= MOST_REPLICAS:
        raise InvalidParameter("capacity", f"must be from 1 to {MOST_REPLICAS} replicas, got {capacity}")


def _found(row: DeploymentRow | None, name: str) -> DeploymentRow:
    if row is None:
        raise DeploymentNotFound(f"There is no deployment {name!r}.")
    return row
