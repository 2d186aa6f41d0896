"""Training jobs: submitted, made ready, followed through their events, cancelled."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator

from sqlalchemy.ext.asyncio import AsyncSession

from luthier.control import audit
from luthier.control.catalog.service import Catalog
from luthier.control.datasets.service import Datasets
from luthier.control.db import Database
from luthier.control.jobs.history import History
from luthier.control.jobs.lifecycle import ACTIVE, TERMINAL, Status, Wish
from luthier.control.jobs.log import HEADER, line_of
from luthier.control.jobs.planning import check_numbers, choices
from luthier.control.jobs.preparing import Inputs, Preparation, Prepared
from luthier.control.jobs.queries import JobQueries
from luthier.control.jobs.recording import Recorder
from luthier.control.jobs.tables import CheckpointRow, EventRow, JobRow
from luthier.control.jobs.values import SUFFIX, Checkpoint, Error, Job, JobEvent, JobRequest
from luthier.control.tenancy import SYSTEM, Principal
from luthier.core import ids
from luthier.core.clock import Clock
from luthier.core.errors import (
    FileNotChecked,
    InvalidParameter,
    InvalidTransition,
    JobNotFound,
    LuthierError,
)
from luthier.core.pages import NumberedPage, Page, PageRequest
from luthier.training.spec import DataFile, TrainingSpec

_FOLLOWED_AT_ONCE = 500  # events
_LOOK_AGAIN_SECONDS = 1.0  # at a job that is followed, where nobody nudges
_QUIET_SECONDS = 10.0  # after which a follower is told that nothing happened

EVENTS = "job-events"
"""What is nudged when something may have been told of a job."""

CHECKING = "checking"
"""What is nudged when a job may come nearer to its spec."""


class Jobs:
    patience_seconds = 5.0
    """How long a request for a job waits for files that are being checked, to tell at once what is wrong with small ones."""

    def __init__(self, db: Database, catalog: Catalog, datasets: Datasets, clock: Clock, *, cores: int) -> None:
        self.db = db
        self.clock = clock
        self.preparation = Preparation(catalog, datasets, cores=cores)
        self.history = History(clock)
        self.recorder = Recorder(self.history, catalog, clock)

    # What customers ask for

    async def submit(self, who: Principal, request: JobRequest) -> Job:
        """Take a job. What is wrong with it is raised now, or fails it later where that takes long to find out: with files that
        are still being read after a little while, and by the tokens of large ones.
        """
        _check_request(request)
        job_id = ids.new("ftjob")
        try:
            inputs = await self.preparation.begin(who, request, patience_seconds=self.patience_seconds)
            prepared = await self.preparation.go_on(who, job_id, request, inputs, may_make=False)
        except FileNotChecked:
            prepared = None
        row = JobRow(
            id=job_id,
            project_id=who.project,
            status=Status.CHECKING,
            request=request.model_dump(mode="json"),
            inputs=None,
            spec=None,
            base_model=request.base_model,
            model_name="",
            told=0,
            lost_runs=0,
            created_by=who.id,
            created_at=self.clock.now(),
        )
        async with self.db.write("jobs", CHECKING, EVENTS) as session:
            row.model_name = await self._unused_name(session, request.base_model, request.suffix)
            session.add(row)
            await session.flush()
            audit.note(session, who, "job.created", row.id, self.clock)
            self.history.tell(session, row, "The job was created.")
            if prepared is None:
                self.history.tell(session, row, "The files are still being checked; the job waits for them.")
            else:
                self.keep(session, row, prepared)
                if prepared.spec is None:
                    self.history.tell(session, row, "Its files are being made ready.")
        return _job(row)

    async def get(self, who: Principal, job_id: str) -> Job:
        async with self.db.read() as session:
            return _job(_found(await JobQueries(session, who).get(job_id), job_id))

    async def list(
        self,
        who: Principal,
        page: PageRequest,
        *,
        metadata: dict[str, str] | None = None,
        without_metadata: bool = False,
    ) -> Page[Job]:
        """Newest first; `metadata` are pairs that a job must have, `without_metadata` wants jobs that have none."""
        async with self.db.read() as session:
            rows = await JobQueries(session, who).page(page, metadata=metadata, without_metadata=without_metadata)
        return Page([_job(row) for row in rows.items], rows.has_more)

    async def events(self, who: Principal, job_id: str, page: PageRequest) -> Page[JobEvent]:
        """Newest first. Steps that were taken again after a crash are listed once."""
        async with self.db.read() as session:
            queries = JobQueries(session, who)
            _found(await queries.get(job_id), job_id)
            rows = await queries.events(job_id, page)
        return Page([_event(row) for row in rows.items], rows.has_more)

    async def checkpoints(self, who: Principal, job_id: str, page: PageRequest) -> Page[Checkpoint]:
        async with self.db.read() as session:
            queries = JobQueries(session, who)
            _found(await queries.get(job_id), job_id)
            rows = await queries.checkpoints(job_id, page)
        return Page([_checkpoint(row) for row in rows.items], rows.has_more)

    async def cancel(self, who: Principal, job_id: str) -> Job:
        """Stop a job. One that has no process is cancelled at once; a running one within seconds, keeping its checkpoints.

        Raises InvalidTransition for a job that has ended otherwise.
        """
        async with self.db.write("jobs", EVENTS) as session:
            row = _found(await JobQueries(session, who).get(job_id), job_id)
            if row.status in (Status.CANCELLING, Status.CANCELLED):
                return _job(row)
            if row.status in TERMINAL:
                raise InvalidTransition(f"The job {job_id} has {row.status} already; there is nothing to cancel.")
            audit.note(session, who, "job.cancelled", job_id, self.clock)
            row.wish = None
            self.history.move(session, row, Status.CANCELLING if row.status in ACTIVE else Status.CANCELLED)
            return _job(row)

    async def pause(self, who: Principal, job_id: str) -> Job:
        """Stop a job for a while. A running one saves a checkpoint first, from which `resume` goes on.

        Until its process has ended it is still running, and it may succeed or fail before. Again changes nothing. Raises
        InvalidTransition for a job that has ended, or is being cancelled.
        """
        async with self.db.write("jobs", EVENTS) as session:
            row = _found(await JobQueries(session, who).get(job_id), job_id)
            if row.status == Status.PAUSED or row.wish == Wish.PAUSE:
                return _job(row)
            if row.status in TERMINAL or row.status == Status.CANCELLING:
                raise InvalidTransition(f"The job {job_id} {_STATE[Status(row.status)]}; it cannot be paused.")
            audit.note(session, who, "job.paused", job_id, self.clock)
            if row.status in ACTIVE:
                row.wish = Wish.PAUSE
                self.history.tell(session, row, "The job will pause as soon as it has saved a checkpoint.")
            else:
                self.history.move(session, row, Status.PAUSED)
            return _job(row)

    async def resume(self, who: Principal, job_id: str) -> Job:
        """Let a paused job go on; one that is about to pause goes on without a pause, or after a short one.

        Raises InvalidTransition for every other.
        """
        async with self.db.write("jobs", CHECKING, EVENTS) as session:
            row = _found(await JobQueries(session, who).get(job_id), job_id)
            if row.status != Status.PAUSED and row.wish != Wish.PAUSE:
                raise InvalidTransition(f"The job {job_id} {_STATE[Status(row.status)]}; only a paused job can go on.")
            audit.note(session, who, "job.resumed", job_id, self.clock)
            if row.status == Status.PAUSED:
                self.history.move(session, row, Status.CHECKING if row.spec is None else Status.QUEUED, _GOES_ON)
            else:
                row.wish = None
                self.history.tell(session, row, "The job will not pause.")
            return _job(row)

    async def delete(self, who: Principal, job_id: str) -> Job:
        """Forget a job that has no process; what it made stays. Gives it as it was at the end: one that waited is cancelled.

        Raises InvalidTransition for one that may have a process: it must be cancelled first.
        """
        async with self.db.write("jobs", EVENTS) as session:
            row = _found(await JobQueries(session, who).get(job_id), job_id)
            if row.status in ACTIVE:
                raise InvalidTransition(
                    f"The job {job_id} {_STATE[Status(row.status)]}; it cannot be deleted.",
                    hint="Cancel it and wait until it has ended.",
                )
            if row.status not in TERMINAL:
                self.history.move(session, row, Status.CANCELLED)
            row.deleted_at = self.clock.now()
            audit.note(session, who, "job.deleted", job_id, self.clock)
            return _job(row)

    async def numbered(
        self, who: Principal, number: int, size: int, *, base_model: str | None = None
    ) -> NumberedPage[Job]:
        """Newest first; `number` counts pages from 1."""
        async with self.db.read() as session:
            rows = await JobQueries(session, who).numbered(number, size, base_model=base_model)
        return NumberedPage([_job(row) for row in rows.items], number, size, rows.total)

    async def log(self, who: Principal, job_id: str, *, offset: int, lines: int) -> list[str]:
        """Lines of a job's log, oldest first, after leaving out `offset`. Line 0 is a header; a line never changes its place."""
        async with self.db.read() as session:
            queries = JobQueries(session, who)
            _found(await queries.get(job_id), job_id)
            rows = await queries.events_from(job_id, offset, lines)  # none has the number 0, the header is there
        return [HEADER] * (offset == 0 and lines > 0) + [line_of(_event(row)) for row in rows]

    async def follow(self, who: Principal, job_id: str) -> AsyncGenerator[JobEvent | None, None]:
        """A job's events, oldest first, as they happen, until it has ended or is paused; None when nothing happened for a while.

        Nothing is left out: steps that were taken again after a crash come twice. What can be refused is raised before this
        returns.
        """
        await self.get(who, job_id)
        return self._followed(who, job_id)

    async def _followed(self, who: Principal, job_id: str) -> AsyncGenerator[JobEvent | None, None]:
        given, heard_at = 0, time.monotonic()
        while True:
            async with self.db.read() as session:
                queries = JobQueries(session, who)
                row = await queries.get(job_id)  # before its events: where it has ended, there are all of them
                rows = await queries.events_from(job_id, given + 1, _FOLLOWED_AT_ONCE)
            for one in rows:
                yield _event(one)
            if rows:
                given, heard_at = rows[-1].number, time.monotonic()
            if len(rows) == _FOLLOWED_AT_ONCE:
                continue
            if row is None or row.status in TERMINAL or row.status == Status.PAUSED:
                return
            if time.monotonic() - heard_at >= _QUIET_SECONDS:
                yield None
                heard_at = time.monotonic()
            await self.db.nudged(EVENTS, within_seconds=min(_LOOK_AGAIN_SECONDS, _QUIET_SECONDS))

    # What the scheduler does, under its lease, in its transaction

    async def prepare(self, job: Job) -> Prepared | None:
        """Bring a job nearer to its spec; None where there is nothing new. Raises what is wrong with its files."""
        who = Principal(id=job.created_by or SYSTEM.id, project=job.project)
        async with self.db.read() as session:
            row = _found(await JobQueries(session, who).get(job.id), job.id)
        if row.inputs is None:
            try:
                inputs = await self.preparation.begin(who, job.request)
            except FileNotChecked:
                return None
            # What is drawn here is written down before anything is made with it.
            return await self.preparation.go_on(who, job.id, job.request, inputs, may_make=False)
        prepared = await self.preparation.go_on(who, job.id, job.request, Inputs.model_validate(row.inputs))
        return prepared if prepared.spec is not None or prepared.inputs.model_dump() != row.inputs else None

    def keep(self, session: AsyncSession, row: JobRow, prepared: Prepared) -> None:
        """Write down how far the files of a job are, and queue it once it has a spec, unless it waits for something else."""
        before, now = row.inputs or {}, prepared.inputs.model_dump(mode="json")
        request = JobRequest.model_validate(row.request)
        for what, files in (("training", request.training_files), ("validation", request.validation_files)):
            if len(files) > 1 and now[f"{what}_file"] and not before.get(f"{what}_file"):
                self.history.tell(session, row, f"The rows of its {len(files)} {what} files were joined.")
        row.inputs = now
        if prepared.spec is not None and row.status == Status.CHECKING:
            self.queue(session, row, prepared.spec)

    def queue(self, session: AsyncSession, row: JobRow, spec: TrainingSpec) -> None:
        row.spec = spec.model_dump(mode="json")
        request = JobRequest.model_validate(row.request)
        if spec.validation is not None and not request.validation_files:
            kept, rows = spec.validation.rows or 0, (spec.training.rows or 0) + (spec.validation.rows or 0)
            told = f"{kept:,} of {rows:,} rows are kept for validation, drawn with the seed {spec.seed}."
            self.history.tell(session, row, told, level="warn")
        for what, file in (("trained", spec.training), ("used for validation", spec.validation)):
            if file is not None and file.dropped:
                self.history.tell(
                    session, row, _promised(file, what), level="warn", data=file.model_dump(include=_PROMISE)
                )
        self.history.move(session, row, Status.QUEUED)

    async def _unused_name(self, session: AsyncSession, base_model: str, suffix: str | None) -> str:
        """A name for the tuned model that no job of any project has."""
        while True:
            name = "-".join(filter(None, (base_model, suffix and suffix.lower(), ids.short())))
            if not await JobQueries(session, SYSTEM).is_named(name):
                return name


