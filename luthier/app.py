"""Composition: settings → parts → one FastAPI app."""

from __future__ import annotations

import asyncio
import fcntl
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI

from luthier import __version__
from luthier.api import edge
from luthier.api.dialect import dialects
from luthier.control.accounts.service import Accounts
from luthier.control.accounts.vault import Vault
from luthier.control.catalog.installing import Installer
from luthier.control.catalog.service import Catalog
from luthier.control.datasets.service import Datasets
from luthier.control.datasets.uploads import Uploads
from luthier.control.datasets.workshop import ProcessWorkshop, Workshop
from luthier.control.db import Database
from luthier.control.deployments.routing import Routing
from luthier.control.deployments.service import Deployments
from luthier.control.inference.asynchronous import AsyncCompletions
from luthier.control.inference.limits import Limits
from luthier.control.inference.service import Inference
from luthier.control.jobs.service import Jobs
from luthier.control.scheduling.background import FileSweeper, Inspector, TokenCounter, UploadCleaner
from luthier.control.scheduling.completions import AsyncCompleter
from luthier.control.scheduling.deployments import DeploymentReconciler
from luthier.control.scheduling.placement import Placement
from luthier.control.scheduling.preparing import JobPreparer
from luthier.control.scheduling.reconciler import Loop
from luthier.control.scheduling.replicas import Pool, ReplicaReconciler
from luthier.control.scheduling.training import Trainers, TrainingReconciler
from luthier.core import logs
from luthier.core.clock import Clock, SystemClock
from luthier.core.errors import AlreadyExists, LuthierError
from luthier.core.settings import Settings
from luthier.executors.base import Executor, executors
from luthier.services import Services
from luthier.serving.backends.base import backends
from luthier.storage import Storage

log = logs.get("app")


@dataclass(frozen=True)
class Parts:
    """Everything that a running server consists of."""

    db: Database
    storage: Storage
    installer: Installer
    services: Services
    inspector: Inspector
    counter: TokenCounter
    sweeper: FileSweeper
    cleaner: UploadCleaner
    preparer: JobPreparer
    placement: Placement
    training: TrainingReconciler
    deployments: DeploymentReconciler
    replicas: ReplicaReconciler
    completer: AsyncCompleter

    @property
    def loops(self) -> list[Loop]:
        return [
            self.inspector,
            self.counter,
            self.sweeper,
            self.cleaner,
            self.preparer,
            self.placement,
            self.training,
            self.deployments,
            self.replicas,
            self.completer,
        ]


def assemble(
    settings: Settings,
    clock: Clock | None = None,
    executor: Executor | None = None,
    workshop: Callable[[Storage], Workshop] | None = None,
) -> Parts:
    """Build the parts; nothing is started, nothing is written but the data folder and the server key."""
    clock = clock or SystemClock()
    data = settings.server.data
    data.mkdir(parents=True, exist_ok=True)
    db = Database(settings.database_url)
    storage = Storage(settings.storage_url, cache=data / "cache")
    executor = executor or executors.load(settings.executor.name)(data / "processes", settings.cores)  # pyright: ignore[reportCallIssue]
    accounts = Accounts(db, Vault(data / "server.key"), clock)
    catalog = Catalog(db, storage, clock)
    work = (
        workshop(storage)
        if workshop
        else ProcessWorkshop(
            settings.storage_url,
            cache=str(data / "cache"),
            processes=settings.cores,
            memory_bytes=settings.data.check_memory_bytes,
            least_seconds=settings.data.check_seconds,
            stands_ready=True,
        )
    )
    datasets = Datasets(db, storage, work, clock)
    uploads = Uploads(
        db,
        storage,
        datasets,
        clock,
        total_limit_bytes=settings.server.upload_total_limit_bytes,
        expires_after_seconds=settings.server.upload_expires_after_seconds,
    )
    jobs = Jobs(db, catalog, datasets, clock, cores=settings.cores)
    routing = Routing(db, clock, ready_within_seconds=settings.serving.ready_within_seconds)
    deployments = Deployments(db, catalog, clock)
    limits = Limits(
        running=settings.serving.concurrency,
        running_per_project=settings.serving.concurrency_per_project,
        waiting=settings.serving.waiting,
        waiting_per_project=settings.serving.waiting_per_project,
        answer_within_seconds=settings.serving.answer_within_seconds,
    )
    inference = Inference(deployments, routing, limits)
    async_completions = AsyncCompletions(db, inference, clock)
    trainers = Trainers(
        python=settings.training.python or sys.executable,
        storage_url=settings.storage_url,
        cache=data / "cache",
        attempts=settings.training.attempts,
    )
    options = backends.load(settings.serving.backend).Options.read(settings.serving.options).model_dump(mode="json")
    pool = Pool(
        python=settings.serving.python or sys.executable,
        storage_url=settings.storage_url,
        cache=data / "cache",
        backend=settings.serving.backend,
        options=options,
        engines=data / "engines",
        adapters=settings.serving.adapters_per_replica,
        cache_bytes=settings.serving.cache_bytes,
        listen=settings.serving.listen,
        idle_after_seconds=settings.serving.idle_after_seconds,
        grace_seconds=settings.serving.grace_seconds,
        answer_within_seconds=settings.serving.answer_within_seconds,
        folder=data / "replicas",
    )
    placement = Placement(db, executor, clock)
    return Parts(
        db=db,
        storage=storage,
        installer=Installer(storage, data / "scratch", trainers.python, clock),
        services=Services(accounts, datasets, uploads, catalog, deployments, jobs, inference, async_completions),
        inspector=Inspector(
            db, work, clock, image_hosts=settings.data.image_hosts, advised_rows=settings.data.advised_rows
        ),
        counter=TokenCounter(db, work, clock),
        sweeper=FileSweeper(db, datasets, clock),
        cleaner=UploadCleaner(db, storage, clock),
        preparer=JobPreparer(db, jobs),
        placement=placement,
        training=TrainingReconciler(db, jobs, storage, placement, trainers, clock),
        deployments=DeploymentReconciler(db, storage, clock),
        replicas=ReplicaReconciler(db, placement, pool, clock),
        completer=AsyncCompleter(db, async_completions),
    )


