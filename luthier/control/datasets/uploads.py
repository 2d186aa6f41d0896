"""Uploads: a large file sent in parts, each kept by itself, and put together in the order that the caller names."""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from luthier.control import audit
from luthier.control.datasets.queries import UploadQueries
from luthier.control.datasets.service import (
    Datasets,
    File,
    check_category,
    check_expires_after,
    check_name,
    check_purpose,
    key_of,
)
from luthier.control.datasets.tables import UploadPartRow, UploadRow
from luthier.control.db import Database, now
from luthier.control.tenancy import Principal
from luthier.core import ids, logs
from luthier.core.clock import Clock
from luthier.core.errors import Conflict, FileNotFound, InvalidParameter, NotFound, StorageUnavailable
from luthier.storage import ObjectNotFound, Storage, StoredObject

PART_LIMIT_BYTES = 64 * 1024 * 1024
PART_COUNT_LIMIT = 10_000

_LEASE_SECONDS = 8.0  # how long an upload stays held after the process that was completing it died
_LOOK_AGAIN_SECONDS = 0.2  # how often a caller looks whether another one has completed it

log = logs.get("uploads")


class UploadNotFound(NotFound):
    code = "upload_not_found"


class UploadEnded(Conflict):
    code = "upload_ended"


@dataclass(frozen=True)
class Upload:
    """`file` is there once the upload is completed, unless it has been deleted since, or has expired."""

    id: str
    filename: str
    purpose: str
    bytes: int
    status: str
    created_at: datetime
    expires_at: datetime
    file: File | None


@dataclass(frozen=True)
class Part:
    id: str
    upload: str
    bytes: int
    created_at: datetime


@dataclass(frozen=True)
class _Claim:
    """The right to put an upload together, and to what. `abandoned` is the file of a claim that came to nothing."""

    upload: UploadRow
    parts: list[UploadPartRow]
    token: str
    file_id: str
    abandoned: str | None


class _Lost(Exception):
    """The upload was cancelled, or somebody else has claimed it: what was put together must be dropped."""


