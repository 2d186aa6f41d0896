"""Uploads: parts in, one file out, whatever order, repetition, crash or cancellation they meet on the way."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import select, update

from luthier.control.audit import AuditRow
from luthier.control.datasets.tables import FileRow, UploadPartRow, UploadRow
from luthier.control.datasets.uploads import PART_LIMIT_BYTES, Part, Upload, UploadEnded, UploadNotFound, Uploads
from luthier.control.db import now
from luthier.control.scheduling.background import UploadCleaner
from luthier.control.tenancy import Principal
from luthier.core.errors import InvalidParameter, LuthierError, StorageUnavailable
from luthier.core.pages import PageRequest
from luthier.core.settings import DatabaseSection
from luthier.storage import Storage, StoredObject
from luthier.testing import InlineExecutor, jsonl, toy_parts, toy_rows
from tests.unit.control.conftest import ADA, BOB, House

ROWS = jsonl(toy_rows(12))
PIECES = [ROWS[:100], ROWS[100:250], ROWS[250:]]


@contextmanager
def refused(kind: type[LuthierError], said: str) -> Iterator[pytest.ExceptionInfo[LuthierError]]:
    """What is raised says this to the caller."""
    with pytest.raises(kind) as raised:
        yield raised
    assert re.search(said, raised.value.text), raised.value.text


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def sent(house: House, *pieces: bytes, who: Principal = ADA, size: int | None = None) -> tuple[Upload, list[str]]:
    """An upload with these parts, and their ids."""
    uploads = house.parts.services.uploads
    upload = await uploads.create(who, "rows.jsonl", "fine-tune", size or sum(map(len, pieces)))
    return upload, [(await uploads.add_part(who, upload.id, stream(piece))).id for piece in pieces]


async def files(house: House, who: Principal = ADA) -> list[str]:
    page = await house.parts.services.datasets.list(who, PageRequest(100), purpose=None, newest_first=True)
    return [file.id for file in page.items]


async def let_go(house: House) -> None:
    """As though a while had passed for whoever holds a row."""
    async with house.parts.db.write() as session:
        await session.execute(update(UploadRow).values(lease_until=now(session) - 1))


async def test_parts_become_a_file_like_any_other_and_are_removed(house: House) -> None:
    upload, parts = await sent(house, *PIECES)
    done = await house.parts.services.uploads.complete(ADA, upload.id, parts, hashlib.md5(ROWS).hexdigest().upper())
    assert (done.status, done.bytes, done.file and done.file.bytes) == ("completed", len(ROWS), len(ROWS))
    assert done.file is not None
    assert (done.file.filename, done.file.purpose, done.file.status) == ("rows.jsonl", "fine-tune", "uploaded")
    assert done.file.sha256 == hashlib.sha256(ROWS).hexdigest()
    assert house.parts.storage.read(done.file.key) == ROWS
    await house.parts.inspector.once()
    assert (await house.parts.services.datasets.get(ADA, done.file.id)).status == "processed"
    await house.parts.cleaner.once()
    assert house.parts.storage.list("uploads") == []
    async with house.parts.db.read() as session:
        deeds = await session.scalars(select(AuditRow.deed).order_by(AuditRow.id))
        assert list(deeds) == ["upload.created", "file.created"]


async def test_the_order_of_the_ids_is_the_order_of_the_bytes(house: House) -> None:
    upload, parts = await sent(house, *PIECES)
    done = await house.parts.services.uploads.complete(ADA, upload.id, parts[::-1])
    assert done.file is not None
    assert house.parts.storage.read(done.file.key) == b"".join(PIECES[::-1])


async def test_a_part_sent_twice_counts_where_it_is_named(house: House) -> None:
    upload, [first, _, second] = await sent(house, ROWS[:50], ROWS[:50], ROWS[50:], size=len(ROWS))
    done = await house.parts.services.uploads.complete(ADA, upload.id, [first, second])
    assert done.file is not None
    assert done.file.sha256 == hashlib.sha256(ROWS).hexdigest()


@pytest.mark.parametrize(
    ("named", "md5", "param", "said"),
    [
        (
            [0, 1],
            None,
            "part_ids",
            r"the 2 parts named have 250 bytes, expected [\d,]+ as announced; sent and not named: 'part-",
        ),
        ([], None, "part_ids", "the 0 parts named have 0 bytes"),
        ([0, 1, 2, "part-unknown"], None, "part_ids", "no parts of this upload: 'part-unknown'. Name each part once"),
        ([0, 1, "theirs", 2], None, "part_ids", "no parts of this upload: 'part-"),
        ([0, 1, 2, 1, "x"], None, "part_ids", "no parts of this upload: 'x'; named more than once: 'part-"),
        ([0, 1, 2], "0" * 32, "md5", "the parts in this order have [0-9a-f]{32}, expected 00000"),
        ([0, 1, 2], "nonsense", "md5", "must be 32 hexadecimal digits, got 'nonsense'"),
    ],
)
async def test_what_does_not_fit_is_named_and_changes_nothing(
    house: House, named: list[int | str], md5: str | None, param: str, said: str
) -> None:
    uploads = house.parts.services.uploads
    upload, parts = await sent(house, *PIECES)
    _, theirs = await sent(house, b"x")
    chosen = [parts[one] if isinstance(one, int) else theirs[0] if one == "theirs" else one for one in named]
    with refused(InvalidParameter, said) as told:
        await uploads.complete(ADA, upload.id, chosen, md5)
    assert told.value.param == param
    assert (await files(house), house.parts.storage.list("files")) == ([], [])
    assert (await uploads.complete(ADA, upload.id, parts)).status == "completed"


async def test_the_bytes_that_were_announced_are_expected(house: House) -> None:
    upload, parts = await sent(house, *PIECES, size=len(ROWS) + 1)
    with refused(InvalidParameter, rf"have {len(ROWS):,} bytes, expected {len(ROWS) + 1:,}"):
        await house.parts.services.uploads.complete(ADA, upload.id, parts)


@pytest.mark.parametrize(
    ("purpose", "size", "said"),
    [
        ("batch", 5, "purpose: must be 'fine-tune', got 'batch'"),
        ("fine-tune", 0, "bytes: must be from 1 to 10,737,418,240, got 0"),
        ("fine-tune", 10 * 1024**3 + 1, "got 10,737,418,241"),
        ("fine-tune", 10**30, "upload_total_limit_bytes"),
    ],
)
async def test_an_upload_that_can_never_be_completed_is_refused(
    house: House, purpose: str, size: int, said: str
) -> None:
    with refused(InvalidParameter, said):
        await house.parts.services.uploads.create(ADA, "x", purpose, size)


async def test_ten_gigabytes_are_announced_and_a_part_takes_64_megabytes_and_no_more(house: House) -> None:
    uploads = house.parts.services.uploads
    upload = await uploads.create(ADA, "x", "fine-tune", 10 * 1024**3)
    piece = bytes(PART_LIMIT_BYTES // 8)
    part = await uploads.add_part(ADA, upload.id, stream(*[piece] * 8))
    assert part.bytes == 64 * 1024 * 1024
    with refused(InvalidParameter, "a part may have at most 67,108,864 bytes, got more"):
        await uploads.add_part(ADA, upload.id, stream(*[piece] * 8, b"!"))
    assert len(house.parts.storage.list("uploads")) == 1


async def test_parts_without_end_are_refused(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.control.datasets.uploads.PART_LIMIT_BYTES", 10)
    upload, _ = await sent(house, b"0123456789", b"0123456789", size=5)
    with refused(UploadEnded, r"holds 2 parts of 20 bytes .* fewer parts"):
        await house.parts.services.uploads.add_part(ADA, upload.id, stream(b"x"))


async def test_a_part_that_breaks_off_leaves_nothing_and_is_sent_again(house: House) -> None:
    async def breaking() -> AsyncIterator[bytes]:
        yield ROWS[:10]
        raise ConnectionError

    uploads = house.parts.services.uploads
    upload, parts = await sent(house, *PIECES[:2], size=len(ROWS))
    with pytest.raises(ConnectionError):
        await uploads.add_part(ADA, upload.id, breaking())
    assert len(house.parts.storage.list("uploads")) == 2
    last = await uploads.add_part(ADA, upload.id, stream(PIECES[2]))
    assert (await uploads.complete(ADA, upload.id, [*parts, last.id])).status == "completed"


async def test_completing_again_gives_the_same_file_and_no_other(house: House) -> None:
    uploads = house.parts.services.uploads
    upload, parts = await sent(house, *PIECES)
    first = await uploads.complete(ADA, upload.id, parts)
    assert await uploads.complete(ADA, upload.id, parts, hashlib.md5(ROWS).hexdigest()) == first
    assert first.file is not None
    assert await files(house) == [first.file.id]
    for asked, md5, said in ((parts[::-1], None, "completed already, of other parts"), (parts, "0" * 32, "expected 0")):
        with refused(InvalidParameter, said):
            await uploads.complete(ADA, upload.id, asked, md5)
    await house.parts.services.datasets.delete(ADA, first.file.id)
    assert (await uploads.complete(ADA, upload.id, parts)).file is None


async def test_many_who_complete_at_once_on_two_servers_make_one_file(house: House) -> None:
    other = house.again(InlineExecutor(lambda process: 0)).services.uploads
    upload, parts = await sent(house, *PIECES)
    calls = [one.complete(ADA, upload.id, parts) for one in (house.parts.services.uploads, other) for _ in range(4)]
    made = {done.file.id for done in await asyncio.gather(*calls) if done.file}
    assert await files(house) == list(made)
    assert len(house.parts.storage.list("files")) == 1


async def test_one_who_waits_takes_over_when_the_first_one_fails(house: House) -> None:
    uploads = house.parts.services.uploads
    upload, parts = await sent(house, *PIECES)
    calls = [uploads.complete(ADA, upload.id, parts, md5) for md5 in ("0" * 32, None, "1" * 32)]
    wrong, done, late = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(wrong, InvalidParameter) and isinstance(late, InvalidParameter)
    assert isinstance(done, Upload) and done.file is not None
    assert await files(house) == [done.file.id]
    assert house.parts.storage.list("files") == [done.file.key]


async def test_a_crash_in_the_middle_is_made_good_by_the_next_call(house: House) -> None:
    uploads = house.parts.services.uploads
    upload, parts = await sent(house, *PIECES)
    claim = await uploads._claim(ADA, upload.id, parts)
    left = f"files/{ADA.project}/{claim.file_id}"
    house.parts.storage.write(left, ROWS)  # and there the server died
    await let_go(house)
    done = await uploads.complete(ADA, upload.id, parts)
    assert done.file is not None
    assert house.parts.storage.list("files") == [done.file.key] != [left]


async def test_what_a_crash_left_of_an_upload_that_nobody_completes_is_removed(house: House) -> None:
    uploads = house.parts.services.uploads
    upload, parts = await sent(house, *PIECES)
    claim = await uploads._claim(ADA, upload.id, parts)
    house.parts.storage.write(f"files/{ADA.project}/{claim.file_id}", ROWS)
    house.clock.advance(3601)
    await house.parts.cleaner.once()
    assert house.parts.storage.list("files") != []  # it is held: whoever completes it may be alive
    await let_go(house)
    await house.parts.cleaner.once()
    await house.parts.cleaner.once()
    assert (house.parts.storage.list("files"), house.parts.storage.list("uploads")) == ([], [])


class Slow(Storage):
    """Stops in the middle of every stream below `files` until it is told to go on."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.stopped, self.go_on = asyncio.Event(), asyncio.Event()

    async def write_stream(self, key: str, chunks: AsyncIterator[bytes]) -> StoredObject:
        if key.startswith("files/"):
            self.stopped.set()
            await self.go_on.wait()
        return await super().write_stream(key, chunks)