def build(settings: Settings, *, parts: Parts | None = None, announce: Callable[[str], None] = print) -> FastAPI:
    """The app. At its start the schema is brought up, the first key made (`announce` gets it, once), a model brought."""
    parts = parts or assemble(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with only_server_of(settings.server.data):
            async with running(app):
                yield

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        await parts.db.migrate()
        bootstrap = settings.bootstrap_key.get_secret_value() if settings.bootstrap_key else None
        if (key := await parts.services.accounts.found(bootstrap)) is not None:
            announce(key)
        if settings.models.embedded:
            await _bring_embedded(parts.installer)
        await asyncio.to_thread(parts.installer.refresh)
        loops = [asyncio.create_task(one.run(), name=one.topic) for one in parts.loops]
        app.state.loops = loops
        try:
            yield
        finally:
            try:
                await parts.replicas.mark_all_stopping()
            except Exception:  # they are stopped all the same
                log.exception("that the replicas are stopped could not be written down")
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            await parts.replicas.stop_all()
            await parts.placement.leave_to_runs()
            await parts.services.datasets.workshop.close()
            await parts.db.close()

    app = FastAPI(
        title="Luthier", version=__version__, lifespan=lifespan, redirect_slashes=False, docs_url=None, redoc_url=None
    )
    app.state.services = parts.services
    edge.install(
        app,
        [dialects.load(name)() for name in dialects.names()],
        upload_limit_bytes=settings.server.upload_limit_bytes,
        stalled_after_seconds=settings.serving.stalled_after_seconds,
    )

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """200 when requests will be served: the schema is there and the loops are running."""
        stopped = [loop.get_name() for loop in app.state.loops if loop.done()]
        if stopped:
            raise RuntimeError(f"loops have stopped: {', '.join(stopped)}")
        async with parts.db.read() as session:
            await session.connection()
        return {"status": "ok", "version": __version__}

    return app


@contextmanager
def only_server_of(data: Path) -> Iterator[None]:
    """Hold the data folder for one server: a second one would stop the replicas of the first.

    Raises AlreadyExists while another process holds it.
    """
    data.mkdir(parents=True, exist_ok=True)
    with (data / "server.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as held:
            raise AlreadyExists(f"A server is using {data} already.", hint="Stop it, or pass another --data.") from held
        yield


async def _bring_embedded(installer: Installer) -> None:
    """A server without the embedded model still serves others, so what is missing is said, not fatal."""
    try:
        await asyncio.to_thread(installer.embedded)
    except LuthierError as missing:
        log.warning("the embedded model is not there", why=missing.text)