class Uploads:
    """Every method raises UploadNotFound for an id that is not there, and UploadEnded where it is too late for the call."""

    def __init__(
        self,
        db: Database,
        storage: Storage,
        datasets: Datasets,
        clock: Clock,
        *,
        total_limit_bytes: int,
        expires_after_seconds: float,
    ) -> None:
        self.db = db
        self.storage = storage
        self.datasets = datasets
        self.clock = clock
        self.total_limit_bytes = total_limit_bytes
        self.expires_after = timedelta(seconds=expires_after_seconds)

    async def create(
        self,
        who: Principal,
        filename: str,
        purpose: str,
        size: int,
        *,
        category: str | None = None,
        file_expires_after_seconds: int | None = None,
    ) -> Upload:
        """Announce a file of `size` bytes. It takes parts until it is ended, or has got none for too long.

        The file stays for that time from when it is made, None until it is deleted.
        """
        check_name(filename)
        check_purpose(purpose)
        check_category(category)
        check_expires_after(file_expires_after_seconds)
        if not 1 <= size <= self.total_limit_bytes:
            raise InvalidParameter(
                "bytes",
                f"must be from 1 to {self.total_limit_bytes:,}, got {size:,}.",
                hint="The operator sets that limit as server.upload_total_limit_bytes.",
            )
        at = self.clock.now()
        row = UploadRow(
            id=ids.new("upload"),
            project_id=who.project,
            filename=filename.replace("\0", "")[:1024],
            purpose=purpose,
            category=category,
            bytes=size,
            status="pending",
            part_count=0,
            part_bytes=0,
            file_expires_after_seconds=file_expires_after_seconds,
            created_at=at,
            expires_at=at + self.expires_after,
        )
        async with self.db.write() as session:
            session.add(row)
            audit.note(session, who, "upload.created", row.id, self.clock)
        return self._upload(row)

    async def add_part(self, who: Principal, upload_id: str, content: AsyncIterator[bytes]) -> Part:
        """Keep a part. One that failed, or whose answer was lost, is sent again; only parts named at the end count."""
        async with self.db.read() as session:
            self._refuse_more(await _found(session, who, upload_id))
        at = self.clock.now()
        part_id = ids.new("part")
        stored = await self.storage.write_stream(f"{folder_of(who.project, upload_id)}/{part_id}", _limited(content))
        try:
            async with self.db.write() as session:
                row = await _found(session, who, upload_id)
                self._refuse_more(row)
                row.part_count += 1
                row.part_bytes += stored.size
                row.expires_at = self.clock.now() + self.expires_after
                session.add(
                    UploadPartRow(
                        id=part_id,
                        project_id=who.project,
                        upload_id=upload_id,
                        bytes=stored.size,
                        sha256=stored.sha256,
                        key=stored.key,
                        created_at=at,
                    )
                )
        except BaseException:
            await asyncio.to_thread(self.storage.delete, stored.key)
            raise
        return Part(part_id, upload_id, stored.size, at)

    async def complete(self, who: Principal, upload_id: str, part_ids: list[str], md5: str | None = None) -> Upload:
        """Make the file of these parts, in this order, and forget the others.

        May be called again, at the same moment or after a crash: there is one file, and every caller gets it. Raises
        InvalidParameter when the parts, their bytes or `md5` do not fit; then nothing is changed.
        """
        md5 = _checked(md5)
        while True:
            claim = await self._claim(who, upload_id, part_ids)
            if isinstance(claim, _Claim):
                with suppress(_Lost):
                    return await self._put_together(who, claim, md5)
            elif claim.status == "completed":
                return await self._completed(who, claim, part_ids, md5)
            else:
                await asyncio.sleep(_LOOK_AGAIN_SECONDS)

    async def cancel(self, who: Principal, upload_id: str) -> Upload:
        """Drop an upload and its parts. May be called again."""
        async with self.db.write("uploads") as session:
            row = await _found(session, who, upload_id)
            if row.status != "cancelled":
                self._refuse_ended(row)
                row.status = "cancelled"
                row.ended_at = self.clock.now()
                row.lease_token = row.lease_until = None
                audit.note(session, who, "upload.cancelled", upload_id, self.clock)
        return self._upload(row)

    async def _claim(self, who: Principal, upload_id: str, part_ids: list[str]) -> _Claim | UploadRow:
        """A claim on the upload; or the upload, where somebody else has completed it or is about to."""
        async with self.db.write() as session:
            row = await _found(session, who, upload_id)
            at = (await session.execute(select(now(session)))).scalar_one()
            is_held = row.lease_until is not None and row.lease_until > at
            if row.status == "completed" or (row.status == "pending" and is_held):
                return row
            self._refuse_ended(row)
            parts = _in_order(row, await UploadQueries(session, who).parts(upload_id), part_ids)
            claim = _Claim(row, parts, secrets.token_hex(16), ids.new("file"), abandoned=row.file_id)
            row.lease_token, row.lease_until, row.file_id = claim.token, at + _LEASE_SECONDS, claim.file_id
            return claim

    async def _put_together(self, who: Principal, claim: _Claim, md5: str | None) -> Upload:
        """Write the file with no transaction open, then apply it under the claim. Raises _Lost."""
        whole = hashlib.md5(usedforsecurity=False)
        try:
            async with self._renewed(who, claim):
                if claim.abandoned is not None:
                    await asyncio.to_thread(self.storage.delete, key_of(who.project, claim.abandoned))
                content = self._joined(claim.parts, whole, md5)
                stored = await self.storage.write_stream(key_of(who.project, claim.file_id), content)
                return await self._apply(who, claim, stored, whole.hexdigest())
        except _Lost:
            await asyncio.to_thread(self.storage.delete, key_of(who.project, claim.file_id))
            raise
        except BaseException:  # the object, if there is one, is left to the next claim or to the cleaner: they know
            await self._release(who, claim)
            raise

    async def _joined(
        self, parts: list[UploadPartRow], whole: hashlib._Hash, expected: str | None
    ) -> AsyncIterator[bytes]:
        """The bytes of the parts, each compared with what was sent, and all of them with `expected`, the caller's md5."""

        def count(chunk: bytes) -> None:
            digest.update(chunk)
            whole.update(chunk)

        for part in parts:
            digest = hashlib.sha256()
            with suppress(ObjectNotFound):
                async for chunk in self.storage.stream_async(part.key):
                    await asyncio.to_thread(count, chunk)  # others are served meanwhile
                    yield chunk
            if digest.hexdigest() != part.sha256:
                raise StorageUnavailable(
                    f"The part {part.id!r} is not in the storage as it was sent.",
                    hint="Send that part again, and complete the upload with the id of the new one.",
                )
        if expected is not None and whole.hexdigest() != expected:
            raise InvalidParameter(
                "md5",
                f"the parts in this order have {whole.hexdigest()}, expected {expected}.",
                hint="Name the parts in the order of their bytes; if they are, one was damaged on its way: send it again.",
            )

    async def _apply(self, who: Principal, claim: _Claim, stored: StoredObject, md5: str) -> Upload:
        async with self.db.write("files", "uploads") as session:
            row = await _found(session, who, claim.upload.id)
            if row.lease_token != claim.token:
                raise _Lost
            file = self.datasets.admit(
                session,
                who,
                claim.file_id,
                row.filename,
                row.purpose,
                stored,
                category=row.category,
                expires_after_seconds=row.file_expires_after_seconds,
            )
            row.status = "completed"
            row.ended_at = self.clock.now()
            row.md5 = md5
            row.order_sha256 = _order(part.id for part in claim.parts)
            row.lease_token = row.lease_until = None
        return self._upload(row, file)

    async def _completed(self, who: Principal, row: UploadRow, part_ids: list[str], md5: str | None) -> Upload:
        """The answer to a call that comes again. Raises InvalidParameter where it asks for another file."""
        if _order(part_ids) != row.order_sha256:
            raise InvalidParameter(
                "part_ids",
                f"the upload was completed already, of other parts or in another order; its file is {row.file_id!r}.",
                hint="Use that file, or create a new upload.",
            )
        if md5 not in (None, row.md5):
            raise InvalidParameter("md5", f"the upload was completed already; its file has {row.md5}, expected {md5}.")
        file = None
        with suppress(FileNotFound):
            file = await self.datasets.get(who, str(row.file_id))
        return self._upload(row, file)

    @asynccontextmanager
    async def _renewed(self, who: Principal, claim: _Claim) -> AsyncIterator[None]:
        """Keep a claim alive while the block runs, however long that takes."""

        async def renew() -> None:
            while True:
                await asyncio.sleep(_LEASE_SECONDS / 3)
                try:
                    async with self.db.write() as session:
                        row = await _found(session, who, claim.upload.id)
                        if row.lease_token == claim.token:
                            at = (await session.execute(select(now(session)))).scalar_one()
                            row.lease_until = at + _LEASE_SECONDS
                except SQLAlchemyError:  # the next round may do better; else the lease runs out, and the apply finds it
                    log.exception("the lease of an upload could not be renewed", upload=claim.upload.id)

        renewing = asyncio.create_task(renew())
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)

    async def _release(self, who: Principal, claim: _Claim) -> None:
        with suppress(SQLAlchemyError):  # then it runs out
            async with self.db.write() as session:
                row = await _found(session, who, claim.upload.id)
                if row.lease_token == claim.token:
                    row.lease_token = row.lease_until = None

    def _refuse_more(self, row: UploadRow) -> None:
        """Raises when no further part can be taken: every byte may be sent twice, and then some."""
        self._refuse_ended(row)
        most = 2 * max(row.bytes, PART_LIMIT_BYTES)
        if row.part_count >= PART_COUNT_LIMIT or row.part_bytes >= most:
            raise UploadEnded(
                f"The upload {row.id!r} holds {row.part_count:,} parts of {row.part_bytes:,} bytes in all; at most "
                f"{PART_COUNT_LIMIT:,} parts, and less than {most:,} bytes before the last of them, are taken for it.",
                hint="Complete it, or cancel it and send the file to a new upload in fewer parts.",
            )

    def _refuse_ended(self, row: UploadRow) -> None:
        status = self._status(row)
        if status == "completed":
            raise UploadEnded(f"The upload {row.id!r} is completed.", hint=f"Its file is {row.file_id!r}.")
        if status != "pending":
            when = f" since {row.expires_at:%Y-%m-%d %H:%M:%S} UTC" if status == "expired" else ""
            raise UploadEnded(
                f"The upload {row.id!r} is {status}{when}.", hint="Create a new one, and send all parts to it."
            )

    def _status(self, row: UploadRow) -> str:
        return "expired" if row.status == "pending" and row.expires_at <= self.clock.now() else row.status

    def _upload(self, row: UploadRow, file: File | None = None) -> Upload:
        return Upload(
            id=row.id,
            filename=row.filename,
            purpose=row.purpose,
            bytes=row.bytes,
            status=self._status(row),
            created_at=row.created_at,
            expires_at=row.expires_at,
            file=file,
        )