def slow(house: House) -> tuple[Uploads, Slow]:
    parts, storage = house.parts, Slow(house.parts.storage.url)
    limits = {"total_limit_bytes": 10**9, "expires_after_seconds": 3600}
    return Uploads(parts.db, storage, parts.services.datasets, house.clock, **limits), storage


async def test_one_who_was_replaced_drops_what_it_made_and_answers_with_the_file_there_is(house: House) -> None:
    uploads, storage = slow(house)
    upload, parts = await sent(house, *PIECES)
    first = asyncio.create_task(uploads.complete(ADA, upload.id, parts))
    await storage.stopped.wait()
    await let_go(house)
    done = await house.parts.services.uploads.complete(ADA, upload.id, parts)
    storage.go_on.set()
    assert await first == done
    assert done.file is not None
    assert house.parts.storage.list("files") == [done.file.key]


async def test_cancelling_while_it_is_completed_leaves_no_file(house: House) -> None:
    uploads, storage = slow(house)
    upload, parts = await sent(house, *PIECES)
    completing = asyncio.create_task(uploads.complete(ADA, upload.id, parts))
    await storage.stopped.wait()
    assert (await uploads.cancel(ADA, upload.id)).status == "cancelled"
    storage.go_on.set()
    with refused(UploadEnded, "is cancelled"):
        await completing
    assert (await files(house), house.parts.storage.list("files")) == ([], [])


