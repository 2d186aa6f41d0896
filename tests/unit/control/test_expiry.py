"""Files that expire: gone for every question from that moment on, and removed by the sweeper as a delete does."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import select

from luthier.control.audit import AuditRow
from luthier.control.datasets import service
from luthier.control.datasets.service import File
from luthier.control.datasets.tables import FileRow
from luthier.control.jobs.lifecycle import Status
from luthier.control.scheduling.background import FileSweeper
from luthier.control.tenancy import Principal
from luthier.core.errors import FileNotFound, InvalidParameter, InvalidRequest, StorageUnavailable
from luthier.core.pages import PageRequest
from luthier.testing import jsonl, toy_rows
from tests.unit.control.conftest import ADA, BOB, House, add

HOUR, MONTH = 3600, 30 * 24 * 3600
ROWS = jsonl(toy_rows(12))


async def expiring(house: House, seconds: int = HOUR, who: Principal = ADA) -> File:
    """A file that has been read and stays that long."""
    file = await add(house.parts, who, ROWS, expires_after_seconds=seconds)
    await house.parts.inspector.once()
    return await house.parts.services.datasets.get(who, file.id)


async def listed(house: House, who: Principal = ADA) -> list[str]:
    page = await house.parts.services.datasets.list(who, PageRequest(), purpose=None, newest_first=True)
    return [file.id for file in page.items]


async def deeds(house: House, file: File) -> list[tuple[str, str, str]]:
    async with house.parts.db.read() as session:
        rows = await session.scalars(select(AuditRow).where(AuditRow.subject == file.id).order_by(AuditRow.id))
        return [(row.deed, row.principal, row.project_id) for row in rows]


async def counted(house: House, file: File) -> object:
    card = await house.parts.services.catalog.trainable("toy", "lora")
    return await house.parts.services.datasets.counted(file, ADA.project, card, max_length=2048, overlength="drop")


@pytest.mark.parametrize("seconds", [HOUR, 5000, MONTH])
async def test_a_file_tells_when_it_expires_from_when_it_was_made(house: House, seconds: int) -> None:
    file = await expiring(house, seconds)
    assert file.expires_at == file.created_at + timedelta(seconds=seconds)


@pytest.mark.parametrize("seconds", [-1, 0, HOUR - 1, MONTH + 1, 10**30])
async def test_a_life_that_is_too_short_or_too_long_is_refused_before_anything_is_kept(
    house: House, seconds: int
) -> None:
    services = house.parts.services
    with pytest.raises(InvalidParameter, match=r"from 3,600 seconds .* to 2,592,000") as refused:
        await add(house.parts, ADA, ROWS, expires_after_seconds=seconds)
    assert refused.value.param == "expires_after"
    with pytest.raises(InvalidParameter, match="expires_after"):
        await services.uploads.create(ADA, "a.jsonl", "fine-tune", 9, file_expires_after_seconds=seconds)
    assert house.parts.storage.list("files") == []


async def test_a_file_past_its_time_is_nowhere_though_nobody_has_removed_it(house: House) -> None:
    datasets = house.parts.services.datasets
    kept, file = await house.upload(), await expiring(house)
    house.clock.advance(HOUR - 1)
    assert await listed(house) == [file.id, kept.id]
    assert (await datasets.ready(ADA, file.id, param="training_file", wants="chat")).id == file.id
    house.clock.advance(1)
    for asked in (
        datasets.get(ADA, file.id),
        datasets.content(ADA, file.id),
        datasets.delete(ADA, file.id),
        datasets.check_again(ADA, file.id),
        datasets.split(ADA, file.id, {"ratio": 0.5, "seed": 1}),
        datasets.ready(ADA, file.id, param="training_file", wants="chat"),
        house.submit(training_files=[file.id]),
        house.submit(training_files=[kept.id], validation_files=[file.id]),
    ):
        with pytest.raises(FileNotFound):
            await asked
    assert await listed(house) == [kept.id]
    page = await datasets.numbered(ADA, 1, 10)
    assert ([one.id for one in page.items], page.total) == ([kept.id], 1)
    assert [deed for deed, _, _ in await deeds(house, file)] == ["file.created"]


async def test_the_sweeper_removes_what_has_expired_once_and_nothing_else(house: House) -> None:
    files = [await expiring(house), await expiring(house, who=BOB), await expiring(house, HOUR + 1)]
    forever = await house.upload()
    await house.parts.sweeper.once()
    house.clock.advance(HOUR)
    for _ in range(2):
        await house.parts.sweeper.once()
    assert [await deeds(house, file) for file in files] == [
        [("file.created", who.id, who.project), ("file.expired", "system", who.project)] for who in (ADA, BOB)
    ] + [[("file.created", ADA.id, ADA.project)]]
    house.clock.advance(10 * MONTH)
    await house.parts.sweeper.once()
    assert await listed(house) == [forever.id]
    async with house.parts.db.read() as session:
        removed = await session.scalars(select(FileRow.id).where(FileRow.deleted_at.is_not(None)).order_by(FileRow.id))
        assert list(removed) == [file.id for file in files]


async def test_a_file_that_was_deleted_does_not_expire_as_well(house: House) -> None:
    file = await expiring(house)
    await house.parts.services.datasets.delete(ADA, file.id)
    house.clock.advance(HOUR)
    await house.parts.sweeper.once()
    assert [deed for deed, _, _ in await deeds(house, file)] == ["file.created", "file.deleted"]


async def test_how_long_the_rows_are_goes_with_the_file(house: House) -> None:
    file = await expiring(house)
    assert await counted(house, file) is not None
    assert house.parts.storage.list("lengths") != []
    house.clock.advance(HOUR)
    await house.parts.sweeper.once()
    assert house.parts.storage.list("lengths") == []


async def test_a_storage_that_is_away_is_tried_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(house.parts.sweeper, "every_seconds", 0)
    file = await expiring(house)
    await counted(house, file)
    house.clock.advance(HOUR)

    def away(prefix: str) -> None:
        raise StorageUnavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(house.parts.storage, "delete", away)
        await house.parts.sweeper.once()
    assert [deed for deed, _, _ in await deeds(house, file)] == ["file.created"]
    await house.parts.sweeper.once()
    assert [deed for deed, _, _ in await deeds(house, file)] == ["file.created", "file.expired"]
    assert house.parts.storage.list("lengths") == []


async def test_many_servers_that_sweep_at_once_remove_a_file_once(house: House) -> None:
    others = [house.again(house.parts.training.executor) for _ in range(2)]
    files = [await expiring(house) for _ in range(3)]
    house.clock.advance(HOUR)
    sweepers: list[FileSweeper] = [parts.sweeper for parts in (house.parts, *others)]
    await asyncio.gather(*(sweeper.once() for sweeper in sweepers))
    for file in files:
        assert [deed for deed, _, _ in await deeds(house, file)] == ["file.created", "file.expired"]


async def test_a_file_that_expires_before_it_was_read_is_not_read(house: House) -> None:
    file = await add(house.parts, ADA, ROWS, expires_after_seconds=HOUR)
    house.clock.advance(HOUR)
    await house.parts.inspector.once()
    async with house.parts.db.read() as session:
        row = await session.get(FileRow, file.id)
        assert row is not None and (row.status, row.lease_token) == ("uploaded", None)


async def test_counting_a_file_that_expired_meanwhile_comes_to_an_end(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_COUNTED_AT_ONCE", 10)
    file = await expiring(house)
    assert await counted(house, file) is None
    house.clock.advance(HOUR)
    await house.parts.counter.once()
    with pytest.raises(InvalidRequest, match="has expired"):
        await counted(house, file)


async def test_a_job_that_waits_keeps_the_bytes_of_a_file_that_expires(house: House) -> None:
    file = await expiring(house)
    job = await house.submit(training_files=[file.id])
    assert job.status == Status.QUEUED
    house.clock.advance(HOUR)
    await house.parts.sweeper.once()
    assert (await house.jobs.get(ADA, job.id)).status == Status.QUEUED
    assert house.parts.storage.read(file.key) == ROWS


async def test_a_job_whose_files_are_still_prepared_fails_when_one_expires(house: House) -> None:
    job = await house.submit(training_files=[(await house.upload()).id, (await expiring(house)).id])
    assert job.status == Status.CHECKING
    house.clock.advance(HOUR)
    await house.parts.preparer.once()
    failed = await house.jobs.get(ADA, job.id)
    assert failed.error is not None
    assert (failed.status, failed.error.code) == (Status.FAILED, "file_not_found")


async def test_versions_of_a_file_stay_when_it_expires(house: House) -> None:
    file = await expiring(house)
    datasets = house.parts.services.datasets
    training, validation, _ = await datasets.split(ADA, file.id, {"ratio": 0.5, "seed": 1})
    joined = await datasets.join(ADA, [file, file], param="training_file", made_for="ftjob-1")
    house.clock.advance(HOUR)
    await house.parts.sweeper.once()
    assert sorted(await listed(house)) == sorted([training.id, validation.id, joined.id])
    assert (training.expires_at, validation.expires_at, joined.expires_at, joined.parent) == (None, None, None, file.id)


async def test_a_version_that_has_expired_is_no_longer_among_those_of_its_file(house: House) -> None:
    datasets = house.parts.services.datasets
    parent = await house.upload()
    training, validation, _ = await datasets.split(ADA, parent.id, {"ratio": 0.5, "seed": 1})
    async with house.parts.db.write() as session:
        row = await session.get(FileRow, training.id)
        assert row is not None
        row.expires_at = house.clock.now()
    assert [file.id for file in await datasets.children(ADA, parent.id)] == [validation.id]


async def test_the_file_of_an_upload_lives_from_when_it_was_made(house: House) -> None:
    async def rows():
        yield ROWS

    uploads = house.parts.services.uploads
    upload = await uploads.create(ADA, "a.jsonl", "fine-tune", len(ROWS), file_expires_after_seconds=2 * HOUR)
    house.clock.advance(3000)
    part = await uploads.add_part(ADA, upload.id, rows())
    house.clock.advance(3000)
    done = await uploads.complete(ADA, upload.id, [part.id])
    assert done.file is not None
    assert done.file.created_at == upload.created_at + timedelta(seconds=6000)
    assert done.file.expires_at == done.file.created_at + timedelta(hours=2)
    house.clock.advance(2 * HOUR - 1)
    assert await listed(house) == [done.file.id]
    house.clock.advance(1)
    await house.parts.sweeper.once()
    assert await listed(house) == []
    assert (await uploads.complete(ADA, upload.id, [part.id])).file is None
