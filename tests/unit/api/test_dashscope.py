"""DashScope's native API: what a request means, in which form it is answered, and how what is wrong is said."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from luthier.api.dashscope.wire.fine_tunes import CreateFineTune, FineTune
from luthier.api.dashscope.wire.generation import GenerationRequest
from luthier.control.inference.service import CompletionRequest, Delta
from luthier.control.jobs.lifecycle import Status
from luthier.control.jobs.values import Error, Job, JobEvent, JobRequest
from luthier.control.tenancy import Principal
from luthier.core import errors
from luthier.core.clock import SystemClock
from luthier.core.errors import InvalidParameter, InvalidRequest, StorageUnavailable
from luthier.serving.protocol import CalledTool, Finish, Likelihood, TokenChunk, TokenLikelihood
from luthier.testing import jsonl, toy_rows
from luthier.training.spec import PluginChoice
from tests.unit.api.conftest import UPLOAD_LIMIT, Api

P = "/api/v1"
GENERATION = f"{P}/services/aigc/text-generation/generation"
ROWS = jsonl(toy_rows(12))


def good(api: Api, method: str, path: str, **sent: Any) -> dict[str, Any]:
    """The answer to a call of Ada's that must succeed: exactly 200, an object, its id, never a `code`."""
    answer = api.call(method, f"{P}{path}", api.ada, **sent)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["request_id"] == answer.headers["x-request-id"]
    assert "code" not in body and "error" not in body
    return body


def bad(api: Api, method: str, path: str, **sent: Any) -> tuple[int, str, str]:
    status, body = api.refused(method, f"{P}{path}", api.ada, **sent)
    return status, body["code"], body["message"]


# Files


def parts(*names: str, content: bytes = ROWS) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", (name, content)) for name in names]


def put(api: Api, *names: str, **form: Any) -> dict[str, Any]:
    return good(api, "POST", "/files", files=parts(*names), data=form)["data"]


def test_an_uploaded_file_is_described_as_it_came(api: Api) -> None:
    file_id = put(api, "训练.jsonl", descriptions="语气", purpose="fine-tune")["uploaded_files"][0]["file_id"]
    file = good(api, "GET", f"/files/{file_id}")["data"]
    assert (file["name"], file["description"], file["size"]) == ("训练.jsonl", "语气", len(ROWS))
    assert file["md5"] == hashlib.md5(ROWS).hexdigest()
    assert (file["url"], file["purpose"]) == (None, "fine-tune")
    assert len(file["gmt_create"]) == len("2026-01-01 00:00:00") and file["gmt_create"] == file["upload_time"]


def test_several_files_have_their_descriptions_by_order(api: Api) -> None:
    made = put(api, "a.jsonl", "b.jsonl", descriptions=["one", "two"])["uploaded_files"]
    found = [good(api, "GET", f"/files/{one['file_id']}")["data"] for one in made]
    assert [(one["name"], one["description"]) for one in found] == [("a.jsonl", "one"), ("b.jsonl", "two")]


def test_a_file_that_is_refused_does_not_lose_the_others(api: Api) -> None:
    done = put(api, "notes.txt", "rows.jsonl", "notes.txt")
    assert [one["name"] for one in done["uploaded_files"]] == ["rows.jsonl"]
    assert [(one["name"], one["code"]) for one in done["failed_uploads"]] == [("notes.txt", "InvalidParameter")] * 2
    assert "ends with .txt" in done["failed_uploads"][0]["message"]


def test_where_no_file_could_be_taken_the_call_fails_with_every_reason(api: Api) -> None:
    status, code, message = bad(api, "POST", "/files", files=parts("notes.txt"))
    assert (status, code) == (400, "InvalidParameter") and "ends with .txt" in message
    _, _, message = bad(api, "POST", "/files", files=parts("a.txt", "b.csv"))
    assert "ends with .txt" in message and "ends with .csv" in message


