"""The same checks for both generations of DashScope's client: what only one of them has is in files of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import count
from pathlib import Path

import dashscope
import pytest

OLD, NEW = ["check_old_command_line.py"], ["check_client.py", "check_command_line.py"]
collect_ignore = OLD if hasattr(dashscope, "Client") else NEW

PATIENCE_SECONDS = 180


class CommandLine:
    """The client's own program, told of nothing but the key and the address."""

    def __init__(self, base: str, key: str) -> None:
        self.program = str(Path(sys.executable).with_name("dashscope"))
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": os.environ["HOME"],
            "LANG": "C.UTF-8",
            "COLUMNS": "500",  # it breaks its lines otherwise
            "DASHSCOPE_API_KEY": key,
            "DASHSCOPE_HTTP_BASE_URL": base,
        }

    def start(self, *words: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [self.program, *words], env=self.environment, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True
        )

    def __call__(self, *words: str, exits: int = 0) -> str:
        """What it says; it must end in time with that code."""
        return self.finished(self.start(*words), exits=exits)

    @staticmethod
    def finished(process: subprocess.Popen[str], *, exits: int = 0) -> str:
        """One that does not end is ended, and fails the check."""
        try:
            said, complained = process.communicate(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        assert process.returncode == exits, f"{process.args}: {said}{complained}"
        return said + complained


@pytest.fixture(scope="session")
def base(url: str) -> str:
    return f"{url}/api/v1"


@pytest.fixture(scope="session")
def faulty(faulty_url: str) -> str:
    return f"{faulty_url}/api/v1"


@pytest.fixture(scope="session", autouse=True)
def pointed(base: str, key: str) -> None:
    """The two lines that a user of the module API changes."""
    dashscope.base_http_api_url = base
    dashscope.api_key = key


@pytest.fixture(scope="session")
def cli(base: str, key: str) -> CommandLine:
    return CommandLine(base, key)


@pytest.fixture(scope="session")
def faulty_cli(faulty: str, key: str) -> CommandLine:
    """Reaches the server that fails as the model's name says."""
    return CommandLine(faulty, key)


@pytest.fixture(scope="session")
def rows(pointed: None, data: Path) -> str:
    """Id of a file of conversations."""
    return upload(data / "rows.jsonl")


@pytest.fixture(scope="session")
def validation(pointed: None, data: Path) -> str:
    return upload(data / "validation.jsonl")


@pytest.fixture(scope="session")
def pairs(pointed: None, data: Path) -> str:
    return upload(data / "pairs.jsonl")


@pytest.fixture(scope="session", autouse=True)
def training(rows: str, validation: str) -> str:
    """A job of the module API, asked for before the first check so that it has ended when it is needed."""
    made = dashscope.FineTunes.call(
        model="toy",
        training_file_ids=rows,
        validation_file_ids=validation,
        mode="efficient_sft",
        hyper_parameters={"n_epochs": "1", "batch_size": 4, "learning_rate": "1.6e-3", "lora_rank": 4},
        finetuned_output="tone",
    )
    assert made.status_code == 200, made
    return made.output.job_id


@pytest.fixture(scope="session", autouse=True)
def called(cli: CommandLine, rows: str, training: str):
    """A job that the command line asks for and waits for, which takes it half a minute: meanwhile the checks are made."""
    process = cli.start("fine_tunes.call", "-m", "toy", "-t", rows, "--mode", "efficient_sft", "-e", "1")
    yield process
    if process.poll() is None:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def trained(training: str, waiting):
    """The job of `training` when it has ended."""

    def ended():
        found = dashscope.FineTunes.get(training)
        assert found.status_code == 200, found
        return found.output if found.output.status in ("SUCCEEDED", "FAILED", "CANCELED") else None

    job = waiting(ended)
    assert job.status == "SUCCEEDED", job
    return job


def upload(path: Path) -> str:
    sent = dashscope.Files.upload(str(path), description="checked")
    assert sent.status_code == 200, sent
    return sent.output["uploaded_files"][0]["file_id"]


@pytest.fixture
def all_pages(waiting):
    """What every page up to an empty one has, by a function that gives the ids and the total of a page.

    Other clients add and delete at the same time, which moves what is behind: it is read until nothing has moved.
    """

    def read(page_of) -> list[str]:
        def walk() -> list[str] | None:
            found: list[str] = []
            totals: set[int] = set()
            for page in count(1):
                ids, total = page_of(page)
                found += ids
                totals.add(total)
                if not ids:
                    break
            return found if totals == {len(found)} and len(set(found)) == len(found) else None

        return waiting(walk)

    return read
