"""What the checks of every client are given: where the servers are, the key, and data."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

KEY = os.environ["CHECKED_KEY"]
PATIENCE_SECONDS = 200.0


@pytest.fixture(scope="session")
def url() -> str:
    """The server, without a dialect's path. It has the model `toy`."""
    return os.environ["CHECKED_URL"]


@pytest.fixture(scope="session")
def faulty_url() -> str:
    """A server that fails as the model's name says, see tests/compat/faulty.py."""
    return os.environ["CHECKED_FAULTY_URL"]


@pytest.fixture(scope="session")
def key() -> str:
    return KEY


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of small files: rows.jsonl and validation.jsonl (conversations), pairs.jsonl (preferences), texts.jsonl."""
    return Path(os.environ["CHECKED_DATA"])


def wait_for(condition, *, seconds: float = PATIENCE_SECONDS, every: float = 0.2):
    """What `condition` returns once that is true; AssertionError when the time is up."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(every)
    raise AssertionError("it did not happen in time")


@pytest.fixture(scope="session")
def waiting():
    return wait_for


@pytest.fixture(scope="session")
def ended(client, waiting):
    """Waits for the end of a job, and gives the job: for clients that ask for one as OpenAI's does."""

    def until_over(job_id: str):
        def over():
            job = client.fine_tuning.jobs.retrieve(job_id)
            return job if job.status in ("succeeded", "failed", "cancelled") else None

        return waiting(over)

    return until_over


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leave the result where the outer suite reads it."""
    Path(os.environ["CHECKED_RESULT"]).write_text(json.dumps({"collected": session.testscollected}))
