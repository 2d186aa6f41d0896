"""Files are worked on in processes of their own: what they find comes back, what they break stays with them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from asyncio.subprocess import Process
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from luthier.control.datasets import workshop
from luthier.control.datasets.tasks import Task, perform
from luthier.control.datasets.workshop import ProcessWorkshop, Workshop, WorkStopped
from luthier.core.errors import FileNotFound, InvalidRequest, Unavailable
from luthier.storage import Storage, StoredObject
from luthier.testing import jsonl, toy_rows, toy_tokenizer
from tests.unit.control.conftest import ADA, BOB, House, add, on_sqlite

GIGABYTES = 2 * 1024**3
GOOD = jsonl(toy_rows(30))


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage((tmp_path / "objects").as_uri())


def shop(
    folder: Path,
    *,
    memory_bytes: int = GIGABYTES,
    seconds: float = 60,
    processes: int = 2,
    stands_ready: bool = False,
) -> ProcessWorkshop:
    """A workshop on the storage of that folder."""
    return ProcessWorkshop(
        (folder / "objects").as_uri(),
        cache=str(folder / "cache"),
        processes=processes,
        memory_bytes=memory_bytes,
        least_seconds=seconds,
        stands_ready=stands_ready,
    )


def inspecting(stored: StoredObject) -> Task:
    return Task(kind="inspect", key=stored.key, size=stored.size, options={"category": None})


def workers() -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has just ended
            if any("datasets.worker" in part for part in child.cmdline()):
                found.append(child)
    return found


async def standing() -> list[psutil.Process]:
    """The processes there are, once those of the tasks have gone and one stands ready."""
    while len(found := workers()) != 1:
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.1)
    return found


async def test_a_process_finds_what_is_found_here(storage: Storage, tmp_path: Path) -> None:
    toy_tokenizer(tmp_path / "toy")
    for path in (tmp_path / "toy").iterdir():
        storage.upload(path, f"models/toy/{path.name}")
    stored = storage.write("files/x", GOOD + b'{"messages": [],}\n')
    fit = storage.write("files/y", GOOD)
    tasks = [
        inspecting(stored),
        Task(
            kind="count",
            key=fit.key,
            size=fit.size,
            options={
                "format": "messages",
                "turn_weights": "honoured",
                "weights": "models/toy",
                "result": "lengths/x",
            },
        ),
        Task(
            kind="preview",
            key=fit.key,
            size=fit.size,
            options={"format": "messages", "row": 30, "weights": "models/toy", "is_fit": True},
        ),
        Task(kind="repair", key=stored.key, size=stored.size, options={"result": "files/z"}),
        Task(
            kind="split",
            key=fit.key,
            size=fit.size,
            options={"split": {"seed": 1}, "training": "files/t", "validation": "files/v"},
        ),
    ]
    found = await asyncio.gather(*(shop(tmp_path).do(task) for task in tasks))
    for task, told in zip(tasks, found, strict=True):
        here = perform(task, storage)
        assert told == {key: list(map(list, value)) if key == "refused" else value for key, value in here.items()}
    assert workers() == []


async def test_work_that_takes_too_long_is_stopped_and_leaves_no_process(storage: Storage, tmp_path: Path) -> None:
    stored = storage.write("files/x", GOOD)
    started = time.monotonic()
    with pytest.raises(WorkStopped, match="took longer than 0 seconds"):
        await shop(tmp_path, seconds=0.05).do(inspecting(stored))
    assert time.monotonic() - started < 10
    assert workers() == []


async def test_work_that_is_given_up_leaves_no_process(storage: Storage, tmp_path: Path) -> None:
    work = asyncio.create_task(shop(tmp_path).do(inspecting(storage.write("files/x", GOOD * 20_000))))
    while not workers():
        await asyncio.sleep(0.02)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert workers() == []


async def test_work_that_takes_too_much_memory_is_stopped(storage: Storage, tmp_path: Path) -> None:
    stored = storage.write("files/x", b'{"messages": "' + b"x" * 60_000_000)
    with pytest.raises(WorkStopped, match="needed more memory than it may have"):
        await shop(tmp_path, memory_bytes=150 * 1024**2, processes=1).do(inspecting(stored))
    assert workers() == []


async def test_the_least_memory_that_may_be_set_is_enough_for_an_ordinary_file(
    storage: Storage, tmp_path: Path
) -> None:
    from luthier.core.settings import DataSection

    least = next(one.ge for one in DataSection.model_fields["check_memory_bytes"].metadata if hasattr(one, "ge"))
    told = await shop(tmp_path, memory_bytes=least).do(inspecting(storage.write("files/x", GOOD * 1000)))
    assert told["rows"] == 30_000


async def test_a_process_that_is_killed_is_told_as_a_limit(storage: Storage, tmp_path: Path) -> None:
    work = asyncio.create_task(shop(tmp_path).do(inspecting(storage.write("files/x", GOOD * 20_000))))
    while not (found := workers()):
        await asyncio.sleep(0.02)
    os.kill(found[0].pid, signal.SIGKILL)
    with pytest.raises(WorkStopped):
        await work


async def test_what_a_task_refuses_is_raised_here_with_its_words(storage: Storage, tmp_path: Path) -> None:
    stored = storage.write("files/x", GOOD)
    with pytest.raises(InvalidRequest, match="nothing in this file") as refused:
        await shop(tmp_path).do(Task(kind="repair", key=stored.key, size=stored.size, options={"result": "files/z"}))
    assert (refused.value.code, refused.value.hint) == ("invalid_request", "See the report for what is wrong.")
    gone = Task(kind="inspect", key="files/none", size=10, options={"category": None})
    with pytest.raises((InvalidRequest, WorkStopped)) as missing:
        await shop(tmp_path).do(gone)
    assert not isinstance(missing.value, Unavailable) or isinstance(missing.value, WorkStopped)


@pytest.mark.parametrize(("short_bytes", "at_once"), [(0, 4), (10**6, 2)])
async def test_so_many_tasks_are_at_work_at_once(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_bytes: int, at_once: int
) -> None:
    monkeypatch.setattr(workshop, "_SHORT_BYTES", short_bytes)
    here = shop(tmp_path, processes=1)
    tasks = [asyncio.create_task(here.do(inspecting(storage.write(f"files/{n}", GOOD)))) for n in range(7)]
    most = 0
    while not all(task.done() for task in tasks):
        most = max(most, len(workers()))
        await asyncio.sleep(0.02)
    assert 1 <= most <= at_once
    assert [task.result()["rows"] for task in tasks] == [30] * 7


async def test_a_preview_does_not_wait_for_checks(storage: Storage, tmp_path: Path) -> None:
    toy_tokenizer(tmp_path / "toy")
    for path in (tmp_path / "toy").iterdir():
        storage.upload(path, f"models/toy/{path.name}")
    here = shop(tmp_path, processes=1)
    large = storage.write("files/large", GOOD * 20_000)
    checks = [asyncio.create_task(here.do(inspecting(large))) for _ in range(5)]
    options = {"format": "messages", "row": 1, "weights": "models/toy", "is_fit": True}
    await here.do(Task(kind="preview", key=large.key, size=large.size, options=options))
    assert not any(check.done() for check in checks)
    for check in checks:
        check.cancel()
    await asyncio.gather(*checks, return_exceptions=True)


async def test_what_was_found_is_told_though_no_process_can_be_started_in_advance(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = shop(tmp_path, stands_ready=True)
    good = inspecting(storage.write("files/x", GOOD))
    started, calls = workshop._started, 0

    async def once() -> Process:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise BlockingIOError("no more processes")
        return await started()

    monkeypatch.setattr(workshop, "_started", once)
    assert (await here.do(good))["rows"] == 30
    await here.close()
    assert (calls, workers()) == (2, [])


async def test_a_process_stands_ready_for_the_next_task(storage: Storage, tmp_path: Path) -> None:
    here = shop(tmp_path, stands_ready=True)
    good = inspecting(storage.write("files/x", GOOD))
    assert (await here.do(good))["rows"] == 30
    [ready] = await standing()
    found = await asyncio.gather(here.do(good), here.do(good))
    assert [one["rows"] for one in found] == [30, 30]
    assert not ready.is_running()
    [ready] = await standing()
    ready.kill()  # it is not missed
    while ready.is_running():
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.1)
    assert (await here.do(good))["rows"] == 30
    await here.close()
    assert workers() == []


def test_a_process_that_stands_ready_ends_with_whoever_started_it() -> None:
    worker = subprocess.Popen(
        [sys.executable, "-m", "luthier.control.datasets.worker"], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert worker.communicate(timeout=60) == (None, b"")
    assert worker.returncode == 0


# What the server makes of it


async def test_a_file_is_given_up_after_faults_of_ours_and_can_be_checked_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Workshop):
        async def do(self, task: Task) -> dict[str, Any]:
            raise ZeroDivisionError("ours")

    datasets = house.parts.services.datasets
    file = await add(house.parts, ADA, GOOD)
    with pytest.raises(InvalidRequest, match="has not been checked yet"):
        await datasets.check_again(ADA, file.id)
    monkeypatch.setattr(house.parts.inspector, "every_seconds", 0)
    workshop, house.parts.inspector.workshop = house.parts.inspector.workshop, Broken()
    for _ in range(8):
        assert (await datasets.get(ADA, file.id)).status == "uploaded"
        await house.parts.inspector.once()
    read = await datasets.get(ADA, file.id)
    assert read.report is not None
    assert (read.status, read.report.counts) == ("error", {"check_stopped": 1})
    house.parts.inspector.workshop = workshop
    assert (await datasets.check_again(ADA, file.id)).status == "uploaded"
    await house.parts.inspector.once()
    assert (await datasets.get(ADA, file.id)).status == "processed"
    with pytest.raises(InvalidRequest, match="has no problem"):
        await datasets.check_again(ADA, file.id)
    with pytest.raises(FileNotFound):
        await datasets.check_again(BOB, file.id)


def of(house: House, **limits: float) -> ProcessWorkshop:
    return shop(house.folder, **limits)  # type: ignore[arg-type]


@on_sqlite
@pytest.mark.parametrize(
    ("limits", "said"), [({"seconds": 0.05}, "took longer"), ({"memory_bytes": 150 * 1024**2}, "more memory")]
)
async def test_a_file_whose_check_went_over_a_limit_is_refused_and_the_server_goes_on(
    house: House, limits: dict[str, float], said: str
) -> None:
    datasets = house.parts.services.datasets
    file = await add(house.parts, ADA, b'{"messages": "' + b"x" * 60_000_000 if "memory_bytes" in limits else GOOD)
    house.parts.inspector.workshop = of(house, **limits)
    await house.parts.inspector.once()
    read = await datasets.get(ADA, file.id)
    assert read.report is not None
    assert (read.status, read.report.counts) == ("error", {"check_stopped": 1})
    assert said in (read.report.summary or "")
    house.parts.inspector.workshop = of(house)
    other = await add(house.parts, ADA, GOOD)
    await house.parts.inspector.once()
    assert (await datasets.get(ADA, other.id)).status == "processed"


ODD = {
    "nothing": b"",
    "zeros": b"\0" * 5000,
    "noise": bytes(range(256)) * 40,
    "an image": b"\x89PNG\r\n\x1a\n" + b"\0" * 100,
    "half a zip": b"PK\x03\x04" + b"\xff" * 50,
    "UTF-16": "{}".encode("utf-16"),
    "UTF-32": '{"messages": []}'.encode("utf-32"),
    "brackets": b"[" * 200_000,
    "braces": b'{"a":' * 100_000,
    "quotes": b'"' * 100_001,
    "one number": b"1" * 100_000,
    "carriage returns": b'{"messages": []}\r' * 100,
    "surrogates": b'{"messages": [{"role": "\\ud800", "content": "\\u0000", "\\udfff": 1}], "tag": "\\u0000"}\n',
    "bytes": b'{"messages": [{"role": "user", "content": "\xff\xfe\xfd"}]}\n',
}


@on_sqlite
async def test_bytes_of_any_kind_come_to_an_end(house: House) -> None:
    house.parts.inspector.workshop = of(house)
    files = {name: await add(house.parts, ADA, content) for name, content in ODD.items()}
    await house.parts.inspector.once()
    for name, file in files.items():
        read = await house.parts.services.datasets.get(ADA, file.id)
        assert read.status == "error", name
        assert read.report is not None and read.report.summary, name
        assert "check_stopped" not in read.report.counts, name


@on_sqlite
async def test_a_file_whose_bytes_are_gone_is_told_and_not_read_for_ever(house: House) -> None:
    house.parts.inspector.workshop = of(house)
    file = await add(house.parts, ADA, GOOD)
    house.parts.storage.delete(file.key)
    await house.parts.inspector.once()
    read = await house.parts.services.datasets.get(ADA, file.id)
    assert (read.status, read.report and read.report.counts) == ("error", {"check_stopped": 1})
