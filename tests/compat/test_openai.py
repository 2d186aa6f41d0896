"""What must be seen from both ends: the official client of OpenAI in front, the server's own processes behind."""

from __future__ import annotations

import time
from pathlib import Path

import openai
import pytest
from openai import OpenAI

from luthier.serving.client import ReplicaClient
from luthier.serving.spec import ReplicaSpec
from luthier.testing import jsonl, toy_rows
from tests.servers import RunningServer, wait_for

pytestmark = pytest.mark.timeout(600)  # real processes, each of which imports torch


@pytest.fixture(scope="module")
def client(toy_server: RunningServer) -> OpenAI:
    return toy_server.client(_strict_response_validation=True)


def upload(client: OpenAI, rows: list[dict]) -> openai.types.FileObject:
    return client.files.create(file=("rows.jsonl", jsonl(rows)), purpose="fine-tune")


def ended(client: OpenAI, job_id: str):
    job = client.fine_tuning.jobs.retrieve(job_id)
    return job if job.status in ("succeeded", "failed", "cancelled") else None


@pytest.fixture(scope="module")
def trained(client: OpenAI):
    """A job of twelve steps that has succeeded, with validation."""
    job = client.fine_tuning.jobs.create(
        model="toy",
        training_file=upload(client, toy_rows(24)).id,
        validation_file=upload(client, toy_rows(8, seed=9)).id,
        seed=7,
        hyperparameters={"n_epochs": 2, "batch_size": 4},
    )
    job = wait_for(lambda: ended(client, job.id))
    assert job.status == "succeeded", job.error
    return job


def test_events_tell_that_the_model_learns(client: OpenAI, trained) -> None:
    events = list(client.fine_tuning.jobs.list_events(trained.id, limit=5))
    steps = [e.data["current_steps"] for e in events if e.type == "metrics" and "current_steps" in e.data]
    assert steps == list(range(12, 0, -1))
    losses = [e.data["train_loss"] for e in events if e.data and "train_loss" in e.data]
    assert losses[0] < losses[-1]
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(trained.id, limit=2))
    assert [one.step_number for one in checkpoints] == [12, 9, 6, 3]


def test_a_job_on_a_file_that_is_no_jsonl_is_refused_or_fails_with_the_reason(client: OpenAI) -> None:
    file = client.files.create(file=("notes.jsonl", b"just words\nand more\n" * 20), purpose="fine-tune")
    told = None
    try:
        job = client.fine_tuning.jobs.create(model="toy", training_file=file.id)
    except openai.BadRequestError as refused:  # it was read before the job came
        told = refused.message
    else:
        error = wait_for(lambda: ended(client, job.id)).error
        told = error and error.message
    assert told and "The file does not look like JSON Lines; it begins with just words" in told


def say(client: OpenAI, model: str, text: str):
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=24)


def test_base_and_tuned_models_are_answered_by_one_resident_base(
    client: OpenAI, trained, toy_server: RunningServer
) -> None:
    assert (
        say(client, "toy", "abca").choices[0].message.content
        != say(client, trained.fine_tuned_model, "abca").choices[0].message.content
    )
    assert len(toy_server.engines("luthier.serving")) == 1


async def test_hanging_up_frees_the_replica(client: OpenAI, toy_server: RunningServer) -> None:
    say(client, "toy", "ab")
    [replica] = toy_server.engines("luthier.serving")
    spec = ReplicaSpec.model_validate_json(Path(replica.cmdline()[3]).read_bytes())

    async def active() -> int:
        return (await ReplicaClient(spec.listen).health(timeout=10)).active

    messages = [{"role": "user", "content": "ab"}]
    stream = client.chat.completions.create(model="toy", messages=messages, stream=True)
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 10
    while await active():
        assert time.monotonic() < deadline, "the replica goes on for nobody"