_GOES_ON = "The job goes on."

_STATE = {
    Status.CHECKING: "is being checked",
    Status.QUEUED: "is queued",
    Status.STARTING: "is being started",
    Status.RUNNING: "is running",
    Status.PAUSED: "is paused",
    Status.CANCELLING: "is being cancelled",
    Status.SUCCEEDED: "has succeeded already",
    Status.FAILED: "has failed already",
    Status.CANCELLED: "was cancelled already",
}


def _check_request(request: JobRequest) -> None:
    if request.suffix is not None and not SUFFIX.fullmatch(request.suffix):
        raise InvalidParameter(
            "suffix", "must be 1 to 64 letters, digits, '.', '_' or '-', and begin with a letter or digit"
        )
    if request.seed is not None and not 0 <= request.seed < 2**31:
        raise InvalidParameter("seed", f"must be between 0 and {2**31 - 1}, got {request.seed}")
    choices(request)
    check_numbers(request)


_PROMISE = {"rows", "trained_rows", "dropped", "first_dropped"}

_REASONS = {"too_long": "longer than the limit", "nothing_trained": "with nothing to learn"}


def _promised(file: DataFile, what: str) -> str:
    """Which rows will be left out, and why, before anything is trained."""
    reasons = ", ".join(f"{count:,} {_REASONS.get(reason, reason)}" for reason, count in file.dropped.items())
    dropped = sum(file.dropped.values())
    rows = ", ".join(map(str, file.first_dropped)) + (" ..." if dropped > len(file.first_dropped) else "")
    return f"{file.trained_rows:,} of {file.rows:,} rows will be {what}; {dropped:,} will not ({reasons}): rows {rows}."


