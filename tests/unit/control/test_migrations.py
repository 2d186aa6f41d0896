"""What an older version kept is still there after the migrations, and means the same."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import text

from luthier.app import Parts
from luthier.control.db import Database
from luthier.control.jobs.lifecycle import Status
from luthier.core.pages import PageRequest
from luthier.core.settings import DatabaseSection
from luthier.testing import InlineExecutor, toy_parts
from tests.unit.control.conftest import ADA, make_schema

AT = datetime(2030, 1, 1, tzinfo=UTC)

REQUEST = {
    "base_model": "toy", "training_file": "file-1", "validation_file": None, "suffix": None, "seed": 7,
    "method": {"name": "lora", "options": {}}, "objective": {"name": "sft", "options": {}}, "epochs": 2,
    "batch_size": None, "learning_rate_multiplier": 0.5, "max_length": None, "overlength": "drop", "least_rows": 10,
    "metadata": {"k": "v"},
}  # fmt: skip


def moved(direction: str, target: str):
    def go(connection) -> None:
        config = Config()
        config.set_main_option("script_location", "luthier.control:migrations")
        config.attributes["connection"] = connection
        getattr(command, direction)(config, target)

    return go


@pytest.fixture
async def older(database_url: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """A database as version 0004 left it: two jobs, of which one was begun three times."""
    url = f"sqlite+aiosqlite:///{tmp_path}/older.db"
    if "postgresql" in database_url:
        schema = f"older_{abs(hash(request.node.name)) % 10**8}"
        url = await make_schema(request.getfixturevalue("postgres"), schema)
    db = Database(url)
    async with db._writer.begin() as connection:
        await connection.run_sync(moved("upgrade", "0004"))

        async def put(table: str, **values: object) -> None:
            names, places = ", ".join(values), ", ".join(f":{name}" for name in values)
            await connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({places})"), values)

        at = AT if "postgresql" in url else "2030-01-01 00:00:00.000000"
        await put("projects", id=ADA.project, name="ada", created_at=at)
        await put(
            "files", id="file-1", project_id=ADA.project, filename="a.jsonl", purpose="fine-tune", bytes=1, sha256="s",
            key="files/1", status="processed", created_at=at,
        )  # fmt: skip
        await put(
            "file_lengths", id="lengths-1", project_id=ADA.project, file_id="file-1", model="toy", weights="w",
            renderer_sha256="r", key="lengths/1", status="counted", created_at=at,
        )  # fmt: skip
        for job, validation in (("ftjob-1", None), ("ftjob-2", "file-2")):
            asked = json.dumps(REQUEST | {"validation_file": validation})
            await put(
                "jobs", id=job, project_id=ADA.project, status="succeeded", request=asked, base_model="toy",
                model_name=f"toy-{job}", created_at=at,
            )  # fmt: skip
            for number in range(3):
                await put(
                    "job_events", id=f"ftevent-{3 - number}-{job}", project_id=ADA.project, job_id=job, level="info",
                    kind="message", message=f"event {3 - number}", attempt=0, superseded=False, created_at=at,
                )  # fmt: skip
            await put(
                "models", id=f"art-{job}", project_id=ADA.project, name=f"toy-{job}", kind="fine_tuned", job_id=job,
                step=3, base_model="toy", weights="w", weights_sha256="w", artifact_key="k", artifact_sha256="s",
                created_at=at,
            )  # fmt: skip
        for attempt in (1, 2, 3):
            await put(
                "runs", id=f"run-{attempt}", project_id=ADA.project, job_id="ftjob-2", attempt=attempt, handle="{}",
                last_event=0, started_at=at,
            )  # fmt: skip
    yield db
    await db.close()


@pytest.fixture
async def parts(older: Database, tmp_path: Path) -> AsyncIterator[Parts]:
    await older.migrate()
    database = DatabaseSection(url=older.url)
    found = toy_parts(tmp_path / "data", InlineExecutor(lambda process: 0), database=database)
    yield found
    await found.db.close()


async def test_older_jobs_have_lists_of_files_and_nothing_that_nobody_asked(parts: Parts) -> None:
    first = await parts.services.jobs.get(ADA, "ftjob-1")
    second = await parts.services.jobs.get(ADA, "ftjob-2")
    assert (first.status, first.wish, first.created_by) == (Status.SUCCEEDED, None, None)
    assert (first.request.training_files, first.request.validation_files) == (["file-1"], [])
    assert second.request.validation_files == ["file-2"]
    assert (first.request.epochs, first.request.learning_rate_multiplier, first.request.seed) == (2, 0.5, 7)
    assert (first.request.turn_weights, first.request.usual_max_length) == ("honoured", 2048)
    found = await parts.services.jobs.list(ADA, PageRequest(), metadata={"k": "v"})
    assert [job.id for job in found.items] == ["ftjob-2", "ftjob-1"]


async def test_older_events_are_numbered_in_their_order_and_others_follow(parts: Parts) -> None:
    for job in ("ftjob-1", "ftjob-2"):
        lines = await parts.services.jobs.log(ADA, job, offset=1, lines=10)
        assert [line.split("  ")[-1].strip() for line in lines] == ["event 1", "event 2", "event 3"]
    async with parts.db.read() as session:
        told = list(await session.execute(text("SELECT told, lost_runs FROM jobs ORDER BY id")))
    assert [tuple(row) for row in told] == [(3, 0), (3, 2)]


async def test_older_models_are_adapters_that_answer(parts: Parts) -> None:
    model = await parts.services.catalog.get(ADA, "toy-ftjob-1")
    assert (model.method, model.is_callable) == ("lora", True)


async def test_older_lengths_are_those_of_weights_that_are_honoured(parts: Parts) -> None:
    async with parts.db.read() as session:
        assert list(await session.scalars(text("SELECT turn_weights FROM file_lengths"))) == ["honoured"]


async def test_older_files_do_not_expire(parts: Parts) -> None:
    await parts.sweeper.once()
    assert (await parts.services.datasets.get(ADA, "file-1")).expires_at is None


async def test_the_way_back_keeps_files_that_would_have_expired(older: Database) -> None:
    await older.migrate()
    async with older._writer.begin() as connection:
        await connection.execute(text("UPDATE files SET expires_at = created_at"))
        await connection.run_sync(moved("downgrade", "0009"))
        assert list(await connection.scalars(text("SELECT id FROM files"))) == ["file-1"]
    await older.migrate()
    async with older._writer.begin() as connection:
        assert list(await connection.execute(text("SELECT id, expires_at FROM files"))) == [("file-1", None)]


async def test_the_way_back_keeps_the_jobs(older: Database) -> None:
    await older.migrate()
    async with older._writer.begin() as connection:
        await connection.run_sync(moved("downgrade", "0004"))
        kept = list(await connection.execute(text("SELECT request FROM jobs ORDER BY id")))
    requests = [json.loads(row[0]) if isinstance(row[0], str) else row[0] for row in kept]
    assert requests == [REQUEST, REQUEST | {"validation_file": "file-2"}]


async def test_on_the_way_back_paused_jobs_wait_and_deleted_ones_are_seen_again(older: Database) -> None:
    await older.migrate()
    async with older._writer.begin() as connection:
        await connection.execute(text("UPDATE jobs SET status = 'paused'"))
        await connection.execute(text("UPDATE jobs SET spec = '{\"job\": 1}' WHERE id = 'ftjob-2'").columns())
        copied = "SELECT 'ftjob-3', project_id, 'succeeded', request, base_model, model_name, created_at, created_at"
        names = "id, project_id, status, request, base_model, model_name, created_at, deleted_at"
        await connection.execute(text(f"INSERT INTO jobs ({names}) {copied} FROM jobs WHERE id = 'ftjob-1'"))
    async with older._writer.begin() as connection:
        await connection.run_sync(moved("downgrade", "0004"))
        kept = {row.id: row.status for row in await connection.execute(text("SELECT id, status FROM jobs"))}
    assert kept == {"ftjob-1": "checking", "ftjob-2": "queued", "ftjob-3": "succeeded"}