def test_where_the_store_is_away_the_call_may_be_tried_again(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def add_file(who: object, name: str, *_: object, **__: object) -> None:
        raise InvalidRequest("It is wrong.") if name == "a.txt" else StorageUnavailable("The store is away.")

    monkeypatch.setattr(api.parts.services.datasets, "add_file", add_file)
    status, code, message = bad(api, "POST", "/files", files=parts("a.txt", "b.jsonl"))
    assert (status, code, message) == (503, "ServiceUnavailable", "The store is away.")


@pytest.mark.parametrize("purpose", [[], ["fine_tune"], ["fine-tune", "fine_tune"], ["fine-tune"]])
def test_a_purpose_may_be_absent_or_spelled_as_in_the_sdk(api: Api, purpose: list[str]) -> None:
    made = put(api, "a.jsonl", "b.jsonl", purpose=purpose)["uploaded_files"]
    assert [good(api, "GET", f"/files/{one['file_id']}")["data"]["purpose"] for one in made] == ["fine-tune"] * 2


@pytest.mark.parametrize("purpose", ["inference", "xfine_tunex"])
def test_another_purpose_is_refused(api: Api, purpose: str) -> None:
    answered = bad(api, "POST", "/files", files=parts("a.jsonl"), data={"purpose": purpose})
    assert answered[:2] == (400, "InvalidParameter")


def test_a_file_is_the_same_thing_in_every_dialect(api: Api) -> None:
    theirs = api.upload(api.ada, ROWS)
    assert good(api, "GET", f"/files/{theirs}")["data"]["md5"] == hashlib.md5(ROWS).hexdigest()
    ours = put(api, "a.jsonl")["uploaded_files"][0]["file_id"]
    assert api.call("GET", f"/v1/files/{ours}", api.ada).json()["filename"] == "a.jsonl"
    assert good(api, "DELETE", f"/files/{ours}")["data"] == {"deleted": True}
    assert bad(api, "GET", f"/files/{ours}")[:2] == (404, "NotFound")
    assert api.call("GET", f"/v1/files/{ours}", api.ada).status_code == 404


def test_files_are_listed_in_pages_to_the_end(api: Api) -> None:
    made = [put(api, f"{n}.jsonl")["uploaded_files"][0]["file_id"] for n in range(3)]
    found: list[str] = []
    total, number = 1, 0
    while len(found) < total:
        number += 1
        page = good(api, "GET", f"/files?page_no={number}&page_size=2")["data"]
        assert (page["page_no"], page["page_size"]) == (number, 2) and page["files"]
        total = page["total"]
        found += [file["file_id"] for file in page["files"]]
    assert found[:3] == made[::-1] and len(found) == len(set(found)) == total


@pytest.mark.parametrize("asked", ["page_no=0", "page_size=0", "page_size=1001", "page_no=x", f"page_no={10**30}"])
def test_a_page_that_there_cannot_be_is_refused(api: Api, asked: str) -> None:
    for path in ("/files", "/fine-tunes", "/models"):
        assert bad(api, "GET", f"{path}?{asked}")[:2] == (400, "InvalidParameter")


# What a job means


def meant(**sent: Any) -> JobRequest:
    return CreateFineTune.model_validate({"model": "toy", "training_file_ids": ["file-1"]} | sent).to_request()


def with_numbers(training_type: str = "efficient_sft", **numbers: Any) -> JobRequest:
    return meant(training_type=training_type, hyper_parameters=numbers)


def test_what_is_not_said_has_this_dialects_defaults() -> None:
    """Over-long rows are dropped, nothing is split, weights of turns are ignored, one row is enough, the rate is found."""
    for sent in ({}, {"hyper_parameters": {}}, {"hyper_parameters": None, "validation_file_ids": None}):
        asked = meant(**sent)
        assert (asked.max_length, asked.usual_max_length, asked.overlength) == (None, 2048, "drop")
        assert (asked.validation_files, asked.validation_share) == ([], None)
        assert (asked.turn_weights, asked.least_rows) == ("ignored", 1)
        assert (asked.learning_rate, asked.epochs, asked.batch_size) == (None, None, None)
        assert (asked.method.name, asked.objective and asked.objective.name) == ("full", "sft")


@pytest.mark.parametrize(
    ("training_type", "method", "objective"),
    [
        ("cpt", "full", "cpt"),
        ("sft", "full", "sft"),
        ("efficient_sft", "lora", "sft"),
        ("dpo_full", "full", "dpo"),
        ("dpo_lora", "lora", "dpo"),
    ],
)
def test_a_training_type_is_a_method_and_an_objective(training_type: str, method: str, objective: str) -> None:
    asked = meant(training_type=training_type)
    assert (asked.method, asked.objective) == (PluginChoice(name=method), PluginChoice(name=objective))


def test_numbers_may_be_strings() -> None:
    asked = with_numbers(n_epochs="3", batch_size="16", learning_rate="1.6e-5", max_length="512")
    assert (asked.epochs, asked.batch_size, asked.learning_rate, asked.max_length) == (3, 16, 1.6e-5, 512)


def test_null_auto_and_an_empty_string_leave_a_number_to_us() -> None:
    asked = with_numbers(n_epochs="auto", batch_size=None, learning_rate="")
    assert (asked.epochs, asked.batch_size, asked.learning_rate) == (None, None, None)


def test_every_number_has_its_meaning() -> None:
    asked = with_numbers(
        eval_steps=5, save_steps="7", warmup_ratio=0.1, weight_decay="0.01", lr_scheduler_type="Linear"
    )
    assert (asked.evaluate_every_steps, asked.save_every_steps) == (5, 7)
    assert (asked.warmup_ratio, asked.weight_decay, asked.schedule) == (0.1, 0.01, "linear")
    options = with_numbers(lora_rank="8", lora_alpha=32, lora_dropout="0.1").method.options
    assert options == {"rank": 8, "alpha": 32.0, "dropout": 0.1}
    assert with_numbers("dpo_lora", beta="0.2").objective == PluginChoice(name="dpo", options={"beta": 0.2})


@pytest.mark.parametrize(
    ("name", "warmup", "meaning"),
    [
        ("cosine", None, ("cosine", None)),
        ("constant", None, ("constant", 0.0)),
        ("constant", 0.1, ("constant", 0.1)),
        ("constant_with_warmup", None, ("constant", None)),
        ("warmup_stable_decay", None, ("wsd", None)),
    ],
)
def test_a_schedule_has_the_warm_up_that_its_name_says(name: str, warmup: float | None, meaning: Any) -> None:
    asked = with_numbers(lr_scheduler_type=name, warmup_ratio=warmup)
    assert (asked.schedule, asked.warmup_ratio) == meaning


@pytest.mark.parametrize(("split", "share"), [(0.9, 0.1), ("0.8", 0.2), (1, None), (None, None)])
def test_a_split_says_which_share_is_trained(split: Any, share: float | None) -> None:
    asked = with_numbers(split=split, max_split_val_dataset_sample=100)
    assert asked.validation_share == share
    assert asked.validation_rows_at_most == (100 if share else None)


@pytest.mark.parametrize("split", [1e-12, 0.9999999999])
def test_a_share_that_is_none_is_not_kept(split: float) -> None:
    assert with_numbers(split=split).validation_share is None


@pytest.mark.parametrize(
    "numbers", [{"split": 0.9}, {"split": 0.9, "max_split_val_dataset_sample": 100}, {"split": ""}]
)
def test_nothing_is_split_off_where_a_validation_file_is_named(numbers: dict[str, Any]) -> None:
    asked = meant(hyper_parameters=numbers, validation_file_ids=["file-2"])
    assert (asked.validation_files, asked.validation_share) == (["file-2"], None)


@pytest.mark.parametrize("left", ["", "auto", None])
def test_a_schedule_may_be_left_to_us(left: str | None) -> None:
    assert with_numbers(lr_scheduler_type=left) == with_numbers()


@pytest.mark.parametrize(
    ("training_type", "numbers", "told"),
    [
        ("efficient_sft", {"lr_scheduler_type": "polynomial"}, "lr_scheduler_type: must be one of linear, cosine"),
        ("efficient_sft", {"prompt_loss": 0.5}, "prompt_loss: must be 0"),
        ("sft", {"lora_rank": 8}, "lora_rank: is for efficient_sft and dpo_lora; sft trains all weights"),
        ("dpo_full", {"lora_alpha": 8}, "lora_alpha: is for efficient_sft and dpo_lora; dpo_full trains all weights"),
        ("efficient_sft", {"beta": 0.1}, "beta: is for dpo_full and dpo_lora"),
    ],
)
def test_a_number_that_cannot_be_obeyed_is_refused_by_name(
    training_type: str, numbers: dict[str, Any], told: str
) -> None:
    with pytest.raises(InvalidParameter) as refused:
        with_numbers(training_type, **numbers)
    assert refused.value.text.startswith(f"hyper_parameters.{told}")


def test_no_loss_on_prompts_may_be_asked_for() -> None:
    assert with_numbers(prompt_loss="0").epochs is None


@pytest.mark.parametrize("name", ["finetuned_output_suffix", "model_name", "finetuned_output"])
def test_every_client_has_its_own_word_for_the_suffix(name: str) -> None:
    assert meant(**{name: "tone"}).suffix == "tone"
    for sent in ("语气", "a b", "", "x" * 65, "-tone", "a/b"):
        with pytest.raises(InvalidParameter) as refused:
            meant(**{name: sent})
        assert refused.value.param == name and "must fit into an address" in refused.value.text


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"hyper_parameters": {"n_epoch": 1}}, "hyper_parameters.n_epoch: is not a field that is known here"),
        ({"hyper_parameters": {"n_epochs": 0}}, "hyper_parameters.n_epochs:"),
        ({"hyper_parameters": {"learning_rate": "fast"}}, "hyper_parameters.learning_rate:"),
        ({"hyper_parameters": {"learning_rate": "nan"}}, "hyper_parameters.learning_rate:"),
        ({"hyper_parameters": []}, "hyper_parameters:"),
        ({"training_file_ids": []}, "training_file_ids:"),
        ({"training_file_ids": None}, "training_file_ids:"),
        ({"training_file_ids": ["a\0"]}, "training_file_ids:"),
        ({"training_type": "rlhf"}, "training_type:"),
        ({"model": None}, "model:"),
    ],
)
def test_a_job_that_is_asked_for_wrongly_names_the_field(api: Api, change: dict[str, Any], field: str) -> None:
    sent = {"model": "toy", "training_file_ids": ["file-1"]} | change
    status, code, message = bad(api, "POST", "/fine-tunes", json=sent)
    assert (status, code) == (400, "InvalidParameter")
    assert message.startswith(field), message


