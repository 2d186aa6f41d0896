"""Files: taken in, read once, listed, given back, removed; how long their rows are, and whether one can be trained on."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import PurePath
from typing import Any, Protocol

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from luthier.chat.examples import Overlength, TurnWeights
from luthier.chat.tokenizer import TOKENIZER_FILES, Tokenizer
from luthier.control import audit
from luthier.control.datasets.lengths import Selection, Summary, kept, under
from luthier.control.datasets.preview import Preview
from luthier.control.datasets.queries import FileQueries, LengthsQueries
from luthier.control.datasets.report import DatasetReport
from luthier.control.datasets.tables import FileRow, LengthsRow
from luthier.control.datasets.tasks import Task
from luthier.control.datasets.workshop import Workshop
from luthier.control.db import Database
from luthier.control.tenancy import Principal
from luthier.core import ids
from luthier.core.clock import Clock
from luthier.core.errors import (
    DatasetInvalid,
    FileNotChecked,
    FileNotFound,
    InvalidParameter,
    InvalidRequest,
    Unavailable,
)
from luthier.core.pages import NumberedPage, Page, PageRequest
from luthier.formats.base import formats
from luthier.records.problems import MEANINGS
from luthier.storage import Storage, StoredObject

PURPOSES = ("fine-tune",)

EXPIRES_AFTER_AT_LEAST_SECONDS = 3600
EXPIRES_AFTER_AT_MOST_SECONDS = 30 * 24 * 3600

_LOOK_AGAIN_SECONDS = 0.1

_COUNTED_AT_ONCE = 1024 * 1024  # bytes
_COUNTED_WITHIN_SECONDS = 10.0

_KEPT_FROM = 100_000  # rows of a file from which on it is remembered what a limit makes of them
_KEPT_AT_MOST = 20  # limits

_OTHER_FILES = frozenset((".txt", ".md", ".doc", ".docx", ".xls", ".xlsx", ".csv", ".tsv", ".parquet", ".pdf", ".xml"))
"""Endings of names of files that hold no rows; what is in a file is judged by its bytes."""


@dataclass(frozen=True)
class File:
    id: str
    filename: str
    purpose: str
    bytes: int
    sha256: str
    key: str
    status: str
    category: str | None
    parent: str | None
    operation: dict[str, Any] | None
    report: DatasetReport | None
    created_at: datetime
    expires_at: datetime | None = None
    md5: str | None = None
    description: str | None = None


class TokenizedBy(Protocol):
    """A model by whose tokenizer rows are counted."""

    @property
    def name(self) -> str: ...
    @property
    def weights(self) -> str: ...
    @property
    def renderer_sha256(self) -> str: ...


@dataclass(frozen=True)
class Counted:
    """How long the rows of a file are by one model, and what a limit makes of them."""

    summary: Summary
    chosen: Selection


class Datasets:
    def __init__(self, db: Database, storage: Storage, workshop: Workshop, clock: Clock) -> None:
        self.db = db
        self.storage = storage
        self.workshop = workshop
        self.clock = clock

    async def add_file(
        self,
        who: Principal,
        filename: str,
        purpose: str,
        content: AsyncIterator[bytes],
        *,
        category: str | None = None,
        description: str | None = None,
        expires_after_seconds: int | None = None,
    ) -> File:
        """Store a file whole, then add its row; it is read in the background.

        It is there for `expires_after_seconds`; None: until it is deleted.
        """
        check_name(filename)
        check_purpose(purpose)
        check_category(category)
        check_expires_after(expires_after_seconds)
        file_id = ids.new("file")
        stored = await self.storage.write_stream(key_of(who.project, file_id), content)
        async with self.db.write("files") as session:
            return self.admit(
                session,
                who,
                file_id,
                filename,
                purpose,
                stored,
                category=category,
                description=description,
                expires_after_seconds=expires_after_seconds,
            )

    def admit(
        self,
        session: AsyncSession,
        who: Principal,
        file_id: str,
        filename: str,
        purpose: str,
        stored: StoredObject,
        *,
        category: str | None = None,
        description: str | None = None,
        expires_after_seconds: int | None = None,
        parent: str | None = None,
        operation: dict[str, Any] | None = None,
    ) -> File:
        """Add the row of a file whose bytes are stored, in the caller's transaction, which should nudge "files".

        Its time begins now. `parent` is the file it was made from by `operation`.
        """
        at = self.clock.now()
        row = FileRow(
            id=file_id,
            project_id=who.project,
            filename=filename.replace("\0", "")[:1024],  # a character that PostgreSQL cannot keep
            purpose=purpose,
            bytes=stored.size,
            sha256=stored.sha256,
            md5=stored.md5,
            key=stored.key,
            status="uploaded",
            category=category,
            description=description and description.replace("\0", "")[:1024],
            parent_id=parent,
            operation=operation,
            report=None,
            created_at=at,
            expires_at=None if expires_after_seconds is None else at + timedelta(seconds=expires_after_seconds),
            deleted_at=None,
        )
        session.add(row)
        audit.note(session, who, "file.created", file_id, self.clock)
        return _file(row)

    async def get(self, who: Principal, file_id: str) -> File:
        async with self.db.read() as session:
            return _file(_found(await self._files(session, who).get(file_id), file_id))

    async def list(self, who: Principal, page: PageRequest, *, purpose: str | None, newest_first: bool) -> Page[File]:
        async with self.db.read() as session:
            rows = await self._files(session, who).page(page, purpose=purpose, newest_first=newest_first)
        return Page([_file(row) for row in rows.items], rows.has_more)

    async def numbered(self, who: Principal, number: int, size: int) -> NumberedPage[File]:
        """Newest first; `number` counts pages from 1."""
        async with self.db.read() as session:
            rows = await self._files(session, who).numbered(number, size)
        return NumberedPage([_file(row) for row in rows.items], number, size, rows.total)

    async def content(self, who: Principal, file_id: str) -> AsyncIterator[bytes]:
        """The file's bytes, streamed. Raises FileNotFound before the first of them."""
        return self.storage.stream_async((await self.get(who, file_id)).key)

    async def delete(self, who: Principal, file_id: str) -> None:
        """Forget a file and how long its rows are. Its bytes stay while a job that was made with it may still read them."""
        async with self.db.write() as session:
            row = _found(await self._files(session, who).get(file_id), file_id)
            self.remove(session, who, row, "file.deleted")
        await self.forget_lengths(who, file_id)

    def remove(self, session: AsyncSession, who: Principal, row: FileRow, deed: str) -> None:
        """Forget a file, in the caller's transaction; `deed` is what the audit calls that."""
        row.deleted_at = self.clock.now()
        audit.note(session, who, deed, row.id, self.clock)

    async def forget_lengths(self, who: Principal, file_id: str) -> None:
        """Forget how long the rows of a file are that nobody finds any more. May be called again."""
        async with self.db.read() as session:
            counted = await LengthsQueries(session, who).all_of(file_id)
        for one in counted:
            await asyncio.to_thread(self.storage.delete, one.key)

    async def ready(
        self,
        who: Principal,
        file_id: str,
        *,
        param: str,
        wants: str | None,
        at_least: int = 1,
        patience_seconds: float = 0.0,
    ) -> File:
        """The file, when it can be trained on; `param` is the caller's name for it, `wants` the kind of its rows, None any.

        Raises FileNotFound, FileNotChecked when it has not been read within `patience_seconds`, and DatasetInvalid with
        every problem.
        """
        deadline = time.monotonic() + patience_seconds
        while (file := await self._for_training(who, file_id, param)).report is None:
            if time.monotonic() >= deadline:
                raise FileNotChecked(f"The file {file.filename!r} is still being checked.", param=param)
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)
        if not file.report.fit:
            problems = [(problem.line or 0, problem.text.en) for problem in file.report.problems]
            raise DatasetInvalid(
                f"The file {file.filename!r} cannot be trained on: {file.report.summary}", problems, param=param
            )
        if wants is not None and file.report.kind != wants:
            raise DatasetInvalid(
                f"The file {file.filename!r} holds {file.report.kind} rows; this job wants {wants}.", [], param=param
            )
        if file.report.rows < at_least:
            raise DatasetInvalid(
                f"The file {file.filename!r} has {file.report.rows} rows; at least {at_least} are needed.",
                [],
                param=param,
            )
        return file

    async def _for_training(self, who: Principal, file_id: str, param: str) -> File:
        async with self.db.read() as session:
            row = await self._files(session, who).get(file_id)
        if row is None:
            raise FileNotFound(
                f"There is no file {file_id!r}.", param=param, hint="Upload it first, with purpose fine-tune."
            )
        return _file(row)

    async def counted(
        self,
        file: File,
        project: str,
        model: TokenizedBy,
        *,
        max_length: int,
        overlength: Overlength,
        turn_weights: TurnWeights = "honoured",
    ) -> Counted | None:
        """How long the rows are by a model, and which of them are trained under a limit; None while they are being counted,
        which begins when somebody asks first.

        Raises InvalidRequest for a file that cannot be trained on, or what kept its rows from being counted.
        """
        _fit(file, "counted")
        row = await self._lengths_of(file, project, model, turn_weights)
        row = row or await self._new_lengths(file, project, model, turn_weights)
        result = row.result or {}
        if row.status == "error":
            if result.get("again"):  # it went over a limit, which may be another by now
                await self._count_again(row.id, project)
            raise InvalidRequest(
                f"The rows of {file.filename!r} could not be counted: {result['why']}",
                hint="It is tried once more; ask again later." if result.get("again") else None,
            )
        if row.status == "counting":
            return None
        summary = Summary(**result)
        return Counted(summary, await asyncio.to_thread(self._chosen, row.key, summary.rows, max_length, overlength))

    def _chosen(self, key: str, rows: int, max_length: int, overlength: Overlength) -> Selection:
        """Of a large file that is a pass over many lengths, so what came of the first few asked for is kept beside them."""
        kept_at = f"{key}/{max_length}-{overlength}"
        is_kept = rows >= _KEPT_FROM
        if is_kept and self.storage.exists(kept_at):
            return Selection(**json.loads(self.storage.read(kept_at)))
        chosen = under(kept(self.storage.stream(f"{key}/rows")), max_length, overlength)
        if is_kept and len(self.storage.list(key)) < _KEPT_AT_MOST:
            self.storage.write(kept_at, json.dumps(asdict(chosen)).encode())
        return chosen

    async def _count_again(self, lengths_id: str, project: str) -> None:
        async with self.db.write("lengths") as session:
            row = await LengthsQueries(session, Principal("system", project)).get(lengths_id)
            if row is not None and row.status == "error":
                row.status, row.result = "counting", None

    async def _lengths_of(
        self, file: File, project: str, model: TokenizedBy, turn_weights: TurnWeights
    ) -> LengthsRow | None:
        async with self.db.read() as session:
            queries = LengthsQueries(session, Principal("system", project))
            return await queries.of(file.id, model.weights, model.renderer_sha256, turn_weights)

    async def _new_lengths(self, file: File, project: str, model: TokenizedBy, turn_weights: TurnWeights) -> LengthsRow:
        """Have a file counted; of several who ask at once one does it, and the others take what it has."""
        row = self._lengths_row(file, project, model, turn_weights)
        if file.bytes <= _COUNTED_AT_ONCE:
            await self._count(row, file)
        try:
            async with self.db.write("lengths") as session:
                session.add(row)
        except IntegrityError:
            theirs = await self._lengths_of(file, project, model, turn_weights)
            if theirs is None:
                raise
            await asyncio.to_thread(self.storage.delete, row.key)
            return theirs
        return row

    async def _count(self, row: LengthsRow, file: File) -> None:
        """Count a small file now, so that whoever asks can be told at once; what takes longer goes on in the background."""
        assert file.report is not None and file.report.format is not None
        try:
            async with asyncio.timeout(_COUNTED_WITHIN_SECONDS):
                row.result = await self.workshop.do(counting(row, file.key, file.bytes, file.report.format))
        except (TimeoutError, Unavailable):
            return
        row.status = "counted"

    def _lengths_row(self, file: File, project: str, model: TokenizedBy, turn_weights: TurnWeights) -> LengthsRow:
        lengths_id = ids.new("lengths")
        return LengthsRow(
            id=lengths_id,
            project_id=project,
            file_id=file.id,
            model=model.name[:64],
            weights=model.weights,
            renderer_sha256=model.renderer_sha256,
            turn_weights=turn_weights,
            key=f"lengths/{project}/{lengths_id}",
            status="counting",
            result=None,
            created_at=self.clock.now(),
        )

    async def preview(
        self,
        who: Principal,
        file_id: str,
        row: int,
        model: TokenizedBy,
        *,
        max_length: int | None,
        overlength: Overlength,
        first_token: int = 0,
    ) -> Preview:
        """Exactly what will be trained of one row, counted from 1; tokens are shown from `first_token` on."""
        file = await self.get(who, file_id)
        form = _format_of(file)
        assert file.report is not None
        if row < 1:
            raise InvalidParameter("row", f"must be 1 or more, got {row}")
        if row > file.report.rows:  # found out without reading the file
            raise InvalidParameter(
                "row", f"must be at most {file.report.rows:,}, the number of rows of {file.filename!r}, got {row:,}"
            )

        starts = [max((one for one in file.report.starts if one[1] < row), default=(0, 0, 0))]
        options = {
            "format": form,
            "row": row,
            "weights": model.weights,
            "max_length": max_length,
            "overlength": overlength,
            "first_token": first_token,
            "starts": starts,
            "is_fit": file.report.fit,
        }
        task = Task(kind="preview", key=file.key, size=file.bytes, options=options)
        return Preview.model_validate(await self.workshop.do(task))

    def tokens(self, tokenizer: str, text: str) -> int:
        """How many tokens a text is, as it is, by the tokenizer in that folder of the storage."""
        return len(Tokenizer(self.storage.folder(tokenizer, only=TOKENIZER_FILES)).encode_plain(text))

    async def repair(self, who: Principal, file_id: str) -> tuple[File, dict[str, Any]]:
        """Make a new version without the faults that have one right answer; the file, and what was changed."""
        file = await self.get(who, file_id)
        if file.report is None:
            raise _unchecked(file)
        if not any(MEANINGS[code].repairable for code in file.report.counts):
            raise InvalidRequest(
                f"There is nothing in {file.filename!r} that the repair could do.",
                hint="See its report for what is wrong.",
            )
        made = ids.new("file")
        done = await self.workshop.do(
            Task(kind="repair", key=file.key, size=file.bytes, options={"result": key_of(who.project, made)})
        )
        changes = done["changes"]
        operation = {"name": "repair", "counts": changes["counts"], "rows_changed": changes["rows_changed"]}
        files = {made: ("repaired", done["file"])}
        [repaired] = await self._versions(who, file, operation, files, suffix=done["suffix"])
        return repaired, changes

    async def split(
        self, who: Principal, file_id: str, options: dict[str, Any], *, made_for: str | None = None
    ) -> tuple[File, File, dict[str, Any]]:
        """Make a training and a validation version; both, and how the rows were divided. `made_for` is told with them."""
        file = await self.get(who, file_id)
        _fit(file, "split")
        made = {name: ids.new("file") for name in ("training", "validation")}
        keys = {name: key_of(who.project, file_id) for name, file_id in made.items()}
        task = Task(kind="split", key=file.key, size=file.bytes, options={"split": options, **keys})
        done = await self.workshop.do(task)
        operation = {"name": "split", "options": options, "division": done["division"], **_made_for(made_for)}
        files = {made[name]: (name, done[name]) for name in ("training", "validation")}
        training, validation = await self._versions(who, file, operation, files, suffix=done["suffix"])
        return training, validation, done["division"]

    async def join(self, who: Principal, files: Sequence[File], *, param: str, made_for: str) -> File:
        """Make a new version of the first file that has the rows of all, in their order; all have been read.

        The job that it is made for is told with it. Raises what `check_joinable` raises.
        """
        self.check_joinable(files, param=param)
        first = files[0]
        made = ids.new("file")
        stored = await self.storage.write_stream(key_of(who.project, made), self._joined(files))
        operation = {"name": "join", "files": [file.id for file in files], **_made_for(made_for)}
        [joined] = await self._versions(who, first, operation, {made: ("joined", asdict(stored))}, suffix=".jsonl")
        return joined

    def check_joinable(self, files: Sequence[File], *, param: str) -> None:
        """Raises InvalidRequest for files that are not of one format, and for archives."""
        first, others = files[0], files[1:]
        form = _format_of(first)
        for file in others:
            if (other := _format_of(file)) != form:
                raise InvalidRequest(
                    f"{first.filename!r} is of the format {form} and {file.filename!r} of {other}; only files of one format "
                    "can be trained together.",
                    param=param,
                )
        if formats.load(form).in_archive:
            raise InvalidRequest(
                f"Several archives such as {first.filename!r} cannot be trained together.",
                param=param,
                hint="Pack their rows and images into one.",
            )

    async def _joined(self, files: Sequence[File]) -> AsyncIterator[bytes]:
        """The bytes of files, one after the other, each from the beginning of a line on."""
        for file in files:
            last = b"\n"
            async for chunk in self.storage.stream_async(file.key):
                last = chunk[-1:] or last
                yield chunk
            if last != b"\n":
                yield b"\n"

    async def _versions(
        self,
        who: Principal,
        file: File,
        operation: dict[str, Any],
        made: dict[str, tuple[str, dict[str, Any]]],
        *,
        suffix: str,
    ) -> list[File]:
        stem, _, whole = file.filename.rpartition(".")
        async with self.db.write("files") as session:
            return [
                self.admit(
                    session,
                    who,
                    file_id,
                    f"{stem or whole}.{name}{suffix}",
                    file.purpose,
                    StoredObject(**written),
                    category=file.category,
                    parent=file.id,
                    operation={**operation, "output": name},
                )
                for file_id, (name, written) in made.items()
            ]

    async def check_again(self, who: Principal, file_id: str) -> File:
        """Have a file read once more that was found wrong: an image could not be fetched then, or a limit was too low.

        Raises InvalidRequest for one that is being read, or that has no problem.
        """
        async with self.db.write("files") as session:
            row = _found(await self._files(session, who).get(file_id), file_id)
            if row.status != "error":
                state = "has not been checked yet" if row.status == "uploaded" else "was checked and has no problem"
                raise InvalidRequest(f"The file {row.filename!r} {state}.")
            row.status, row.report = "uploaded", None
            audit.note(session, who, "file.checked_again", file_id, self.clock)
            return _file(row)

    async def children(self, who: Principal, file_id: str) -> list[File]:
        """Versions that were made from a file, oldest first."""
        async with self.db.read() as session:
            return [_file(row) for row in await self._files(session, who).children(file_id)]

    def _files(self, session: AsyncSession, who: Principal) -> FileQueries:
        return FileQueries(session, who, self.clock.now())