def folder_of(project: str, upload_id: str) -> str:
    """Where the parts of an upload lie in the storage."""
    return f"uploads/{project}/{upload_id}"


async def _found(session: AsyncSession, who: Principal, upload_id: str) -> UploadRow:
    row = await UploadQueries(session, who).get(upload_id)
    if row is None:
        raise UploadNotFound(f"There is no upload {upload_id!r}.", hint="Create one with POST /uploads.")
    return row


async def _limited(content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    size = 0
    async for chunk in content:
        size += len(chunk)
        if size > PART_LIMIT_BYTES:
            raise InvalidParameter(
                "data",
                f"a part may have at most {PART_LIMIT_BYTES:,} bytes, got more.",
                hint="Send it as several parts.",
            )
        yield chunk


def _checked(md5: str | None) -> str | None:
    if md5 is None:
        return None
    if not re.fullmatch("[0-9a-fA-F]{32}", md5):
        raise InvalidParameter("md5", f"must be 32 hexadecimal digits, got {md5[:100]!r}.")
    return md5.lower()


def _in_order(row: UploadRow, parts: list[UploadPartRow], part_ids: list[str]) -> list[UploadPartRow]:
    """The parts that are named, in that order. Raises InvalidParameter where they do not make the announced file."""
    known = {part.id: part for part in parts}
    named = Counter(part_ids)
    faults = []
    if unknown := [part_id for part_id in named if part_id not in known]:
        faults.append(f"no parts of this upload: {_listed(unknown)}")
    if doubled := [part_id for part_id, times in named.items() if times > 1]:
        faults.append(f"named more than once: {_listed(doubled)}")
    if faults:
        raise InvalidParameter(
            "part_ids",
            "; ".join(faults) + ".",
            hint="Name each part once, by the id that sending it was answered with, in the order of the bytes.",
        )
    size = sum(known[part_id].bytes for part_id in part_ids)
    if size != row.bytes:
        left = [part.id for part in parts if part.id not in named]
        unnamed = f"; sent and not named: {_listed(left)}" if left else ""
        raise InvalidParameter(
            "part_ids",
            f"the {len(part_ids):,} parts named have {size:,} bytes, expected {row.bytes:,} as announced{unnamed}.",
            hint="Send what is missing and name every part; if the announced number is wrong, create a new upload.",
        )
    return [known[part_id] for part_id in part_ids]


def _listed(part_ids: list[str], most: int = 5) -> str:
    more = f" and {len(part_ids) - most:,} more" if len(part_ids) > most else ""
    return ", ".join(repr(part_id[:100]) for part_id in part_ids[:most]) + more


def _order(part_ids: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(part_ids).encode()).hexdigest()
