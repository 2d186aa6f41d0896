"""Wanted replicas → running ones; a deployment's are ready when they have answered; idle ones, and those that drain, away."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from luthier.control.db import Database
from luthier.control.deployments.lifecycle import ALIVE, MOST_FAILED_STARTS
from luthier.control.deployments.queries import DeploymentQueries, ReplicaQueries
from luthier.control.deployments.service import DEPLOYMENTS, servable
from luthier.control.deployments.tables import DeploymentRow, ReplicaRow
from luthier.control.scheduling.leases import Lease, apply, release
from luthier.control.scheduling.placement import Placement
from luthier.control.scheduling.reconciler import Reconciler
from luthier.control.tenancy import SYSTEM
from luthier.core.clock import Clock
from luthier.core.errors import (
    InternalError,
    InvalidRequest,
    LuthierError,
    NoCapacity,
    ReplicaUnavailable,
    Unavailable,
)
from luthier.executors.base import Cores, Handle, Launch, State
from luthier.serving.address import KEY_VARIABLE, Address, TcpAddress, announced, parse
from luthier.serving.client import ReplicaClient
from luthier.serving.protocol import GenerateRequest, Health, Sampling, Turn
from luthier.serving.spec import ReplicaSpec
from luthier.training.precision import precision

GRACE_SECONDS = 10.0
_LOOKED_AT_EVERY_SECONDS = 5.0  # a replica that is ready; who finds it silent says so by itself
_LIVE = ("wanted", "starting", "ready", "draining", "stopping")
_NOTED_SECONDS = 30.0  # after which it is asked whether it still answers; routing notes only that it is asked
_OWN_GRACE_SECONDS = 5.0  # that a replica gives to running answers when it is asked to stop
_ROUTED_FOR_SECONDS = 2.0  # after a replica began to drain a request may still be on its way to it
_ANSWERS_WITHIN_SECONDS = 60.0  # the request that shows that a replica is ready
_SILENT_SECONDS = 60.0  # that a process lives and does not answer, which has answered before
_STARTS_WITHIN_SECONDS = 3600.0  # from when it was asked for to its first answer
_REASON = re.compile(r"cannot serve.*?reason=('.*?'|\".*?\"|\S+)")


@dataclass(frozen=True)
class Pool:
    """How replicas are started. `folder` keeps their specs; sockets lie in a short folder of their own.

    `options` are the backend's. `engines` is where engines with environments of their own lie. A replica that is to go has
    `grace_seconds` for its answers where its deployment ends, else `answer_within_seconds`, the longest that one may take.
    """

    python: str
    storage_url: str
    cache: Path
    backend: str
    options: dict[str, Any]
    engines: Path
    adapters: int
    idle_after_seconds: float
    grace_seconds: float
    answer_within_seconds: float
    folder: Path
    listen: str = "unix"
    cache_bytes: int | None = None

    def __post_init__(self) -> None:
        """Raises InvalidParameter where no replica could listen."""
        self.address("rep-" + "x" * 24)

    def address(self, replica: str, key: str = "") -> Address:
        if self.listen == "unix":
            return parse(str(self.socket(replica)))
        address = parse(f"{self.listen}:0")
        assert isinstance(address, TcpAddress)
        return replace(address, key=key)

    def key(self, replica: str) -> str:
        """What a caller of that replica must know. It is made once, so that a start which is tried again has the same."""
        path = self.folder / f"{replica}.key"
        if not path.exists():
            handle, partial = tempfile.mkstemp(dir=self.folder)  # only its owner can read it
            with os.fdopen(handle, "w") as file:
                file.write(secrets.token_hex(32))
            os.replace(partial, path)
        return path.read_text()

    def socket(self, replica: str) -> Path:
        """A Unix socket's path has room for about a hundred bytes, so it does not lie in the data folder."""
        mark = hashlib.sha256(str(self.folder.absolute()).encode()).hexdigest()[:8]
        return Path(tempfile.gettempdir()) / f"luthier-{os.getuid()}-{mark}" / f"{replica[-12:]}.sock"