def check_category(category: str | None) -> None:
    if category is not None and category not in formats.names():
        raise InvalidParameter("category", f"must be one of {', '.join(formats.names())}, got {category!r}")


def _format_of(file: File) -> str:
    """The format of a file that has been read. Raises InvalidRequest for one that has none, or was not read yet."""
    if file.report is None:
        raise _unchecked(file)
    if file.report.format is None:
        raise InvalidRequest(f"The file {file.filename!r} has no rows that can be read: {file.report.summary}")
    return file.report.format


def _fit(file: File, what: str) -> DatasetReport:
    """The report of a file that can be trained on. Raises InvalidRequest for every other one; `what` was to be done."""
    if file.report is None:
        raise _unchecked(file)
    if not file.report.fit:
        raise InvalidRequest(f"The file {file.filename!r} cannot be {what}, it has problems: {file.report.summary}")
    return file.report


def _unchecked(file: File) -> InvalidRequest:
    return InvalidRequest(f"The file {file.filename!r} has not been checked yet.", hint="Ask again in a moment.")


def check_name(filename: str) -> None:
    if (suffix := PurePath(filename).suffix.lower()) in _OTHER_FILES:
        raise InvalidParameter(
            "file",
            f"{filename!r} ends with {suffix}; files of rows end with .jsonl or .json, archives of rows and images with .zip",
            hint="Write one JSON object a line: see the formats.",
        )