async def test_a_call_that_is_cut_off_lets_the_upload_go(house: House) -> None:
    uploads, storage = slow(house)
    upload, parts = await sent(house, *PIECES)
    completing = asyncio.create_task(uploads.complete(ADA, upload.id, parts))
    await storage.stopped.wait()
    completing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await completing
    async with house.parts.db.read() as session:
        assert await session.scalar(select(UploadRow.lease_token)) is None


@pytest.mark.parametrize("end", ["cancelled", "expired", "completed"])
async def test_an_ended_upload_takes_nothing_more_and_says_what_to_do(house: House, end: str) -> None:
    uploads = house.parts.services.uploads
    upload, parts = await sent(house, *PIECES)
    told = "Create a new one"
    if end == "cancelled":
        await uploads.cancel(ADA, upload.id)
        assert (await uploads.cancel(ADA, upload.id)).status == "cancelled"  # a client that tries again
    elif end == "expired":
        house.clock.advance(3600)
    else:
        told = "Its file is 'file-"
        await uploads.complete(ADA, upload.id, parts)
    calls = [lambda: uploads.add_part(ADA, upload.id, stream(b"x"))]
    calls += [lambda: uploads.complete(ADA, upload.id, parts)] if end != "completed" else []
    calls += [lambda: uploads.cancel(ADA, upload.id)] if end != "cancelled" else []
    for call in calls:
        with refused(UploadEnded, rf"is {end}.*{told}"):
            await call()