def test_fields_that_are_not_known_are_ignored(api: Api) -> None:
    sent = {"model": "none", "training_file_ids": ["file-1"], "job_name": "x", "group": None, "stream": True}
    assert bad(api, "POST", "/fine-tunes", json=sent)[:2] == (404, "Model.NotExist")


# How a job is shown


def job(status: Status = Status.RUNNING, **changes: Any) -> Job:
    now = SystemClock().now()
    told: dict[str, Any] = {
        "id": "ftjob-1",
        "project": "proj-1",
        "status": status,
        "request": meant(training_type="efficient_sft", hyper_parameters={"n_epochs": "2", "split": 0.9}),
        "spec": None,
        "model_name": "toy-x7k2",
        "trained_tokens": None,
        "seconds_left": None,
        "error": None,
        "created_at": now,
        "started_at": None,
        "finished_at": None,
    }
    return Job(**told | changes)


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        (Status.CHECKING, "PENDING"),
        (Status.QUEUED, "PENDING"),
        (Status.STARTING, "RUNNING"),
        (Status.RUNNING, "RUNNING"),
        (Status.CANCELLING, "RUNNING"),
        (Status.PAUSED, "SUSPENDED"),
        (Status.SUCCEEDED, "SUCCEEDED"),
        (Status.FAILED, "FAILED"),
        (Status.CANCELLED, "CANCELED"),
    ],
)
def test_a_status_is_shown_in_this_dialects_word(status: Status, shown: str) -> None:
    told = FineTune.of(job(status)).model_dump()
    assert told["status"] == shown
    assert told["finetuned_output"] == ("toy-x7k2" if status is Status.SUCCEEDED else None)


