"""The official client of OpenAI against a running server, with its strict validation on."""

from __future__ import annotations

import time
from pathlib import Path

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from luthier.serving.client import ReplicaClient
from luthier.serving.spec import ReplicaSpec
from luthier.testing import jsonl, toy_rows
from tests.servers import KEY, RunningServer, wait_for

pytestmark = pytest.mark.timeout(600)  # real processes, each of which imports torch


@pytest.fixture(scope="module")
def client(toy_server: RunningServer) -> OpenAI:
    return toy_server.client(_strict_response_validation=True)


def upload(client: OpenAI, rows: list[dict], name: str = "rows.jsonl") -> openai.types.FileObject:
    return client.files.create(file=(name, jsonl(rows)), purpose="fine-tune")


def ended(client: OpenAI, job_id: str):
    job = client.fine_tuning.jobs.retrieve(job_id)
    return job if job.status in ("succeeded", "failed", "cancelled") else None


@pytest.fixture(scope="module")
def trained(client: OpenAI):
    """A job that has succeeded, with validation, four checkpoints, a suffix and metadata."""
    job = client.fine_tuning.jobs.create(
        model="toy",
        training_file=upload(client, toy_rows(24)).id,
        validation_file=upload(client, toy_rows(8, seed=9)).id,
        suffix="Echo",
        seed=7,
        metadata={"team": "red"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4}}},
    )
    job = wait_for(lambda: ended(client, job.id))
    assert job.status == "succeeded", job.error
    return job


# Files


def test_a_file_is_uploaded_read_listed_given_back_and_deleted(client: OpenAI) -> None:
    content = jsonl(toy_rows(10))
    file = client.files.create(file=("数据.jsonl", content), purpose="fine-tune")
    assert (file.filename, file.bytes, file.purpose) == ("数据.jsonl", len(content), "fine-tune")
    assert client.files.wait_for_processing(file.id, poll_interval=0.1).status == "processed"
    assert file.id in [one.id for one in client.files.list(purpose="fine-tune")]
    assert client.files.content(file.id).content == content
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_lists_page_to_their_end(client: OpenAI) -> None:
    ids = [upload(client, toy_rows(10), f"{n}.jsonl").id for n in range(5)]
    assert [file.id for file in client.files.list(limit=2)][:5] == ids[::-1]
    assert [file.id for file in client.files.list(limit=2, order="asc")][-5:] == ids


def test_a_broken_file_says_which_line_is_wrong_and_starts_no_job(client: OpenAI) -> None:
    rows = jsonl(toy_rows(12)).splitlines()
    rows[6] = b'{"messages": [{"role": "user", "content": "hi"}]}'
    file = client.files.create(file=("broken.jsonl", b"\n".join(rows)), purpose="fine-tune")
    file = client.files.wait_for_processing(file.id, poll_interval=0.1)
    assert file.status == "error"
    told = (
        "line 7, column 14, row 7: There is no assistant turn, so there is nothing to learn. Add the expected output."
    )
    assert file.status_details == told
    with pytest.raises(openai.BadRequestError) as refused:
        client.fine_tuning.jobs.create(model="toy", training_file=file.id)
    assert refused.value.code == "invalid_training_file"
    assert refused.value.param == "training_file"
    assert told in refused.value.message


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


def test_a_file_whose_name_says_that_it_holds_no_rows_is_refused_at_once(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"ends with \.txt; files of rows end with \.jsonl or \.json"):
        client.files.create(file=("notes.txt", b"just words\n"), purpose="fine-tune")


# Jobs


def test_a_job_shows_what_was_asked_and_what_was_used(client: OpenAI, trained) -> None:
    assert trained.model == "toy"
    assert trained.seed == 7
    assert trained.metadata == {"team": "red"}
    assert (trained.hyperparameters.n_epochs, trained.hyperparameters.batch_size) == (2, 4)
    assert trained.fine_tuned_model.startswith("toy-echo-")
    assert trained.trained_tokens > 0
    assert trained.finished_at >= trained.created_at
    assert trained.id in [job.id for job in client.fine_tuning.jobs.list(limit=1)]


def test_events_tell_every_step_once_newest_first(client: OpenAI, trained) -> None:
    events = list(client.fine_tuning.jobs.list_events(trained.id, limit=5))
    steps = [e.data["current_steps"] for e in events if e.type == "metrics" and "current_steps" in e.data]
    assert steps == list(range(12, 0, -1))
    assert events[-1].message == "The job was created."
    assert events[0].message == "The job has successfully completed."
    losses = [e.data["train_loss"] for e in events if e.data and "train_loss" in e.data]
    assert losses[0] < losses[-1]


def test_checkpoints_carry_metrics_and_can_be_called(client: OpenAI, trained) -> None:
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(trained.id, limit=2))
    assert [one.step_number for one in checkpoints] == [12, 9, 6, 3]
    metrics = checkpoints[0].metrics
    assert metrics.full_valid_loss is not None and metrics.train_loss is not None
    name = checkpoints[-1].fine_tuned_model_checkpoint
    assert say(client, name, "abc").choices[0].finish_reason in ("stop", "length")