async def test_an_upload_lives_as_long_as_parts_come_and_a_completed_one_for_good(house: House) -> None:
    uploads = house.parts.services.uploads
    upload = await uploads.create(ADA, "rows.jsonl", "fine-tune", len(ROWS))
    assert (upload.expires_at - upload.created_at).total_seconds() == 3600
    parts: list[Part] = []
    for piece in PIECES:
        house.clock.advance(3000)
        parts.append(await uploads.add_part(ADA, upload.id, stream(piece)))
        await house.parts.cleaner.once()
    done = await uploads.complete(ADA, upload.id, [part.id for part in parts])
    house.clock.advance(10**6)
    assert await uploads.complete(ADA, upload.id, [part.id for part in parts]) == done


async def statuses(house: House) -> list[tuple[str, bool]]:
    async with house.parts.db.read() as session:
        rows = await session.scalars(select(UploadRow))
        return [(row.status, row.cleared_at is not None) for row in rows]


@pytest.mark.parametrize("end", ["cancelled", "expired", "completed"])
async def test_parts_go_when_their_upload_ends_and_one_that_came_late_goes_too(house: House, end: str) -> None:
    uploads, cleaner, storage = house.parts.services.uploads, house.parts.cleaner, house.parts.storage
    upload, parts = await sent(house, *PIECES)
    kept = await sent(house, b"of another upload")
    await cleaner.once()
    assert len(storage.list("uploads")) == 4
    if end == "cancelled":
        await uploads.cancel(ADA, upload.id)
    elif end == "expired":
        house.clock.advance(3599)
        await uploads.add_part(ADA, kept[0].id, stream(b"still alive"))
        house.clock.advance(1)
        await cleaner.once()  # this one writes it down
    else:
        await uploads.complete(ADA, upload.id, parts)
    await cleaner.once()
    assert all(kept[0].id in key for key in storage.list("uploads"))
    late = f"uploads/{ADA.project}/{upload.id}/part-late"
    storage.write(late, b"its server died before it found that it was too late")
    await let_go(house)
    house.clock.advance(600)
    await cleaner.once()
    assert not storage.exists(late)
    assert sorted(await statuses(house)) == sorted([(end, True), ("pending", False)])
    async with house.parts.db.read() as session:
        rows = await session.scalars(select(UploadPartRow.upload_id))
        assert set(rows) == {kept[0].id}


