"""dashscope.Client and AsyncClient, which came with 2.0."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import dashscope
import pytest
from dashscope import AsyncClient, Client
from dashscope.v2 import errors

MESSAGES = [{"role": "system", "content": "Say it back."}, {"role": "user", "content": "abc"}]
GREEDY: dict[str, Any] = {"model": "toy", "messages": MESSAGES, "temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def client(base: str, key: str) -> Client:
    return Client(api_key=key, base_url=base)


@pytest.fixture(scope="module")
def whole(client: Client) -> str:
    return client.chat.completions.create(**GREEDY).output_text


def asynchronous(base: str, key: str, asked):
    """What comes of `asked(client)`."""

    async def run():
        async with AsyncClient(api_key=key, base_url=base) as client:
            return await asked(client)

    return asyncio.run(run())


# Files


def test_a_file_is_uploaded_described_and_deleted(client: Client, data: Path) -> None:
    made = client.files.upload(file_path=str(data / "rows.jsonl"), description="ours")
    assert made.file_id and made.name == "rows.jsonl" and not made.is_error
    file = client.files.get(made.file_id)
    assert (file.size, file.purpose) == ((data / "rows.jsonl").stat().st_size, "fine-tune")
    assert file.uploaded_at and file.description == "ours"
    assert client.files.delete(made.file_id).deleted
    with pytest.raises(errors.NotFoundError):
        client.files.get(made.file_id)


def test_files_are_listed_to_the_end(client: Client, rows: str, validation: str, all_pages) -> None:
    def page_of(page: int) -> tuple[list[str], int]:
        listed = client.files.list(page_no=page, page_size=2)
        return [file.file_id for file in listed.files], listed.total_count

    assert {rows, validation} <= set(all_pages(page_of))


def test_the_asynchronous_client_reaches_files(base: str, key: str, data: Path) -> None:
    async def asked(client: AsyncClient):
        made = await client.files.upload(file_path=str(data / "rows.jsonl"))
        file, listed = await client.files.get(made.file_id), await client.files.list()
        gone = await client.files.delete(made.file_id)
        return made.file_id, file.file_id, listed.files[0].file_id, gone.deleted

    made, *others = asynchronous(base, key, asked)
    assert others[0] == made and others[-1] is True


# Jobs


def test_a_job_is_shown(client: Client, trained, rows: str, validation: str) -> None:
    job = client.fine_tunes.get(trained.job_id)
    assert job.succeeded and job.finished and not job.is_error
    assert job.finetuned_model == trained.finetuned_output
    assert (job.training_file_ids, job.validation_file_ids) == ([rows], [validation])
    assert job.hyper_parameters["n_epochs"] == 1 and job.usage.total_tokens > 0
    assert job.created_at and job.finished_at
    assert client.fine_tunes.wait(trained.job_id).succeeded
    assert trained.job_id in [one.job_id for one in client.fine_tunes.list(page_size=100).jobs]


def test_logs_and_events_are_read(client: Client, trained) -> None:
    assert "completed" in client.fine_tunes.logs(trained.job_id).content
    events = list(client.fine_tunes.stream_events(trained.job_id))
    assert all(isinstance(event.output, dict) and not event.is_error for event in events)
    assert "completed" in events[-1].output["message"]


def test_a_job_is_made_cancelled_and_deleted(client: Client, pairs: str) -> None:
    job = client.fine_tunes.create(
        model="toy",
        training_file_ids=[pairs],
        mode="dpo_lora",
        hyper_parameters={"n_epochs": 100},
        finetuned_model="mine",
    )
    assert job.job_id and job.status in ("PENDING", "RUNNING")
    assert client.fine_tunes.cancel(job.job_id).status == "success"
    with pytest.raises(errors.DashScopeError, match="was canceled"):
        client.fine_tunes.wait(job.job_id, poll_interval=0.2, max_interval=0.5)
    assert client.fine_tunes.delete(job.job_id).status == "success"
    with pytest.raises(errors.NotFoundError):
        client.fine_tunes.get(job.job_id)


def test_the_asynchronous_client_reaches_jobs(base: str, key: str, trained) -> None:
    async def asked(client: AsyncClient):
        job = await client.fine_tunes.wait(trained.job_id)
        logs = await client.fine_tunes.logs(trained.job_id)
        events = [event async for event in client.fine_tunes.stream_events(trained.job_id)]
        listed = await client.fine_tunes.list()
        return job.succeeded, logs.content, events, listed.total_count

    succeeded, content, events, total = asynchronous(base, key, asked)
    assert succeeded and content and events and total >= 1


def test_cancelling_what_has_ended_is_refused_once(client: Client, trained) -> None:
    with pytest.raises(errors.BadRequestError, match="succeeded already") as refused:
        client.fine_tunes.cancel(trained.job_id)
    assert (refused.value.code, refused.value.status_code) == ("UnsupportedOperation", 400)


# Models


def test_models_are_listed_and_found(client: Client, base: str, key: str, trained) -> None:
    listed = client.models.list(page_size=100)
    assert {"toy", trained.finetuned_output} <= {model.model for model in listed.models}
    assert listed.total_count == len(listed.models)
    assert client.models.get(trained.finetuned_output).source == "custom"
    with pytest.raises(errors.NotFoundError):
        client.models.get("none")

    async def asked(client: AsyncClient):
        return (await client.models.get("toy")).model, (await client.models.list(page_size=100)).models

    name, models = asynchronous(base, key, asked)
    assert name == "toy" and trained.finetuned_output in [model.model for model in models]


# Chat


def test_a_fine_tuned_model_answers(client: Client, trained) -> None:
    answer = client.chat.completions.create(model=trained.finetuned_output, messages="abc", max_tokens=8)
    assert not answer.is_error and answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


def test_a_stream_adds_up_to_the_answer(client: Client, whole: str) -> None:
    assert "".join(client.chat.completions.create(**GREEDY, stream=True).text_stream) == whole
    snapshots = list(client.chat.completions.create(**GREEDY, stream=True, incremental_output=False).text_stream)
    assert snapshots[-1] == whole
    final = client.chat.completions.create(**GREEDY, stream=True).get_final_message()
    assert final.output_text == whole and final.usage.output_tokens == 8
    assert final.choices[0].finish_reason == "length"


def test_the_server_may_be_asked_for_all_of_the_answer_so_far(client: Client, whole: str) -> None:
    stream = client.chat.completions.create(**GREEDY, stream=True, parameters={"incremental_output": False})
    assert stream.get_final_message().output_text == whole


def test_the_asynchronous_client_chats(base: str, key: str, whole: str) -> None:
    async def asked(client: AsyncClient):
        answer = await client.chat.completions.create(**GREEDY)
        stream = await client.chat.completions.create(**GREEDY, stream=True)
        return answer.output_text, "".join([text async for text in stream.text_stream])

    assert asynchronous(base, key, asked) == (whole, whole)


def test_parts_of_text_are_a_text(client: Client, whole: str) -> None:
    parts = [{"role": one["role"], "content": [{"type": "text", "text": one["content"]}]} for one in MESSAGES]
    assert client.chat.completions.create(**GREEDY | {"messages": parts}).output_text == whole


def test_a_tool_is_called_and_json_is_json(client: Client) -> None:
    bounded = {"type": "object", "properties": {"a": {"enum": ["b"]}}, "required": ["a"], "additionalProperties": False}
    tools = [{"type": "function", "function": {"name": "t", "parameters": bounded}}]
    sent = {"model": "toy", "messages": ".", "tools": tools, "tool_choice": "required", "parallel_tool_calls": False}
    (call,) = client.chat.completions.create(**sent).choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("t", {"a": "b"})
    final = client.chat.completions.create(**sent, stream=True).get_final_message()
    assert [call.function.name for call in final.choices[0].message.tool_calls] == ["t"]
    form = {"type": "json_schema", "json_schema": {"name": "yes", "schema": {"type": "boolean"}}}
    answer = client.chat.completions.create(model="toy", messages="a", response_format=form, max_tokens=200)
    assert json.loads(answer.output_text) in (True, False)


def test_likelihoods_are_put_together(client: Client) -> None:
    sent = GREEDY | {"logprobs": True, "top_logprobs": 1, "stream": True}
    final = client.chat.completions.create(**sent).get_final_message()
    assert len(final.choices[0].logprobs["content"]) == 8


def test_the_openai_protocol_works_at_the_same_address(base: str, key: str, whole: str) -> None:
    client = Client(api_key=key, base_url=base, protocol="openai")
    assert client.chat.completions.create(**GREEDY).output_text == whole
    assert "".join(client.chat.completions.create(**GREEDY, stream=True).text_stream) == whole
    with pytest.raises(errors.NotFoundError):
        client.chat.completions.create(model="none", messages="abc")


# Errors

ERRORS = [
    ("invalid", errors.BadRequestError),
    ("too-long", errors.BadRequestError),
    ("conflict", errors.BadRequestError),
    ("denied", errors.PermissionDeniedError),
    ("absent", errors.NotFoundError),
    ("undeployed", errors.NotFoundError),
    ("limited", errors.RateLimitError),
    ("fault", errors.InternalServerError),
    ("crash", errors.InternalServerError),
    ("unavailable", errors.ServiceUnavailableError),
]


@pytest.mark.parametrize(("name", "kind"), ERRORS)
def test_an_error_is_of_its_class(faulty: str, key: str, name: str, kind: type[Exception]) -> None:
    client = Client(api_key=key, base_url=faulty, max_retries=0)
    for stream in (False, True):
        with pytest.raises(kind) as told:
            client.chat.completions.create(model=f"fail-{name}", messages="abc", stream=stream)
        assert told.value.code and told.value.request_id.startswith("req-")


@pytest.mark.parametrize(
    ("name", "code"), [("invalid", "InvalidParameter"), ("limited", "Throttling.RateQuota"), ("crash", "InternalError")]
)
def test_an_error_inside_a_stream_is_raised_after_what_came(faulty: str, key: str, name: str, code: str) -> None:
    client = Client(api_key=key, base_url=faulty, max_retries=0)
    texts = client.chat.completions.create(model=f"fail-{name}-late", messages="abc", stream=True).text_stream
    assert next(texts) == "Hello"
    with pytest.raises(errors.DashScopeError) as told:
        next(texts)
    assert told.value.code == code


def test_a_wrong_key_is_no_key(base: str) -> None:
    with pytest.raises(errors.AuthenticationError):
        Client(api_key="wrong.key", base_url=base).files.list()


def test_errors_may_be_answers(faulty: str, key: str) -> None:
    client = Client(api_key=key, base_url=faulty, max_retries=0, raise_on_error=False)
    answer = client.chat.completions.create(model="fail-denied", messages="abc")
    assert (answer.is_error, answer.code, answer.status_code) == (True, "AccessDenied", 403)


def test_the_address_may_come_from_the_environment(base: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASHSCOPE_API_KEY", key)
    monkeypatch.setenv("DASHSCOPE_BASE_URL", base)
    monkeypatch.setattr(dashscope, "api_key", None)
    assert Client().models.get("toy").model == "toy"