@pytest.mark.parametrize(
    ("kept", "code"),
    [
        ("invalid_training_file", "InvalidParameter"),
        ("out_of_memory", "InternalError"),
        ("no_capacity", "ServiceUnavailable"),
        ("a code of long ago", "InternalError"),
    ],
)
def test_why_a_job_failed_is_inside_its_output(kept: str, code: str) -> None:
    told = FineTune.of(job(Status.FAILED, error=Error(code=kept, message="why"))).model_dump()
    assert (told["code"], told["message"]) == (code, "why")
    assert {"code", "message"} & set(FineTune.of(job()).model_dump()) == set()


def test_a_job_shows_what_was_sent_and_then_what_is_used(api: Api) -> None:
    file = put(api, "rows.jsonl")["uploaded_files"][0]["file_id"]
    sent = {
        "model": "toy",
        "training_file_ids": [file],
        "training_type": "efficient_sft",
        "hyper_parameters": {"n_epochs": "2", "lora_rank": 4, "learning_rate": "0.01"},
        "finetuned_output_suffix": "tone",
    }
    made = good(api, "POST", "/fine-tunes", json=sent)["output"]
    assert made["status"] in ("PENDING", "RUNNING", "SUCCEEDED")
    done = ended(api, made["job_id"])
    assert done["status"] == "SUCCEEDED", done
    assert done["finetuned_output"].startswith("toy-tone-")
    assert (done["training_type"], done["training_file_ids"], done["validation_file_ids"]) == (
        "efficient_sft",
        [file],
        [],
    )
    numbers = done["hyper_parameters"]
    assert (numbers["n_epochs"], numbers["lora_rank"], numbers["learning_rate"]) == (2, 4, 0.01)
    assert numbers["lora_alpha"] == 8
    assert {"batch_size", "max_length", "lr_scheduler_type", "lora_dropout", "eval_steps"} <= set(numbers)
    assert isinstance(done["usage"], int) and done["end_time"] >= done["create_time"]


def test_a_job_of_another_dialect_is_shown_in_this_ones_words(api: Api) -> None:
    file = api.upload(api.ada, ROWS)
    sent = {"model": "toy", "training_file": file, "hyperparameters": {"n_epochs": 1}}
    theirs = api.call("POST", "/v1/fine_tuning/jobs", api.ada, json=sent).json()["id"]
    shown = ended(api, theirs)
    assert (shown["training_type"], shown["training_file_ids"]) == ("efficient_sft", [file])
    assert shown["hyper_parameters"]["n_epochs"] == 1


def ended(api: Api, job_id: str) -> dict[str, Any]:
    api.until(f"/v1/fine_tuning/jobs/{job_id}", api.ada, "succeeded", "failed", "cancelled")
    return good(api, "GET", f"/fine-tunes/{job_id}")["output"]


def test_cancelling_what_has_ended_is_no_conflict_that_a_client_would_try_again(api: Api) -> None:
    file = put(api, "rows.jsonl")["uploaded_files"][0]["file_id"]
    sent = {"model": "toy", "training_file_ids": [file], "training_type": "efficient_sft"}
    job_id = good(api, "POST", "/fine-tunes", json=sent)["output"]["job_id"]
    assert ended(api, job_id)["status"] == "SUCCEEDED"
    status, code, message = bad(api, "POST", f"/fine-tunes/{job_id}/cancel")
    assert (status, code) == (400, "UnsupportedOperation") and "succeeded already" in message


def test_checkpoints_are_a_list_of_names_that_can_be_called(api: Api) -> None:
    found = api.call("GET", f"{P}/fine-tunes/{api.bobs['job_id']}/checkpoints", api.bob).json()["output"]
    assert api.bobs["checkpoint"] in [one["model_name"] for one in found]
    assert all(one["checkpoint_id"] == f"{api.bobs['job_id']}:checkpoint-{one['step']}" for one in found)


# Logs and events