async def test_the_cleaner_removes_unfinished_files_of_a_killed_server(house: House) -> None:
    upload, parts = await sent(house, *PIECES)
    claim = await house.parts.services.uploads._claim(ADA, upload.id, parts)
    root = house.folder / "objects"
    halves = [root / f"uploads/{ADA.project}/{upload.id}/part-x#1", root / f"files/{ADA.project}/{claim.file_id}#1"]
    for half in halves:
        half.parent.mkdir(parents=True, exist_ok=True)
        half.write_bytes(b"half")
    await house.parts.services.uploads.cancel(ADA, upload.id)
    await house.parts.cleaner.once()
    assert not [half for half in halves if half.exists()]
    assert not halves[0].parent.exists()


async def test_a_fault_of_the_storage_is_tried_again_by_the_cleaner(house: House) -> None:
    class Broken(Storage):
        def delete(self, prefix: str) -> None:
            raise StorageUnavailable("not today")

    upload, _ = await sent(house, *PIECES)
    await house.parts.services.uploads.cancel(ADA, upload.id)
    await UploadCleaner(house.parts.db, Broken("memory://"), house.clock).once()
    await let_go(house)
    await house.parts.cleaner.once()
    assert house.parts.storage.list("uploads") == []


@pytest.mark.parametrize("damage", [None, b"other"])
async def test_a_part_that_is_not_in_the_storage_as_it_was_sent_is_named(house: House, damage: bytes | None) -> None:
    uploads, storage = house.parts.services.uploads, house.parts.storage
    upload, parts = await sent(house, *PIECES)
    key = f"uploads/{ADA.project}/{upload.id}/{parts[1]}"
    storage.delete(key) if damage is None else storage.write(key, damage)
    with refused(StorageUnavailable, rf"{parts[1]}.*Send that part again"):
        await uploads.complete(ADA, upload.id, parts)
    parts[1] = (await uploads.add_part(ADA, upload.id, stream(PIECES[1]))).id
    assert (await uploads.complete(ADA, upload.id, parts)).status == "completed"


async def test_another_projects_upload_is_not_there(house: House) -> None:
    uploads = house.parts.services.uploads
    upload, parts = await sent(house, *PIECES)
    for call in (
        uploads.add_part(BOB, upload.id, stream(b"x")),
        uploads.complete(BOB, upload.id, parts),
        uploads.cancel(BOB, upload.id),
        uploads.cancel(ADA, "upload-nonsense"),
    ):
        with pytest.raises(UploadNotFound):
            await call
    mine, _ = await sent(house, ROWS, who=BOB)
    with refused(InvalidParameter, "no parts of this upload"):
        await uploads.complete(BOB, mine.id, parts)


async def test_the_store_need_not_be_local(house: House, tmp_path: Path) -> None:
    parts = toy_parts(
        tmp_path / "other",
        InlineExecutor(lambda process: 0),
        house.clock,
        database=DatabaseSection(url=house.parts.db.url),
    )
    house.others.append(parts)
    memory = Storage("memory://")
    limits = {"total_limit_bytes": 10**9, "expires_after_seconds": 3600}
    uploads = Uploads(parts.db, memory, parts.services.datasets, house.clock, **limits)
    upload = await uploads.create(ADA, "x", "fine-tune", len(ROWS))
    ids = [(await uploads.add_part(ADA, upload.id, stream(piece))).id for piece in PIECES]
    done = await uploads.complete(ADA, upload.id, ids)
    assert done.file is not None
    assert memory.read(done.file.key) == ROWS
    await UploadCleaner(parts.db, memory, house.clock).once()
    assert memory.list("uploads") == []
    async with parts.db.read() as session:
        assert await session.scalar(select(FileRow.sha256)) == hashlib.sha256(ROWS).hexdigest()