class ReplicaReconciler(Reconciler[ReplicaRow]):
    topic = "replicas"
    every_seconds = 0.5

    def __init__(self, db: Database, placement: Placement, pool: Pool, clock: Clock) -> None:
        super().__init__(db)
        self.placement = placement
        self.executor = placement.executor
        self.pool = pool
        self.clock = clock

    def table(self) -> type[ReplicaRow]:
        return ReplicaRow

    def due(self) -> list:
        return [ReplicaRow.status.in_(_LIVE)]

    async def run(self) -> None:
        await self.run_side_by_side()  # one that answers slowly keeps no other waiting

    async def work(self, lease: Lease[ReplicaRow]) -> None:
        async with self.db.read() as session:
            row = await ReplicaQueries(session, SYSTEM).get(lease.id)
        assert row is not None
        if row.status == "wanted" or (row.handle is None and self._spec_file(row.id).exists()):
            await self._start(lease, row)  # or find what was started, and not written down before it was taken away
            return
        if row.handle is None:  # it was never started
            await self._gone(lease, row)
            return
        handle = row.handle
        seen = await asyncio.to_thread(self.executor.observe, handle)
        if seen.state is State.ENDED:
            await self._gone(lease, row)
        elif row.status == "starting":
            await self._await_ready(lease, row)
        elif row.status == "stopping":
            await asyncio.to_thread(lambda: self.executor.stop(handle, grace_seconds=GRACE_SECONDS))
            await release(self.db, lease)
        elif row.status == "draining":
            if not await self._has_drained(row):
                await release(self.db, lease)
                return
            async with apply(self.db, lease, "replicas") as (_, row):
                row.status = "stopping"
        elif self._unused_seconds(row) > self._asked_after_seconds and await self._is_busy(row):
            async with apply(self.db, lease) as (_, row):
                row.last_used_at = self.clock.now()
        elif self._idle(row):
            async with apply(self.db, lease, "replicas") as (_, row):  # first: from now on no request is sent there
                if row.status == "ready" and self._idle(row):
                    row.status = "stopping"
        else:
            await release(self.db, lease, again_after_seconds=_LOOKED_AT_EVERY_SECONDS)

    async def give_up(self, lease: Lease[ReplicaRow], fault: Exception) -> bool:
        """One whose process cannot be started is gone, and its deployment is told; one that has a process is tried on."""
        async with self.db.read() as session:
            row = await ReplicaQueries(session, SYSTEM).get(lease.id)
        if row is None or row.handle is not None:
            return False
        async with apply(self.db, lease, "routes", DEPLOYMENTS, first=_deployment_of(row)) as (session, kept):
            was, kept.status = kept.status, "gone"
            deployment = await self._hurry(session, kept)
            if deployment is not None and was == "wanted":
                why = ReplicaUnavailable("Its process could not be started; the server's log says why.")
                _count_failed_start(deployment, why)
        (self.pool.folder / f"{row.id}.key").unlink(missing_ok=True)
        return True

    async def mark_all_stopping(self) -> None:
        """Say before a shutdown what `stop_all` will do: whoever looks next knows that they did not end by themselves.

        To be called while the loops still run: one that is cancelled within a write may keep SQLite locked for others.
        """
        async with self.db.write() as session:
            rows = ReplicaQueries(session, SYSTEM).visible(ReplicaRow).where(*self.due())
            for row in await session.scalars(rows):
                if row.handle:
                    row.status = "stopping"

    async def stop_all(self, *, within_seconds: float = GRACE_SECONDS) -> None:
        """End every replica, as at a shutdown of the server."""
        async with self.db.read() as session:
            rows = list(await session.scalars(ReplicaQueries(session, SYSTEM).visible(ReplicaRow).where(*self.due())))
        handles = [row.handle for row in rows if row.handle]
        for handle in handles:
            self.executor.stop(handle, grace_seconds=within_seconds)
        for _ in range(int(within_seconds * 10)):
            if all(self.executor.observe(handle).state is State.ENDED for handle in handles):
                return
            await asyncio.sleep(0.1)
            for handle in handles:
                self.executor.stop(handle, grace_seconds=within_seconds)

    async def _start(self, lease: Lease[ReplicaRow], row: ReplicaRow) -> None:
        spec = ReplicaSpec(
            replica=row.id,
            base_model=row.base_model,
            weights=row.weights,
            weights_sha256=row.weights_sha256,
            tokenizer=row.tokenizer,
            backend=self.pool.backend,
            options=self.pool.options,
            precision=precision(),
            threads=await self.placement.replica_threads(),
            adapters=self.pool.adapters,
            cache_bytes=self.pool.cache_bytes,
            listen=str(self.pool.address(row.id)),
            grace_seconds=_OWN_GRACE_SECONDS if row.deployment_id is None else self._own_grace_seconds,
        )
        cores = (await self.placement.shares()).serving
        handle, address = await asyncio.to_thread(self._launch, spec, cores)
        async with apply(self.db, lease, "replicas") as (_, row):
            row.handle, row.socket = handle, address.text
            if row.status == "wanted":  # and not taken away meanwhile
                row.status = "starting"
        self.log.info("replica starting", replica=spec.replica, model=spec.base_model)

    def _launch(self, spec: ReplicaSpec, cores: Cores) -> tuple[Handle, Address]:
        self.pool.folder.mkdir(parents=True, exist_ok=True)
        key = "" if self.pool.listen == "unix" else self.pool.key(spec.replica)
        path = self._spec_file(spec.replica)
        path.write_text(spec.model_dump_json(indent=2))
        program = [self.pool.python, "-m", "luthier.serving.program", str(path)]
        places = ["--storage", self.pool.storage_url, "--cache", str(self.pool.cache)]
        places += ["--engines", str(self.pool.engines)]
        told = {KEY_VARIABLE: key} if key else {}
        launch = Launch(name=spec.replica, command=[*program, *places], cores=cores, environment=told)
        return self.executor.start(launch), self.pool.address(spec.replica, key)

    def _spec_file(self, replica: str) -> Path:
        """It is there from before its process is started."""
        return self.pool.folder / f"{replica}.json"

    async def _await_ready(self, lease: Lease[ReplicaRow], row: ReplicaRow) -> None:
        assert row.socket is not None
        address = parse(row.socket)
        if isinstance(address, TcpAddress) and not address.port:
            port = announced(await asyncio.to_thread(self.executor.logs, row.id))
            address = replace(address, port=port or 0)
        client = ReplicaClient(address.text)
        try:
            health = await client.health(timeout=2.0)
            if row.deployment_id is not None:
                await self._check(row, client, health)
        except NoCapacity:  # it lives, and has much to do
            await release(self.db, lease)
            return
        except (Unavailable, TimeoutError):
            await self._silent(lease, row)
            return
        except LuthierError as unfit:
            await self._refused(lease, row, unfit)
            return
        async with apply(self.db, lease, "routes", DEPLOYMENTS, first=_deployment_of(row)) as (session, row):
            if row.status == "starting":
                row.status, row.socket = "ready", address.text
                row.last_used_at = self.clock.now()
                deployment = await self._hurry(session, row)
                if deployment is not None and row.ready_at is None:
                    deployment.failed_starts = 0
                row.ready_at = row.ready_at or row.last_used_at
        self.log.info("replica ready", replica=row.id, model=row.base_model)

    async def _check(self, row: ReplicaRow, client: ReplicaClient, health: Health) -> None:
        """A deployment's replica is what it should be, and has answered a request. Raises why it never will be."""
        assert row.deployment_id is not None
        async with self.db.read() as session:
            deployment = await DeploymentQueries(session, SYSTEM).get(row.deployment_id)
        assert deployment is not None
        model = servable(deployment)
        if health.replica != row.id or health.weights_sha256 != model.weights_sha256:
            raise InternalError(f"What answers for replica {row.id} is something else.")
        if model.renderer_sha256 not in ("", health.renderer_sha256):
            raise InvalidRequest(
                f"{deployment.model} was trained with conversations written otherwise than its replica writes them.",
                hint="Train it again with this version.",
            )
        hello = GenerateRequest(
            adapter=model.adapter,
            messages=[Turn(role="user", content="Hello")],
            sampling=Sampling(temperature=0, max_tokens=1),
        )
        async with asyncio.timeout(_ANSWERS_WITHIN_SECONDS), aclosing(client.generate(hello)) as answer:
            async for _ in answer:
                pass
        if model.adapter is not None and model.adapter.id not in (await client.health(timeout=2.0)).adapters:
            raise InternalError(f"Replica {row.id} has answered without adapter {model.adapter.id}.")

    async def _silent(self, lease: Lease[ReplicaRow], row: ReplicaRow) -> None:
        """It lives and does not answer: after a while it is stopped, so that another one takes its place."""
        patience = _STARTS_WITHIN_SECONDS if row.ready_at is None else _SILENT_SECONDS
        if (self.clock.now() - row.last_used_at).total_seconds() <= patience:
            await release(self.db, lease)
            return
        async with apply(self.db, lease, "replicas", DEPLOYMENTS, first=_deployment_of(row)) as (session, kept):
            if kept.status == "starting":
                kept.status = "stopping"
                deployment = await self._hurry(session, kept)
                if deployment is not None and kept.ready_at is None:
                    _count_failed_start(deployment, ReplicaUnavailable("Its process did not answer for too long."))
        self.log.error("replica silent", replica=row.id, model=row.base_model, for_seconds=patience)

    async def _refused(self, lease: Lease[ReplicaRow], row: ReplicaRow, why: LuthierError) -> None:
        """It lives, but is not fit. Where that is no fault of ours, which may pass, neither would the next one be."""
        async with apply(self.db, lease, "replicas", DEPLOYMENTS, first=_deployment_of(row)) as (session, kept):
            if kept.status == "starting":
                kept.status, kept.draining_since = "draining", self.clock.now()
            deployment = await self._hurry(session, kept)
            if deployment is not None and kept.ready_at is None:
                _count_failed_start(deployment, why, is_last=not isinstance(why, InternalError))
            elif deployment is not None:
                deployment.error = _told(why)
        self.log.error("replica refused", replica=row.id, model=row.base_model, why=why.text)

    async def _gone(self, lease: Lease[ReplicaRow], row: ReplicaRow) -> None:
        last_words = await asyncio.to_thread(lambda: self.executor.logs(row.id, last_bytes=2000))
        async with apply(self.db, lease, "routes", DEPLOYMENTS, first=_deployment_of(row)) as (session, kept):
            was, kept.status = kept.status, "gone"
            deployment = await self._hurry(session, kept)
            if deployment is not None and was in ("starting", "ready") and kept.ready_at is None:
                _count_failed_start(deployment, ReplicaUnavailable(_reason(last_words)))
        (self.pool.folder / f"{row.id}.key").unlink(missing_ok=True)
        if was in ("draining", "stopping"):
            self.log.info("replica stopped", replica=row.id, model=row.base_model)
        else:
            self.log.error("replica lost", replica=row.id, model=row.base_model, last_words=last_words)

    async def _hurry(self, session: AsyncSession, row: ReplicaRow) -> DeploymentRow | None:
        """Have its deployment, where it is of one, looked at at once."""
        deployment = await DeploymentQueries(session, SYSTEM).get(row.deployment_id) if row.deployment_id else None
        if deployment is not None:
            deployment.lease_until = None
        return deployment

    async def _has_drained(self, row: ReplicaRow) -> bool:
        """Whether nothing is answered any more, or its time is over. That it does not say so does not mean that it is idle."""
        assert row.socket is not None and row.draining_since is not None
        now = self.clock.now()
        if row.ready_at is None or now >= await self._answers_until(row, row.draining_since):
            return True
        if (now - row.draining_since).total_seconds() < _ROUTED_FOR_SECONDS:
            return False
        try:
            return (await ReplicaClient(row.socket).health(timeout=2.0)).active == 0
        except LuthierError:
            return False

    async def _answers_until(self, row: ReplicaRow, draining_since: datetime) -> datetime:
        """When a replica that drains is told to end: in the grace of a deployment that ends, else when every answer is over."""
        async with self.db.read() as session:
            deployment = await DeploymentQueries(session, SYSTEM).get(row.deployment_id or "")
        if deployment is not None and deployment.status in ALIVE:
            longest = max(self.pool.grace_seconds, self.pool.answer_within_seconds)
            return draining_since + timedelta(seconds=_ROUTED_FOR_SECONDS + longest)
        since = draining_since if deployment is None else max(draining_since, deployment.changed_at)
        return since + timedelta(seconds=self.pool.grace_seconds - self._own_grace_seconds)

    @property
    def _own_grace_seconds(self) -> float:
        """The last part of the grace, which a deployment's replica gives by itself."""
        return min(_OWN_GRACE_SECONDS, self.pool.grace_seconds)

    async def _is_busy(self, row: ReplicaRow) -> bool:
        """Whether answers are being made: one may take longer than the idle time."""
        assert row.socket is not None
        try:
            return (await ReplicaClient(row.socket).health(timeout=2.0)).active > 0
        except NoCapacity:  # so many ask it that nobody more is taken in
            return True
        except LuthierError:
            return False

    @property
    def _asked_after_seconds(self) -> float:
        return min(_NOTED_SECONDS, self.pool.idle_after_seconds)

    def _idle(self, row: ReplicaRow) -> bool:
        if row.deployment_id is not None:
            return False
        return self._unused_seconds(row) > self.pool.idle_after_seconds

    def _unused_seconds(self, row: ReplicaRow) -> float:
        return (self.clock.now() - row.last_used_at).total_seconds()


def _deployment_of(row: ReplicaRow) -> Callable[[AsyncSession], Awaitable[DeploymentRow | None]]:
    """Locks the deployment of a replica, where it is of one: everybody who locks both begins with it."""
    return lambda session: DeploymentQueries(session, SYSTEM).get(row.deployment_id or "")


def _count_failed_start(deployment: DeploymentRow, why: LuthierError, *, is_last: bool = False) -> None:
    deployment.failed_starts = MOST_FAILED_STARTS if is_last else deployment.failed_starts + 1
    deployment.error = _told(why)


def _told(why: LuthierError) -> dict[str, str]:
    return {"code": why.code, "message": why.text}


def _reason(last_words: str) -> str:
    """Why a replica could not start, as far as it said so itself; the rest of what it printed is the operator's."""
    said = _REASON.search(last_words)
    return (
        said[1].strip("'\"")
        if said
        else "Its process ended before it had answered; the server's log has its last words."
    )
