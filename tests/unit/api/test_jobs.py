"""What a job's request means in each of the two dialects, and how a job is shown."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from luthier.api.openai.wire.jobs import CreateJob as OpenAIJob
from luthier.api.shapes.wire.jobs import FineTuningJob
from luthier.api.zhipu.wire.jobs import CreateJob as ZhipuJob
from luthier.control.jobs.lifecycle import TERMINAL, Status
from luthier.control.jobs.values import Error, Job, JobRequest
from luthier.core.errors import InvalidParameter
from luthier.training.spec import PluginChoice
from tests.unit.api.conftest import Api

ASKED = {"model": "toy", "training_file": "file-1"}


def openai(**more: Any) -> JobRequest:
    return OpenAIJob.model_validate(ASKED | more).to_request()


def zhipu(**more: Any) -> JobRequest:
    return ZhipuJob.model_validate(ASKED | more).to_request()


def supervised(**numbers: Any) -> dict[str, Any]:
    return {"type": "supervised", "supervised": {"hyperparameters": numbers}}


def test_the_dialects_differ_where_nothing_is_said() -> None:
    assert openai() == JobRequest(base_model="toy", training_files=["file-1"], least_rows=10)
    assert zhipu() == JobRequest(base_model="toy", training_files=["file-1"], least_rows=1, objective=None)


def test_a_named_method_says_the_objective_in_both() -> None:
    assert openai(method={"type": "dpo"}).objective == zhipu(method={"type": "dpo"}).objective
    assert zhipu(method=supervised()).objective == PluginChoice(name="sft")


@pytest.mark.parametrize("ask", [openai, zhipu])
@pytest.mark.parametrize("place", ["method", "hyperparameters"])
def test_numbers_are_taken_from_both_places_and_auto_is_left_to_us(ask, place: str) -> None:
    numbers = {"n_epochs": 3, "batch_size": "auto", "learning_rate_multiplier": 0.5}
    request = ask(**{place: supervised(**numbers) if place == "method" else numbers})
    assert (request.epochs, request.batch_size, request.learning_rate_multiplier) == (3, None, 0.5)


@pytest.mark.parametrize("ask", [openai, zhipu])
def test_a_number_that_the_method_does_not_say_is_taken_from_the_older_place(ask) -> None:
    both = ask(method=supervised(n_epochs=3), hyperparameters={"n_epochs": 5, "batch_size": 4})
    assert (both.epochs, both.batch_size) == (3, 4)


@pytest.mark.parametrize("ask", [openai, zhipu])
@pytest.mark.parametrize(
    ("chosen", "other", "name"), [("supervised", "dpo", "beta"), ("dpo", "supervised", "n_epochs")]
)
def test_numbers_of_a_method_that_is_not_chosen_are_refused_by_name(ask, chosen: str, other: str, name: str) -> None:
    assert ask(method={"type": chosen, other: {"hyperparameters": {name: None}}}).epochs is None
    with pytest.raises(InvalidParameter) as refused:
        ask(method={"type": chosen, other: {"hyperparameters": {name: 1}}})
    assert refused.value.param == f"method.{other}.hyperparameters.{name}"


def test_dpo_takes_a_beta() -> None:
    def asked(**numbers: Any) -> PluginChoice | None:
        return openai(method={"type": "dpo", "dpo": {"hyperparameters": numbers}}).objective

    assert asked(beta=0.3) == PluginChoice(name="dpo", options={"beta": 0.3})
    assert asked(beta="auto") == PluginChoice(name="dpo")


@pytest.mark.parametrize("ask", [openai, zhipu])
def test_everything_else_is_passed_on(ask) -> None:
    request = ask(
        validation_file="file-2",
        suffix="tone",
        seed=7,
        metadata={"team": "red"},
        max_length=128,
        overlength="truncate",
        tuning="qlora",
        tuning_options={"rank": 4},
    )
    assert request.validation_files == ["file-2"]
    assert (request.suffix, request.seed, request.metadata) == ("tone", 7, {"team": "red"})
    assert (request.max_length, request.overlength) == (128, "truncate")
    assert request.method == PluginChoice(name="qlora", options={"rank": 4})


def job(**more: Any) -> Job:
    request = more.pop("request", openai())
    fields: dict[str, Any] = {
        "id": "ftjob-1",
        "project": "proj-1",
        "status": Status.RUNNING,
        "request": request,
        "spec": None,
        "model_name": "toy-tone-1234",
        "trained_tokens": 99,
        "seconds_left": 60.0,
        "error": None,
        "created_at": datetime(2030, 1, 1, tzinfo=UTC),
        "started_at": None,
        "finished_at": None,
    }
    return Job(**fields | more)


@pytest.mark.parametrize("status", list(Status))
def test_a_job_names_its_model_once_it_has_succeeded_and_an_end_while_it_goes_on(status: Status) -> None:
    shown = FineTuningJob.of(job(status=status))
    assert (shown.fine_tuned_model, shown.trained_tokens) == (
        ("toy-tone-1234", 99) if status is Status.SUCCEEDED else (None, None)
    )
    assert (shown.estimated_finish is None) == (status in TERMINAL)


def test_a_job_shows_its_method_as_it_was_asked_for() -> None:
    request = openai(method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.3, "n_epochs": 2}}})
    shown = FineTuningJob.of(job(request=request))
    numbers = {"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": "auto"}
    assert shown.hyperparameters == numbers
    assert shown.method == {"type": "dpo", "dpo": {"hyperparameters": numbers | {"beta": 0.3}}}
    assert FineTuningJob.of(job(request=zhipu())).method["type"] == "supervised"


def test_a_job_without_a_fault_has_a_null_and_one_with_it_an_object() -> None:
    assert FineTuningJob.of(job()).error is None
    failed = FineTuningJob.of(job(status=Status.FAILED, error=Error(code="run_lost", message="It is lost.")))
    assert failed.error is not None and failed.error.model_dump() == {
        "code": "run_lost",
        "message": "It is lost.",
        "param": None,
    }


def test_a_job_shows_what_its_request_was_called() -> None:
    assert FineTuningJob.of(job(request=zhipu(request_id="mine-1"))).request_id == "mine-1"


@pytest.mark.parametrize(
    ("query", "asked"),
    [
        ("", (None, False)),
        ("metadata[team]=red&metadata[of what]=语", ({"team": "red", "of what": "语"}, False)),
        ("metadata=null", (None, True)),
        ("metadata=", (None, True)),
    ],
)
def test_lists_are_asked_for_by_metadata(api: Api, monkeypatch: pytest.MonkeyPatch, query: str, asked: tuple) -> None:
    found: list[tuple] = []

    async def remembered(who, page, *, metadata, without_metadata):
        found.append((metadata, without_metadata))
        return await listed(who, page)

    listed = api.parts.services.jobs.list
    monkeypatch.setattr(api.parts.services.jobs, "list", remembered)
    for prefix in ("/v1", "/api/paas/v4"):
        assert api.call("GET", f"{prefix}/fine_tuning/jobs?{query}", api.bob).json()["data"]
    assert found == [asked, asked]


def test_nonsense_for_metadata_is_refused(api: Api) -> None:
    status, error = api.refused("GET", "/v1/fine_tuning/jobs?metadata=red", api.ada)
    assert (status, error["param"]) == (400, "metadata")


def test_a_file_and_a_job_of_one_dialect_are_those_of_the_other(api: Api) -> None:
    sent = {"files": {"file": ("rows.jsonl", b"{}\n")}, "data": {"purpose": "fine_tune"}}
    file = api.call("POST", "/api/paas/v4/files", api.bob, **sent).json()
    assert file["purpose"] == "fine-tune"
    assert api.call("GET", f"/v1/files/{file['id']}", api.bob).json()["filename"] == "rows.jsonl"
    assert file["id"] in api.call("GET", "/v1/files?purpose=fine_tune", api.bob).text
    job = api.call("GET", f"/api/paas/v4/fine_tuning/jobs/{api.bobs['job_id']}", api.bob).json()
    assert job == api.call("GET", f"/v1/fine_tuning/jobs/{api.bobs['job_id']}", api.bob).json()


def test_a_model_is_deleted_in_zhipus_words(api: Api) -> None:
    sent = {"model": "toy", "training_file": api.bobs["file_id"]}
    job = api.call("POST", "/v1/fine_tuning/jobs", api.bob, json=sent).json()["id"]
    name = api.until(f"/v1/fine_tuning/jobs/{job}", api.bob, "succeeded")["fine_tuned_model"]
    answer = api.call("DELETE", f"/api/paas/v4/fine_tuning/fine_tuned_models/{name}", api.bob)
    assert answer.json() == {
        "request_id": answer.headers["x-request-id"],
        "model_name": name,
        "delete_status": "deleted",
    }
    assert api.call("GET", f"/api/paas/v4/models/{name}", api.bob).status_code == 404
