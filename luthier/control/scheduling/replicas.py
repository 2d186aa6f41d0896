"""Wanted replicas → running ones; idle ones away."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.control.db import Database
from luthier.control.deployments.queries import ReplicaQueries
from luthier.control.deployments.tables import ReplicaRow
from luthier.control.scheduling.leases import Lease, apply, release
from luthier.control.scheduling.placement import replica_cores
from luthier.control.scheduling.reconciler import Reconciler
from luthier.control.tenancy import SYSTEM
from luthier.core.clock import Clock
from luthier.core.errors import LuthierError, NoCapacity
from luthier.executors.base import Executor, Handle, Launch, State
from luthier.serving.client import ReplicaClient
from luthier.serving.spec import ReplicaSpec
from luthier.training.precision import precision

GRACE_SECONDS = 10.0
_LOOKED_AT_EVERY_SECONDS = 5.0  # a replica that is ready; who finds it silent says so by itself
_LIVE = ("wanted", "starting", "ready", "stopping")


@dataclass(frozen=True)
class Pool:
    """How replicas are started. `folder` keeps their specs; sockets lie in a short folder of their own.

    `options` are the backend's. `engines` is where engines with environments of their own lie.
    """

    python: str
    storage_url: str
    cache: Path
    backend: str
    options: dict[str, Any]
    engines: Path
    adapters: int
    idle_after_seconds: float
    folder: Path

    def socket(self, replica: str) -> Path:
        """A Unix socket's path has room for about a hundred bytes, so it does not lie in the data folder."""
        mark = hashlib.sha256(str(self.folder.absolute()).encode()).hexdigest()[:8]
        return Path(tempfile.gettempdir()) / f"luthier-{os.getuid()}-{mark}" / f"{replica[-12:]}.sock"


class ReplicaReconciler(Reconciler[ReplicaRow]):
    topic = "replicas"
    every_seconds = 0.5

    def __init__(self, db: Database, executor: Executor, pool: Pool, clock: Clock) -> None:
        super().__init__(db)
        self.executor = executor
        self.pool = pool
        self.clock = clock

    def table(self) -> type[ReplicaRow]:
        return ReplicaRow

    def due(self) -> list:
        return [ReplicaRow.status.in_(_LIVE)]

    async def work(self, lease: Lease[ReplicaRow]) -> None:
        async with self.db.read() as session:
            row = await ReplicaQueries(session, SYSTEM).get(lease.id)
        assert row is not None
        if row.status == "wanted":
            await self._start(lease, row)
            return
        assert row.handle is not None
        handle = row.handle
        seen = await asyncio.to_thread(self.executor.observe, handle)
        if seen.state is State.ENDED:
            await self._gone(lease, row)
        elif row.status == "starting":
            await self._await_ready(lease, row)
        elif row.status == "stopping":
            await asyncio.to_thread(lambda: self.executor.stop(handle, grace_seconds=GRACE_SECONDS))
            await release(self.db, lease)
        elif self._idle(row) and not await self._is_busy(row):
            async with apply(self.db, lease, "replicas") as (_, row):  # first: from now on no request is sent there
                row.status = "stopping"
        else:
            await release(self.db, lease, again_after_seconds=_LOOKED_AT_EVERY_SECONDS)

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
        cores = replica_cores(self.executor.cores)
        spec = ReplicaSpec(
            replica=row.id,
            base_model=row.base_model,
            weights=row.weights,
            weights_sha256=row.weights_sha256,
            backend=self.pool.backend,
            options=self.pool.options,
            precision=precision(),
            threads=cores,
            adapters=self.pool.adapters,
            socket=str(self.pool.socket(row.id)),
        )
        handle = await asyncio.to_thread(self._launch, spec)
        async with apply(self.db, lease, "replicas") as (_, row):
            row.handle, row.socket, row.status = handle, spec.socket, "starting"
        self.log.info("replica starting", replica=spec.replica, model=spec.base_model)

    def _launch(self, spec: ReplicaSpec) -> Handle:
        self.pool.folder.mkdir(parents=True, exist_ok=True)
        path = self.pool.folder / f"{spec.replica}.json"
        path.write_text(spec.model_dump_json(indent=2))
        program = [self.pool.python, "-m", "luthier.serving.program", str(path)]
        places = ["--storage", self.pool.storage_url, "--cache", str(self.pool.cache)]
        places += ["--engines", str(self.pool.engines)]
        return self.executor.start(Launch(name=spec.replica, command=[*program, *places], cores=spec.threads))

    async def _await_ready(self, lease: Lease[ReplicaRow], row: ReplicaRow) -> None:
        assert row.socket is not None
        try:
            await ReplicaClient(row.socket).health(timeout=2.0)
        except LuthierError:
            await release(self.db, lease)
            return
        async with apply(self.db, lease, "routes") as (_, row):
            if row.status == "starting":
                row.status = "ready"
                row.last_used_at = self.clock.now()
        self.log.info("replica ready", replica=row.id, model=row.base_model)

    async def _gone(self, lease: Lease[ReplicaRow], row: ReplicaRow) -> None:
        last_words = await asyncio.to_thread(lambda: self.executor.logs(row.id, last_bytes=2000))
        async with apply(self.db, lease, "routes") as (_, kept):
            kept.status = "gone"
        if row.status == "stopping":
            self.log.info("replica stopped", replica=row.id, model=row.base_model)
        else:
            self.log.error("replica lost", replica=row.id, model=row.base_model, last_words=last_words)

    async def _is_busy(self, row: ReplicaRow) -> bool:
        """Whether answers are being made: one may take longer than the idle time."""
        assert row.socket is not None
        try:
            return (await ReplicaClient(row.socket).health(timeout=2.0)).active > 0
        except NoCapacity:  # so many ask it that nobody more is taken in
            return True
        except LuthierError:
            return False

    def _idle(self, row: ReplicaRow) -> bool:
        return (self.clock.now() - row.last_used_at).total_seconds() > self.pool.idle_after_seconds
