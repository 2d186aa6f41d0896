"""Every official client, in its own environment, against a running server; all of them side by side."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from luthier.testing import jsonl, toy_model, toy_pairs, toy_rows, toy_texts
from tests.compat.environments import CLIENTS, HERE, Client, python_of
from tests.servers import KEY, PATIENCE_SECONDS, RunningServer, install_toy

pytestmark = pytest.mark.timeout(600)  # six environments, real processes


@pytest.fixture(scope="module")
def faulty_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that fails as the model's name says."""
    folder = tmp_path_factory.mktemp("faulty")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.compat.faulty", "--port", str(port), "--data", str(folder)]
    process = subprocess.Popen(command, env=os.environ | {"LUTHIER_BOOTSTRAP_KEY": KEY}, stdin=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        _until_ready(process, url)
        yield url
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with a toy model that reads enough for the tools it is told of: a token is a byte."""
    folder = tmp_path_factory.mktemp("clients")
    install_toy(folder, toy_model(tmp_path_factory.mktemp("models") / "toy", context=2048))
    server = RunningServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def running(
    server: RunningServer, faulty_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[str]]]:
    """The checks of all clients, begun at once."""
    folder = tmp_path_factory.mktemp("checks")
    for name, rows in {
        "rows": toy_rows(12),
        "validation": toy_rows(4, seed=9),
        "pairs": toy_pairs(12),
        "texts": toy_texts(12),
    }.items():
        (folder / f"{name}.jsonl").write_bytes(jsonl(rows))
    told = {
        "CHECKED_URL": server.url,
        "CHECKED_FAULTY_URL": faulty_url,
        "CHECKED_KEY": KEY,
        "CHECKED_DATA": str(folder),
    }
    with ThreadPoolExecutor(len(CLIENTS)) as threads:
        yield {client.name: threads.submit(_check, client, told, folder) for client in CLIENTS}


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_the_client_works_unchanged(client: Client, running: dict[str, Future[str]]) -> None:
    running[client.name].result()


def _check(client: Client, told: dict[str, str], folder: Path) -> str:
    """Run a client's checks in its environment; AssertionError with what they said when one fails, or there is none."""
    home = folder / f"home-{client.name}"
    home.mkdir()
    result = folder / f"{client.name}.json"
    done = subprocess.run(
        [
            str(python_of(client)),
            "-m",
            "pytest",
            "-c",
            str(HERE / "suites" / "pytest.ini"),
            "--rootdir",  # else pytest would name the folder `openai` as the client's own package is named
            str(HERE),
            *(str(HERE / "suites" / part) for part in client.suites),
        ],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),  # no settings of the person who runs this
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            "CHECKED_RESULT": str(result),
            **told,
        },
        cwd=home,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS * 4,  # a client that hangs is told, not waited for
    )
    said = f"{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, said
    assert json.loads(result.read_text())["collected"] > 0, said
    return said


def _until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server has ended"
        try:
            with urllib.request.urlopen(f"{url}/healthz", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise AssertionError("the server did not become ready")