def check_purpose(purpose: str) -> None:
    if purpose not in PURPOSES:
        raise InvalidParameter("purpose", f"must be {' or '.join(map(repr, PURPOSES))}, got {purpose!r}")


def check_expires_after(seconds: int | None) -> None:
    least, most = EXPIRES_AFTER_AT_LEAST_SECONDS, EXPIRES_AFTER_AT_MOST_SECONDS
    if seconds is not None and not least <= seconds <= most:
        raise InvalidParameter(
            "expires_after", f"must be from {least:,} seconds (an hour) to {most:,} (30 days), got {seconds:,}."
        )


def counting(row: LengthsRow, key: str, size: int, form: str) -> Task:
    """The task that counts the rows of a file."""
    options = {
        "format": form,
        "weights": row.weights,
        "turn_weights": row.turn_weights,
        "result": f"{row.key}/rows",
    }
    return Task(kind="count", key=key, size=size, options=options)


def key_of(project: str, file_id: str) -> str:
    """Where a file's bytes lie in the storage."""
    return f"files/{project}/{file_id}"


def _found(row: FileRow | None, file_id: str) -> FileRow:
    if row is None:
        raise FileNotFound(f"There is no file {file_id!r}.")
    return row


def _file(row: FileRow) -> File:
    return File(
        id=row.id,
        filename=row.filename,
        purpose=row.purpose,
        bytes=row.bytes,
        sha256=row.sha256,
        key=row.key,
        status=row.status,
        category=row.category,
        parent=row.parent_id,
        operation=row.operation,
        report=DatasetReport.model_validate(row.report) if row.report else None,
        created_at=row.created_at,
        expires_at=row.expires_at,
        md5=row.md5,
        description=row.description,
    )


def _made_for(job: str | None) -> dict[str, str]:
    return {} if job is None else {"made_for": job}