def test_cancelling_an_ended_job_is_refused(client: OpenAI, trained) -> None:
    with pytest.raises(openai.BadRequestError, match="nothing to cancel"):
        client.fine_tuning.jobs.cancel(trained.id)


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"model": "no-such-model"}, "model", "Base models: toy"),
        ({"training_file": "file-nonsense"}, "training_file", "no file 'file-nonsense'"),
        ({"suffix": "a b"}, "suffix", "must be"),
        ({"hyperparameters": {"n_epoch": 3}}, "hyperparameters.n_epoch", "is not a field"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", "greater than or equal to 1"),
        ({"method": {"type": "dpo"}}, "method.type", "not offered"),
    ],
)
def test_a_wrong_job_is_refused_by_name(client: OpenAI, change: dict, param: str, words: str) -> None:
    asked = {"model": "toy", "training_file": upload(client, toy_rows(12)).id} | change
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as refused:
        client.fine_tuning.jobs.create(**asked)
    assert words in refused.value.message
    assert refused.value.param == param


def test_fewer_than_ten_rows_are_refused(client: OpenAI) -> None:
    file = upload(client, toy_rows(9))
    client.files.wait_for_processing(file.id, poll_interval=0.1)
    with pytest.raises(openai.BadRequestError, match="9 rows; at least 10"):
        client.fine_tuning.jobs.create(model="toy", training_file=file.id)


# Models and chat


def say(client: OpenAI, model: str, text: str, **more):
    return client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": text}], temperature=0, max_tokens=24, **more
    )


def test_models_are_listed_retrieved_and_deleted(client: OpenAI) -> None:
    job = client.fine_tuning.jobs.create(
        model="toy",
        training_file=upload(client, toy_rows(10)).id,
        hyperparameters={"n_epochs": 1, "batch_size": 10},
    )
    name = wait_for(lambda: ended(client, job.id)).fine_tuned_model
    assert {"toy", name} <= {model.id for model in client.models.list()}
    assert client.models.retrieve(name).id == name
    assert say(client, name, "ab").model == name
    assert client.models.delete(name).deleted
    with pytest.raises(openai.NotFoundError) as gone:
        say(client, name, "ab")
    assert gone.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="base model"):
        client.models.delete("toy")


def test_the_tuned_model_answers_with_no_deploy_step_and_the_stream_says_the_same(client: OpenAI, trained) -> None:
    whole = say(client, trained.fine_tuned_model, "abca")
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    chunks = list(say(client, trained.fine_tuned_model, "abca", stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == whole.choices[0].finish_reason
    assert len({chunk.id for chunk in chunks}) == 1


def test_base_and_tuned_models_are_answered_by_one_resident_base(
    client: OpenAI, trained, toy_server: RunningServer
) -> None:
    assert (
        say(client, "toy", "abca").choices[0].message.content
        != say(client, trained.fine_tuned_model, "abca").choices[0].message.content
    )
    assert len(toy_server.engines("luthier.serving")) == 1


def test_usage_comes_in_a_last_chunk_when_asked_for(client: OpenAI) -> None:
    *chunks, last = say(client, "toy", "ab", stream=True, stream_options={"include_usage": True})
    assert last.choices == [] and last.usage.total_tokens > 0
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_the_same_seed_gives_the_same_text_and_another_one_another(client: OpenAI) -> None:
    def said(seed: int) -> str:
        answer = client.chat.completions.create(
            model="toy", messages=[{"role": "user", "content": "ab"}], temperature=1, seed=seed, max_tokens=40
        )
        return answer.choices[0].message.content

    assert said(1) == said(1) != said(2)


def test_an_unknown_model_and_a_prompt_that_is_too_long_are_told(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        say(client, "gpt-9", "hi")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as too_long:
        say(client, "toy", "x" * 600)
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as in_stream:
        say(client, "toy", "x" * 600, stream=True)
    assert in_stream.value.code == "context_length_exceeded"


@pytest.mark.parametrize("key", ["nonsense", "first.wrong" + "0" * 40, KEY + "x", "nobody." + "0" * 40])
def test_a_wrong_key_is_an_authentication_error(toy_server: RunningServer, key: str) -> None:
    with pytest.raises(openai.AuthenticationError) as refused:
        OpenAI(base_url=f"{toy_server.url}/v1", api_key=key, max_retries=0).models.list()
    assert refused.value.code == "invalid_api_key"


async def test_the_asynchronous_client_streams_alike(toy_server: RunningServer) -> None:
    async with AsyncOpenAI(base_url=f"{toy_server.url}/v1", api_key=KEY, max_retries=0) as client:
        stream = await client.chat.completions.create(
            model="toy", messages=[{"role": "user", "content": "ab"}], temperature=0, max_tokens=8, stream=True
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        whole = await client.chat.completions.create(
            model="toy", messages=[{"role": "user", "content": "ab"}], temperature=0, max_tokens=8
        )
        assert text == whole.choices[0].message.content
        assert "toy" in [model.id async for model in client.models.list()]


async def test_hanging_up_frees_the_replica(client: OpenAI, toy_server: RunningServer) -> None:
    [replica] = toy_server.engines("luthier.serving")
    spec = ReplicaSpec.model_validate_json(Path(replica.cmdline()[3]).read_bytes())

    async def active() -> int:
        return (await ReplicaClient(spec.socket).health(timeout=10)).active

    messages = [{"role": "user", "content": "ab"}]
    stream = client.chat.completions.create(model="toy", messages=messages, stream=True)
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 10
    while await active():
        assert time.monotonic() < deadline, "the replica goes on for nobody"