def _found(row: JobRow | None, job_id: str) -> JobRow:
    if row is None:
        raise JobNotFound(f"There is no job {job_id!r}.")
    return row


def _job(row: JobRow) -> Job:
    error = None
    if row.error_code is not None:
        error = Error(code=row.error_code, message=row.error_message or "", param=row.error_param)
    return Job(
        id=row.id,
        project=row.project_id,
        status=Status(row.status),
        request=JobRequest.model_validate(row.request),
        spec=TrainingSpec.model_validate(row.spec) if row.spec else None,
        model_name=row.model_name,
        trained_tokens=row.trained_tokens,
        seconds_left=row.seconds_left,
        error=error,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        wish=Wish(row.wish) if row.wish else None,
        created_by=row.created_by,
    )


def _event(row: EventRow) -> JobEvent:
    return JobEvent(
        id=row.id,
        job=row.job_id,
        number=row.number,
        level=row.level,
        kind=row.kind,
        message=row.message,
        data=row.data,
        created_at=row.created_at,
    )


def _checkpoint(row: CheckpointRow) -> Checkpoint:
    return Checkpoint(
        id=row.id,
        job=row.job_id,
        step=row.step,
        model_name=row.model_name,
        metrics=row.metrics,
        created_at=row.created_at,
    )


def described(error: LuthierError) -> Error:
    """An error as it is kept with a job."""
    return Error(code=error.code, message=error.text, param=error.param)
