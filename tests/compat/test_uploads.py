"""Files in parts, as the official client and `luthier files upload` send them, against a server that is also killed."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import psutil
import pytest
from openai import OpenAI
from typer.testing import CliRunner

import luthier.cli.files as verbs
from luthier.cli import app
from luthier.storage import Storage
from luthier.testing import jsonl, toy_rows
from tests.servers import KEY, RunningServer, wait_for

pytestmark = pytest.mark.timeout(600)

MB = 1024 * 1024
ROWS = jsonl(toy_rows(40))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server without a model: files need none."""
    server = RunningServer(tmp_path_factory.mktemp("uploads"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def client(server: RunningServer) -> OpenAI:
    return server.client(_strict_response_validation=True)


def create(client: OpenAI, size: int = len(ROWS), name: str = "rows.jsonl") -> openai.types.Upload:
    return client.uploads.create(bytes=size, filename=name, mime_type="application/jsonl", purpose="fine-tune")


def add(client: OpenAI, upload: openai.types.Upload, *pieces: bytes) -> list[str]:
    return [client.uploads.parts.create(upload.id, data=piece).id for piece in pieces]


def pieces(content: bytes = ROWS, size: int = 700) -> list[bytes]:
    return [content[start : start + size] for start in range(0, len(content), size)]


def filler(size: int) -> bytes:
    """Bytes that no store can shorten, the same every time."""
    return random.Random(0).randbytes(size)


def stored(server: RunningServer, folder: str) -> list[Path]:
    """Everything on the disk below a folder of the storage, unfinished files too."""
    return [path for path in (server.data / "objects" / folder).rglob("*") if path.is_file()]


def newest(client: OpenAI) -> list[str]:
    return [file.id for file in client.files.list()]


@pytest.mark.parametrize("part_size", [None, 700, len(ROWS)])
def test_the_clients_own_chunked_upload_makes_a_file_like_any_other(
    client: OpenAI, server: RunningServer, tmp_path: Path, part_size: int | None
) -> None:
    path = tmp_path / "数据.jsonl"
    path.write_bytes(ROWS)
    upload = client.uploads.upload_file_chunked(
        file=path,
        mime_type="application/jsonl",
        purpose="fine-tune",
        part_size=part_size,
        md5=hashlib.md5(ROWS).hexdigest(),
    )
    assert upload.status == "completed" and upload.file is not None
    file = client.files.wait_for_processing(upload.file.id, poll_interval=0.1)
    assert (file.filename, file.bytes, file.purpose, file.status) == ("数据.jsonl", len(ROWS), "fine-tune", "processed")
    assert client.files.content(file.id).content == ROWS
    wait_for(lambda: not stored(server, "uploads"))


def test_the_compatible_mode_takes_a_file_of_bytes(server: RunningServer) -> None:
    with OpenAI(base_url=f"{server.url}/compatible-mode/v1", api_key=KEY, max_retries=0) as client:
        upload = client.uploads.upload_file_chunked(
            file=ROWS, filename="a", bytes=len(ROWS), mime_type="text/plain", purpose="fine-tune", part_size=999
        )
        assert upload.file is not None
        assert client.files.content(upload.file.id).content == ROWS


def test_the_order_of_the_ids_is_the_order_of_the_bytes(client: OpenAI) -> None:
    upload = create(client)
    sent = [*zip(add(client, upload, *pieces()[::-1]), reversed(range(len(pieces()))), strict=True)]
    done = client.uploads.complete(upload.id, part_ids=[part for part, _ in sorted(sent, key=lambda one: one[1])])
    assert done.file is not None
    assert client.files.content(done.file.id).content == ROWS


def test_what_does_not_fit_is_told_and_can_be_mended(client: OpenAI) -> None:
    upload = create(client)
    parts = add(client, upload, *pieces())
    faults: list[tuple[Callable[[], object], str, str]] = [
        (lambda: client.uploads.complete(upload.id, part_ids=parts[:-1]), "part_ids", "not named"),
        (lambda: client.uploads.complete(upload.id, part_ids=[*parts, parts[0]]), "part_ids", "named more than once"),
        (lambda: client.uploads.complete(upload.id, part_ids=[*parts, "part-x"]), "part_ids", "no parts of this"),
        (lambda: client.uploads.complete(upload.id, part_ids=parts, md5="0" * 32), "md5", "expected 0000"),
        (lambda: client.uploads.parts.create(upload.id, data=bytes(64 * MB + 1)), "data", "at most 67,108,864 bytes"),
        (lambda: create(client, 10 * 1024 * MB + 1), "bytes", "from 1 to 10,737,418,240"),
    ]
    for call, param, words in faults:
        with pytest.raises(openai.BadRequestError) as refused:
            call()
        assert refused.value.param == param
        assert words in refused.value.message
    done = client.uploads.complete(upload.id, part_ids=parts, md5=hashlib.md5(ROWS).hexdigest())
    assert done.status == "completed"


def test_a_cancelled_upload_takes_no_more_and_its_parts_are_removed(client: OpenAI, server: RunningServer) -> None:
    upload = create(client)
    parts = add(client, upload, *pieces())
    assert stored(server, "uploads")
    assert client.uploads.cancel(upload.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match=r"is cancelled\. Create a new one"):
        client.uploads.complete(upload.id, part_ids=parts)
    wait_for(lambda: not stored(server, "uploads"))


def test_many_who_complete_at_once_get_one_file(client: OpenAI) -> None:
    before = set(newest(client))
    upload = create(client)
    parts = add(client, upload, *pieces())
    with ThreadPoolExecutor(6) as threads:
        calls = [threads.submit(client.uploads.complete, upload.id, part_ids=parts) for _ in range(6)]
        made = {call.result().file.id for call in calls}
    assert set(newest(client)) - before == made
    assert len(made) == 1


def test_parts_outlive_a_server_that_is_killed(client: OpenAI, server: RunningServer) -> None:
    upload = create(client)
    first, *rest = pieces()
    parts = add(client, upload, first)
    server.kill()
    with pytest.raises(openai.APIConnectionError):
        add(client, upload, rest[0])
    server.start()
    done = client.uploads.complete(upload.id, part_ids=[*parts, *add(client, upload, *rest)])
    assert done.file is not None
    assert client.files.content(done.file.id).content == ROWS


def test_a_server_killed_in_the_middle_of_completing_makes_one_file_when_asked_again(
    client: OpenAI, server: RunningServer
) -> None:
    before, on_disk = set(newest(client)), set(stored(server, "files"))
    content = filler(60 * MB)
    upload = create(client, 4 * len(content))
    parts = add(client, upload, *[content] * 4)
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(client.uploads.complete, upload.id, part_ids=parts)
        wait_for(lambda: set(stored(server, "files")) - on_disk, every=0.005)
        server.kill()
        assert isinstance(call.exception(), openai.APIConnectionError | None)  # None: it was faster than we
    server.start()
    patient = client.with_options(max_retries=3)
    done = patient.uploads.complete(upload.id, part_ids=parts, md5=hashlib.md5(content * 4).hexdigest())
    assert done.file is not None
    assert set(newest(client)) - before == {done.file.id}
    wait_for(lambda: not stored(server, "uploads"))
    left = [path.name for path in set(stored(server, "files")) - on_disk]
    assert left == [done.file.id]


def test_memory_stays_flat_while_300_megabytes_pass(client: OpenAI, server: RunningServer) -> None:
    assert server.process is not None
    process = psutil.Process(server.process.pid)
    content = filler(60 * MB)
    most = [0]
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.02):
            most[0] = max(most[0], process.memory_info().rss)

    def pass_through(count: int) -> int:
        """The most memory that the server had meanwhile."""
        most[0] = 0
        upload = create(client, count * len(content))
        done = client.uploads.complete(upload.id, part_ids=add(client, upload, *[content] * count))
        assert done.file is not None and done.file.bytes == count * len(content)
        client.files.wait_for_processing(done.file.id, poll_interval=0.1)
        client.files.delete(done.file.id)
        return most[0]

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        little, much = pass_through(2), pass_through(5)
    finally:
        is_over.set()
        watching.join()
    print(f"at most {little / MB:.0f} MB with 120 MB, {much / MB:.0f} MB with 300 MB")
    assert much - little < 100 * MB


def run(server: RunningServer, path: Path) -> str:
    done = CliRunner().invoke(app, ["files", "upload", str(path), "--url", server.url, "--key", KEY])
    assert done.exit_code == 0, done.output
    return done.output


def test_the_command_sends_a_large_file_in_parts_through_a_restart_of_the_server(
    client: OpenAI, server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed_on_the_way(content) -> Iterator[bytes]:
        for number, piece in enumerate(cut(content)):
            if number == 2:
                server.kill()
                restart.start()
            yield piece

    def come_back() -> None:
        time.sleep(1)
        server.start()

    path = tmp_path / "large.jsonl"
    path.write_bytes(ROWS)
    cut, restart = verbs._pieces, threading.Thread(target=come_back)
    monkeypatch.setattr(verbs, "PART_BYTES", 700)
    monkeypatch.setattr(verbs, "_pieces", killed_on_the_way)
    output = run(server, path)
    restart.join()
    assert "fit for training" in output
    assert client.files.content(newest(client)[0]).content == ROWS


def test_the_command_that_is_stopped_drops_what_it_sent(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(content) -> Iterator[bytes]:
        yield content.read(700)
        raise KeyboardInterrupt

    path = tmp_path / "large.jsonl"
    path.write_bytes(ROWS)
    monkeypatch.setattr(verbs, "PART_BYTES", 700)
    monkeypatch.setattr(verbs, "_pieces", stopped)
    done = CliRunner().invoke(app, ["files", "upload", str(path), "--url", server.url, "--key", KEY])
    assert done.exit_code != 0
    wait_for(lambda: not stored(server, "uploads"))
    assert Storage((server.data / "objects").as_uri()).list("uploads") == []


def test_the_command_line_has_a_file_checked_again(server: RunningServer, client: OpenAI) -> None:
    def check(content: bytes) -> tuple[int, str]:
        file = client.files.create(file=("rows.jsonl", content), purpose="fine-tune")
        wait_for(lambda: client.files.retrieve(file.id).status != "uploaded")
        done = CliRunner().invoke(app, ["files", "check", file.id, "--url", server.url, "--key", KEY])
        return done.exit_code, str(done.exception or done.output)

    code, said = check(ROWS + b'{"messages": []}\n')
    assert code != 0 and "rows.jsonl cannot be trained on: line 41" in said
    code, said = check(ROWS)
    assert code != 0 and "was checked and has no problem" in said
