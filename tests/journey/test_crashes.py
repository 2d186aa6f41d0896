"""Killing anything hurts nothing: the server, the trainer, a replica; and a cancelled job stops soon and keeps what it saved."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import NotFoundError, OpenAI
from typer.testing import CliRunner

from luthier.cli import jobs
from luthier.testing import jsonl, toy_rows
from tests.servers import KEY, RunningServer, install_toy, wait_for

pytestmark = pytest.mark.timeout(600)  # real processes, each of which imports torch

ROWS, BATCH, EPOCHS = 40, 4, 36
STEPS = ROWS // BATCH * EPOCHS


@pytest.fixture
def server(tmp_path: Path, toy_folder: Path) -> Iterator[RunningServer]:
    data = tmp_path / "data"
    install_toy(data, toy_folder)
    server = RunningServer(data)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def start_job(client: OpenAI) -> str:
    """A job of 360 steps with four checkpoints; the same one each time."""
    file = client.files.create(file=("rows.jsonl", jsonl(toy_rows(ROWS))), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="toy", training_file=file.id, seed=3, hyperparameters={"n_epochs": EPOCHS, "batch_size": BATCH}
    )
    return job.id


def steps_of(client: OpenAI, job: str) -> dict[int, float]:
    """Loss by step from the job's history, which must tell each step once and in order."""
    events = list(client.fine_tuning.jobs.list_events(job, limit=1000))
    told = [(e.data["current_steps"], e.data["train_loss"]) for e in events if e.data and "current_steps" in e.data]
    assert [step for step, _ in told] == sorted({step for step, _ in told}, reverse=True)
    return dict(told)


def has_checkpoint(client: OpenAI, job: str) -> bool:
    return bool(list(client.fine_tuning.jobs.checkpoints.list(job)))


def reach_end(client: OpenAI, job: str):
    def ended():
        found = client.fine_tuning.jobs.retrieve(job)
        return found if found.status in ("succeeded", "failed", "cancelled") else None

    found = wait_for(ended, seconds=300)
    assert found.status == "succeeded", found.error
    return found


def test_a_job_goes_on_whatever_is_killed_and_learns_the_same(server: RunningServer) -> None:
    client = server.client()
    undisturbed = start_job(client)
    reach_end(client, undisturbed)

    # the server dies: the trainer does not notice, and is found again
    job = start_job(client)
    wait_for(lambda: len(steps_of(client, job)) > 3)
    [trainer] = server.engines("luthier.training")
    server.kill()
    assert trainer.is_running()
    server.start()
    wait_for(lambda: has_checkpoint(client, job))

    # the trainer dies: a second one goes on from the checkpoint
    [same] = server.engines("luthier.training")
    assert same.pid == trainer.pid
    trainer.send_signal(signal.SIGKILL)
    reach_end(client, job)
    messages = [event.message for event in client.fine_tuning.jobs.list_events(job, limit=1000)]
    assert any("Resumed from the checkpoint" in message for message in messages)

    losses = steps_of(client, job)
    assert sorted(losses) == list(range(1, STEPS + 1))
    assert losses == steps_of(client, undisturbed)


def by_hand(server: RunningServer, *words: str) -> str:
    """What `luthier jobs` prints."""
    done = CliRunner().invoke(jobs.app, [*words, "--url", server.url, "--key", KEY], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output.strip()


def test_a_job_pauses_and_goes_on_and_when_cancelled_stops_within_ten_seconds_and_keeps_its_checkpoints(
    server: RunningServer,
) -> None:
    client = server.client()
    job = start_job(client)
    wait_for(lambda: has_checkpoint(client, job))
    assert by_hand(server, "pause", job) == f"{job} is paused"
    assert not server.engines("luthier.training")
    paused_at = max(steps_of(client, job))
    assert by_hand(server, "resume", job) == f"{job} is queued"
    wait_for(lambda: max(steps_of(client, job)) > paused_at)
    began = time.monotonic()
    client.fine_tuning.jobs.cancel(job)
    wait_for(lambda: client.fine_tuning.jobs.retrieve(job).status == "cancelled", seconds=10)
    assert client.fine_tuning.jobs.cancel(job).status == "cancelled"  # once more changes nothing
    wait_for(lambda: not server.engines("luthier.training"), seconds=10 - (time.monotonic() - began))
    [*_, first] = client.fine_tuning.jobs.checkpoints.list(job)
    assert by_hand(server, "delete", job) == f"{job} is deleted"
    with pytest.raises(NotFoundError):
        client.fine_tuning.jobs.retrieve(job)
    answer = client.chat.completions.create(
        model=first.fine_tuned_model_checkpoint,
        messages=[{"role": "user", "content": "abc"}],
        temperature=0,
        max_tokens=8,
    )
    assert answer.choices[0].message.content

    # a replica dies: the next request gets another one
    [replica] = server.engines("luthier.serving")
    replica.send_signal(signal.SIGKILL)
    again = client.chat.completions.create(
        model=first.fine_tuned_model_checkpoint,
        messages=[{"role": "user", "content": "abc"}],
        temperature=0,
        max_tokens=8,
    )
    assert again.choices[0].message.content == answer.choices[0].message.content