def test_the_old_command_line_reads_a_long_log_to_its_end(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins at line 1, asks for 1,000 at a time, and goes on for as long as `total` is not below that."""
    whole = [f"line {n}" for n in range(3001)]

    async def log(who: Principal, job_id: str, *, offset: int, lines: int) -> list[str]:
        return whole[offset : offset + lines]

    monkeypatch.setattr(api.parts.services.jobs, "log", log)
    read: list[str] = []
    for asked in range(10):
        page = good(api, "GET", f"/fine-tunes/any/logs?offset={1 + 1000 * asked}&line=1000")["output"]
        read += page["logs"]
        if page["total"] < 1000:
            break
    assert (read, asked) == (whole[1:], 3)


@pytest.mark.parametrize("asked", ["offset=-1", "line=0", "line=1001", "offset=x"])
def test_lines_that_there_cannot_be_are_refused(api: Api, asked: str) -> None:
    assert bad(api, "GET", f"/fine-tunes/any/logs?{asked}")[:2] == (400, "InvalidParameter")


def test_logs_without_a_wish_begin_at_line_0_and_are_a_hundred(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def log(who: Principal, job_id: str, *, offset: int, lines: int) -> list[str]:
        return [str((offset, lines))]

    monkeypatch.setattr(api.parts.services.jobs, "log", log)
    assert good(api, "GET", "/fine-tunes/any/logs")["output"] == {"total": 1, "logs": ["(0, 100)"]}


def test_events_are_frames_and_a_quiet_time_is_a_comment(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    told = JobEvent.model_construct(
        id="ftevent-1",
        job="ftjob-1",
        number=1,
        level="info",
        kind="metrics",
        message="步 1",
        data={"loss": 0.5},
        created_at=SystemClock().now(),
    )

    async def follow(who: Principal, job_id: str) -> AsyncGenerator[JobEvent | None, None]:
        async def events() -> AsyncGenerator[JobEvent | None, None]:
            yield None
            yield told
            raise errors.StorageUnavailable("It is gone.")

        return events()

    monkeypatch.setattr(api.parts.services.jobs, "follow", follow)
    answer = api.call("GET", f"{P}/fine-tunes/ftjob-1/stream", api.ada)
    assert answer.headers["content-type"].startswith("text/event-stream")
    quiet, event, failed = answer.text.removesuffix("\n\n").split("\n\n")
    assert quiet == ":keep-alive"
    assert event.startswith('id:1\nevent:result\n:HTTP_STATUS/200\ndata:{"job_id":"ftjob-1",')
    data = json.loads(event.split("data:", 1)[1])
    assert (data["level"], data["type"], data["message"], data["data"]) == ("info", "metrics", "步 1", {"loss": 0.5})
    assert failed.startswith("id:2\nevent:error\n:HTTP_STATUS/503\nstatus:503\ndata:{")


# Models


def test_models_are_listed_and_found_by_name(api: Api) -> None:
    page = good(api, "GET", "/models?page_size=1")["output"]
    assert (len(page["models"]), page["page_no"], page["page_size"]) == (1, 1, 1) and page["total"] >= 2
    found = good(api, "GET", "/models?model=toy&page_no=1&page_size=1")["output"]
    assert (found["total"], found["models"][0]["model"], found["models"][0]["source"]) == (1, "toy", "base")
    assert good(api, "GET", "/models/toy")["output"]["name"] == "toy"


def test_a_model_that_there_is_not_is_an_empty_list_of_which_the_client_makes_its_error(api: Api) -> None:
    assert good(api, "GET", "/models?model=none")["output"] == {
        "models": [],
        "page_no": 1,
        "page_size": 10,
        "total": 0,
    }
    assert bad(api, "GET", "/models/none")[:2] == (404, "Model.NotExist")


# What a call of a model means


def asked(parameters: dict[str, Any] | None = None, **told: Any) -> CompletionRequest:
    told = told or {"prompt": "Hi"}
    return GenerationRequest.model_validate({"model": "toy", "input": told, "parameters": parameters}).to_request()


def said(request: CompletionRequest) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in request.messages]


def test_a_prompt_is_what_the_user_says() -> None:
    assert said(asked(prompt="Hi")) == [("user", "Hi")]


def test_an_old_history_comes_before_the_prompt() -> None:
    history = [{"user": "a", "bot": "b"}, {"user": "c"}]
    assert said(asked(prompt="d", history=history)) == [("user", "a"), ("assistant", "b"), ("user", "c"), ("user", "d")]


def test_messages_may_hold_parts_calls_and_what_a_tool_answered() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"town": "Bonn"}'}}
    request = asked(
        messages=[
            {"role": "system", "content": [{"text": "Be "}, {"type": "text", "text": "kind."}]},
            {"role": "user", "content": "Rain?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "yes", "tool_call_id": "call_1", "name": "weather"},
        ]
    )
    assert said(request) == [("system", "Be kind."), ("user", "Rain?"), ("assistant", ""), ("tool", "yes")]
    assert request.messages[2].tool_calls == [CalledTool(id="call_1", name="weather", arguments='{"town": "Bonn"}')]
    assert request.messages[3].tool_call_id == "call_1"


def test_what_is_not_said_is_the_models_own_distribution() -> None:
    for parameters in (None, {}, dict.fromkeys(("temperature", "top_p", "top_k", "stop", "n", "tools", "seed"))):
        request = asked(parameters)
        sampling = request.sampling
        assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.repetition_penalty) == (1, 1, None, 1)
        assert (sampling.stop, sampling.stop_tokens, sampling.seed, sampling.max_tokens) == ([], [], None, None)
        assert (request.n, request.tools, request.must_call, request.json_schema) == (1, [], None, None)
        assert sampling.logprobs is None and not request.parallel_tool_calls


def test_parameters_may_be_strings() -> None:
    sent = {"temperature": "0.5", "top_p": "0.9", "top_k": "7", "max_tokens": "8", "seed": "3", "n": "2"}
    more = {"repetition_penalty": "1.1", "presence_penalty": "0.5", "logprobs": "true", "top_logprobs": "2"}
    request = asked(sent | more)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_tokens) == (0.5, 0.9, 7, 8)
    assert (sampling.seed, request.n, sampling.logprobs) == (3, 2, 2)
    assert (sampling.repetition_penalty, sampling.presence_penalty) == (1.1, 0.5)


@pytest.mark.parametrize(
    ("stop", "texts", "tokens"),
    [
        ("a", ["a"], []),
        (["a", "b"], ["a", "b"], []),
        ([5, 7], [], [5, 7]),
        (5, [], [5]),
        ("", [], []),
        (["7"], ["7"], []),
    ],
)
def test_a_stop_is_a_text_or_the_id_of_a_token(stop: Any, texts: list[str], tokens: list[int]) -> None:
    sampling = asked({"stop": stop}).sampling
    assert (sampling.stop, sampling.stop_tokens) == (texts, tokens)


def test_no_top_k_is_all_tokens() -> None:
    assert asked({"top_k": 0}).sampling.top_k is None


TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("weather", "time")
]


@pytest.mark.parametrize(
    ("choice", "offered", "must"),
    [
        (None, ["weather", "time"], None),
        ("auto", ["weather", "time"], None),
        ("none", [], None),
        ("required", ["weather", "time"], ["weather", "time"]),
        ({"type": "function", "function": {"name": "time"}}, ["weather", "time"], ["time"]),
    ],
)
def test_a_tool_choice_says_which_tools_may_and_must_be_called(choice: Any, offered: list[str], must: Any) -> None:
    request = asked({"tools": TOOLS, "tool_choice": choice})
    assert ([tool.name for tool in request.tools], request.must_call) == (offered, must)


@pytest.mark.parametrize(
    ("form", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {}),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "array"}}}, {"type": "array"}),
    ],
)
def test_a_response_format_is_a_schema(form: dict[str, Any], schema: Any) -> None:
    assert asked({"response_format": form}).json_schema == schema


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ({"input": {}}, "input: must have messages or a prompt"),
        ({"input": {"messages": []}}, "input: must have messages or a prompt"),
        ({"input": {"prompt": ""}}, "input: must have messages or a prompt"),
        ({"input": {"messages": [{"role": "user"}]}}, "input.messages[0].content: must be a text"),
        ({"input": {"messages": [{"role": "user", "content": [{"image": "x"}]}]}}, "Only parts with a text"),
        ({"input": {"messages": [{"role": "robot", "content": "Hi"}]}}, "input.messages[0].role:"),
        ({"input": {"prompt": "\ud800"}}, "input: U+0000 and halves"),
        ({"parameters": {"tool_choice": "required"}}, "parameters.tool_choice: is required"),
        (
            {"parameters": {"tools": TOOLS, "tool_choice": {"function": {"name": "x"}}}},
            "parameters.tool_choice: names 'x'",
        ),
        ({"parameters": {"response_format": {"type": "json_schema"}}}, "parameters.response_format.json_schema:"),
        ({"parameters": {"temperature": 3}}, "parameters.temperature:"),
        ({"parameters": {"stop": ["a", 1]}}, "parameters.stop"),
        ({"parameters": {"stop": True}}, "parameters.stop: must be texts or ids of tokens."),
        ({"parameters": {"stop": [1, False]}}, "parameters.stop: must be texts or ids of tokens."),
        ({"parameters": {"n": 129}}, "parameters.n: "),
        ({"parameters": {"tools": [{"type": "web_search"}]}}, "Tools of type web_search are not offered"),
        ({"parameters": {"tools": [{"type": "function"}]}}, "parameters.tools[0].function: must say"),
        ({"parameters": {"tools": [{"function": {"name": ""}}]}}, "parameters.tools[0].function.name: must be 1 to 64"),
        ({"parameters": {"tools": [TOOLS[0], TOOLS[0]]}}, "parameters.tools[1].function.name: is used twice"),
        ({"parameters": {"seed": 2**63}}, "parameters.seed:"),
        ({"parameters": {"result_format": "json"}}, "parameters.result_format:"),
        ({"model": None}, "model:"),
    ],
)
def test_a_call_that_is_made_wrongly_names_the_field(api: Api, sent: dict[str, Any], told: str) -> None:
    body = json.dumps({"model": "toy", "input": {"prompt": "Hi"}} | sent)
    status, found = api.refused("POST", GENERATION, api.ada, content=body, headers={"content-type": "application/json"})
    assert (status, found["code"]) == (400, "InvalidParameter")
    assert found["message"].startswith(told), found["message"]


def test_null_is_absent_within_what_a_call_holds_too() -> None:
    call = {"id": None, "type": None, "function": {"name": "weather", "arguments": None}}
    request = asked(
        {"tools": [TOOLS[0] | {"type": None}], "response_format": {"type": None}},
        messages=[{"role": "assistant", "tool_calls": [call]}],
    )
    assert request.messages[0].tool_calls == [CalledTool(id="", name="weather", arguments="{}")]
    assert [tool.name for tool in request.tools] == ["weather"] and request.json_schema is None


def test_a_fault_below_the_edge_is_named_as_the_caller_wrote_it(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def complete(*_: object) -> None:
        raise InvalidParameter("stop", "900 is no token of this model's vocabulary.")

    monkeypatch.setattr(api.parts.services.inference, "complete", complete)
    body = {"model": "toy", "input": {"prompt": "Hi"}, "parameters": {"stop": 900}}
    _, found = api.refused("POST", GENERATION, api.ada, json=body)
    assert found["message"] == "parameters.stop: 900 is no token of this model's vocabulary."


# How an answer is written

FINISH = Finish(reason="stop", prompt_tokens=5, completion_tokens=2)

Model = Callable[..., list[CompletionRequest]]


@pytest.fixture
def model(api: Api, monkeypatch: pytest.MonkeyPatch) -> Model:
    """Answers with these parts; what was asked is in the list that is given back."""

    def answers(*said: TokenChunk | Finish | Delta | Exception) -> list[CompletionRequest]:
        requests: list[CompletionRequest] = []

        async def complete(who: Principal, request: CompletionRequest) -> AsyncGenerator[Delta, None]:
            requests.append(request)
            if isinstance(said[0], Exception):
                raise said[0]

            async def deltas() -> AsyncGenerator[Delta, None]:
                for part in said:
                    if isinstance(part, Exception):
                        raise part
                    yield part if isinstance(part, Delta) else Delta(0, part)

            return deltas()

        monkeypatch.setattr(api.parts.services.inference, "complete", complete)
        return requests

    return answers


def ask(api: Api, **parameters: Any) -> dict[str, Any]:
    sent = {"model": "toy", "input": {"prompt": "Hi"}, "parameters": parameters}
    return good(api, "POST", GENERATION.removeprefix(P), json=sent)


def frames(api: Api, *, header: dict[str, str] | None = None, **parameters: Any) -> list[dict[str, Any]]:
    sent = {"model": "toy", "input": {"prompt": "Hi"}, "parameters": parameters}
    answer = api.call("POST", GENERATION, api.ada, json=sent, headers=header or {"X-DashScope-SSE": "enable"})
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
    found = []
    for number, frame in enumerate(answer.text.removesuffix("\n\n").split("\n\n"), 1):
        first, event, status, data = frame.split("\n")
        assert (first, event, status) == (f"id:{number}", "event:result", ":HTTP_STATUS/200")
        assert data.startswith("data:{")
        found.append(json.loads(data.removeprefix("data:")))
    assert {frame["request_id"] for frame in found} == {answer.headers["x-request-id"]}
    return found


def test_an_answer_is_a_text_unless_a_message_is_asked_for(api: Api, model: Model) -> None:
    model(TokenChunk(text="a"), TokenChunk(text="b"), FINISH)
    answer = ask(api)
    assert answer["output"] == {"text": "ab", "finish_reason": "stop"}
    assert answer["usage"] == {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7}
    message = {"role": "assistant", "content": "ab"}
    assert ask(api, result_format="message")["output"] == {
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}]
    }


def test_the_stream_in_the_parameters_is_no_switch(api: Api, model: Model) -> None:
    model(TokenChunk(text="a"), FINISH)
    assert ask(api, stream=True)["output"]["text"] == "a"


def test_a_stream_has_all_of_the_answer_so_far(api: Api, model: Model) -> None:
    model(TokenChunk(text="a"), TokenChunk(text="b"), FINISH)
    found = frames(api)
    assert [frame["output"] for frame in found] == [
        {"text": "a", "finish_reason": "null"},
        {"text": "ab", "finish_reason": "null"},
        {"text": "ab", "finish_reason": "stop"},
    ]
    assert found[-1]["usage"]["total_tokens"] == 7


def test_a_stream_has_only_what_is_new_where_that_is_asked_for(api: Api, model: Model) -> None:
    model(TokenChunk(text="a"), TokenChunk(text="b"), FINISH)
    found = frames(api, incremental_output=True, result_format="message")
    contents = [frame["output"]["choices"][0]["message"]["content"] for frame in found]
    assert contents == ["a", "b", ""]
    assert [frame["output"]["choices"][0]["finish_reason"] for frame in found] == ["null", "null", "stop"]


def test_the_accept_header_switches_streaming_too(api: Api, model: Model) -> None:
    model(TokenChunk(text="a"), FINISH)
    assert len(frames(api, header={"accept": "text/event-stream"})) == 2


CALLS = [CalledTool(id=f"call_{n}", name="time", arguments="{}") for n in range(2)]


def test_calls_are_told_with_their_places_and_their_arguments_as_text(api: Api, model: Model) -> None:
    end = Finish(reason="tool_calls", prompt_tokens=5, completion_tokens=2)
    model(TokenChunk(tool_calls=CALLS[:1]), TokenChunk(tool_calls=CALLS[1:]), end)
    choice = ask(api, tools=TOOLS)["output"]["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", "")
    function = {"name": "time", "arguments": "{}"}
    assert choice["message"]["tool_calls"] == [
        {"index": n, "id": f"call_{n}", "type": "function", "function": function} for n in range(2)
    ]

    def places(**parameters: Any) -> list[list[int]]:
        messages = [frame["output"]["choices"][0]["message"] for frame in frames(api, tools=TOOLS, **parameters)]
        return [[call["index"] for call in message.get("tool_calls", [])] for message in messages]

    assert places() == [[0], [0, 1], [0, 1]]
    assert places(incremental_output=True) == [[0], [1], []]


def test_several_answers_are_choices_and_the_prompt_is_counted_once(api: Api, model: Model) -> None:
    model(
        Delta(1, TokenChunk(text="b")),
        Delta(0, TokenChunk(text="a")),
        Delta(1, FINISH),
        Delta(0, Finish(reason="length", prompt_tokens=5, completion_tokens=3)),
    )
    answer = ask(api, n=2)
    told = [(one["index"], one["message"]["content"], one["finish_reason"]) for one in answer["output"]["choices"]]
    assert told == [(0, "a", "length"), (1, "b", "stop")]
    assert answer["usage"] == {"input_tokens": 5, "output_tokens": 5, "total_tokens": 10}
    choices = [frame["output"]["choices"] for frame in frames(api, n=2, incremental_output=True)]
    assert [(one["index"], one["message"]["content"]) for (one,) in choices] == [(1, "b"), (0, "a"), (1, ""), (0, "")]


def test_logprobs_are_beside_the_message(api: Api, model: Model) -> None:
    other = Likelihood(token="b", logprob=-2.0, bytes=[98])
    model(
        TokenChunk(text="a", logprobs=[TokenLikelihood(token="a", logprob=-0.5, bytes=[97], likeliest=[other])]), FINISH
    )
    choice = ask(api, logprobs=True, top_logprobs=1)["output"]["choices"][0]
    assert choice["logprobs"] == {
        "content": [
            {
                "token": "a",
                "bytes": [97],
                "logprob": -0.5,
                "top_logprobs": [{"token": "b", "bytes": [98], "logprob": -2.0}],
            }
        ]
    }


# Errors

TABLE: list[tuple[errors.LuthierError, int, str]] = [
    (errors.InvalidParameter("temperature", "too high"), 400, "InvalidParameter"),
    (errors.ContextTooLong("too long"), 400, "InvalidParameter"),
    (errors.NotOffered("not here"), 400, "InvalidParameter"),
    (errors.PermissionDenied("no"), 403, "AccessDenied"),
    (errors.FileNotFound("no file"), 404, "NotFound"),
    (errors.ModelNotFound("no model"), 404, "Model.NotExist"),
    (errors.ModelNotDeployed("deploy it"), 404, "Model.NotExist"),
    (errors.InvalidTransition("ended"), 400, "UnsupportedOperation"),
    (errors.RateLimited("slowly", retry_after=2), 429, "Throttling.RateQuota"),
    (errors.QuotaExceeded("no more"), 429, "Throttling.AllocationQuota"),
    (errors.ReplicaUnavailable("loading", retry_after=2), 503, "ServiceUnavailable"),
    (errors.OutOfMemory("full"), 500, "InternalError"),
    (errors.InternalError("oh"), 500, "InternalError"),
]


@pytest.mark.parametrize(("error", "status", "code"), TABLE, ids=lambda it: type(it).__name__)
def test_an_error_has_its_status_and_code_before_and_inside_a_stream(
    api: Api, model: Model, error: errors.LuthierError, status: int, code: str
) -> None:
    sent = {"json": {"model": "toy", "input": {"prompt": "Hi"}}, "headers": {"X-DashScope-SSE": "enable"}}
    model(error)
    answer = api.call("POST", GENERATION, api.ada, **sent)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers.get("retry-after") == ("2" if error.retry_after else None)
    model(TokenChunk(text="a"), error)
    told = api.call("POST", GENERATION, api.ada, **sent)
    last = told.text.removesuffix("\n\n").split("\n\n")[-1].split("\n")
    assert last[:4] == ["id:2", "event:error", f":HTTP_STATUS/{status}", f"status:{status}"]
    assert json.loads(last[4].removeprefix("data:")) == {
        "code": code,
        "message": error.text,
        "request_id": told.headers["x-request-id"],
    }


def test_what_nobody_expected_ends_a_stream_without_its_secrets(api: Api, model: Model) -> None:
    model(TokenChunk(text="a"), RuntimeError("secret"))
    sent = {"json": {"model": "toy", "input": {"prompt": "Hi"}}, "headers": {"X-DashScope-SSE": "enable"}}
    told = api.call("POST", GENERATION, api.ada, **sent).text
    assert "status:500" in told and '"InternalError"' in told and "secret" not in told


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "NotFound"),
        ("GET", "/deployments/none", 404, "NotFound"),
        ("PATCH", "/deployments", 405, "MethodNotAllowed"),
        ("POST", "/services/aigc/text2image/image-synthesis", 404, "NotFound"),
        ("PATCH", "/files", 405, "MethodNotAllowed"),
        ("PUT", "/fine-tunes", 405, "MethodNotAllowed"),
        ("GET", "/fine-tunes/none", 404, "NotFound"),
        ("DELETE", "/files/none", 404, "NotFound"),
    ],
)
def test_a_path_or_method_that_there_is_not(api: Api, method: str, path: str, status: int, code: str) -> None:
    assert bad(api, method, path)[:2] == (status, code)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"text"', b'{"model": "\xff"}', b"[" * 100_000])
@pytest.mark.parametrize("path", ["/fine-tunes", GENERATION.removeprefix(P)])
def test_what_is_no_json_object_is_refused(api: Api, path: str, body: bytes) -> None:
    status, code, _ = bad(api, "POST", path, content=body, headers={"content-type": "application/json"})
    assert (status, code) == (400, "InvalidParameter")


def test_a_form_without_files_is_refused(api: Api) -> None:
    status, code, message = bad(api, "POST", "/files", data={"purpose": "fine-tune"})
    assert (status, code) == (400, "InvalidParameter") and message.startswith("files:")


def test_an_upload_that_is_too_large_is_refused(api: Api) -> None:
    sent = parts("rows.jsonl", content=b"x" * (UPLOAD_LIMIT + 1))
    assert bad(api, "POST", "/files", files=sent)[:2] == (413, "BadRequest.TooLarge")


# The document


def test_every_route_is_described_with_its_answers_and_its_errors(api: Api) -> None:
    ours = {path: found for path, found in api.app.openapi()["paths"].items() if path.startswith(f"{P}/")}
    ours.pop(f"{P}/chat/completions", None)
    for path, methods in ours.items():
        for method, described in methods.items():
            assert described["summary"], f"{method} {path}"
            answers = described["responses"]
            assert set(answers) == {"200", "4XX", "5XX"}, f"{method} {path}"
            fault = answers["4XX"]["content"]["application/json"]["schema"]
            assert fault["$ref"].endswith("/Fault"), f"{method} {path}"
            assert answers["200"]["content"], f"{method} {path}"
    schemas = api.app.openapi()["components"]["schemas"]
    assert schemas["CreateFineTune"]["examples"] and schemas["GenerationRequest"]["examples"]
    for example in schemas["CreateFineTune"]["examples"]:
        CreateFineTune.model_validate(example).to_request()
    for example in schemas["GenerationRequest"]["examples"]:
        GenerationRequest.model_validate(example).to_request()
