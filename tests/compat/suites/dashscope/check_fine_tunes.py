"""dashscope.FineTunes."""

from __future__ import annotations

import json

import dashscope
import pytest

FineTunes = dashscope.FineTunes


def test_a_job_shows_what_was_asked_for_and_what_came_of_it(trained, rows: str, validation: str) -> None:
    assert trained.job_id.startswith("ftjob-") and trained.job_name
    assert (trained.model, trained.base_model, trained.training_type) == ("toy", "toy", "efficient_sft")
    assert (trained.training_file_ids, trained.validation_file_ids) == ([rows], [validation])
    numbers = trained.hyper_parameters
    assert (numbers["n_epochs"], numbers["batch_size"], numbers["lora_rank"]) == (1, 4, 4)
    assert numbers["learning_rate"] == 0.0016
    assert trained.finetuned_output.startswith("toy-tone-")
    assert trained.end_time >= trained.create_time and trained.usage > 0
    assert all((trained.user_identity, trained.creator, trained.modifier, trained.group))


def test_waiting_for_a_job_ends_with_it(trained) -> None:
    assert FineTunes.wait(trained.job_id).output.status == "SUCCEEDED"


def test_jobs_are_listed_to_the_end(trained, all_pages) -> None:
    def page_of(page: int) -> tuple[list[str], int]:
        listed = FineTunes.list(page_no=page, page_size=1)
        assert listed.status_code == 200
        return [job.job_id for job in listed.output.jobs], listed.output.total

    assert trained.job_id in all_pages(page_of)


def test_the_log_is_read_as_the_client_reads_it(trained) -> None:
    whole = FineTunes.logs(trained.job_id, offset=0).output
    assert whole["total"] == len(whole["logs"]) > 3
    assert FineTunes.logs(trained.job_id).output["logs"] == whole["logs"][1:], "the client leaves out line 0"
    first = FineTunes.logs(trained.job_id, offset=0, line=2).output["logs"]
    rest = FineTunes.logs(trained.job_id, offset=2).output["logs"]
    assert first + rest == whole["logs"]
    assert FineTunes.logs(trained.job_id, offset=10_000).output == {"total": 0, "logs": []}


def test_events_come_as_json_objects_and_end_with_the_job(trained) -> None:
    events = list(FineTunes.stream_events(trained.job_id))
    assert {event.status_code for event in events} == {200}
    told = [json.loads(event.output) for event in events]
    assert all(one["job_id"] == trained.job_id and one["message"] for one in told)
    assert {"message", "metrics"} == {one["type"] for one in told}
    assert "completed" in told[-1]["message"]


def test_a_job_is_followed_cancelled_and_deleted(pairs: str, waiting) -> None:
    """Of preferences: the other objective is taken with its own number."""
    made = FineTunes.call("toy", [pairs], mode="dpo_lora", hyper_parameters={"n_epochs": 100, "beta": "0.2"})
    assert made.status_code == 200, made
    job_id = made.output.job_id
    assert FineTunes.get(job_id).status_code == 200, "right after it was made"
    events = FineTunes.stream_events(job_id)
    assert next(events).status_code == 200
    cancelled = FineTunes.cancel(job_id)
    assert (cancelled.status_code, cancelled.output.status) == (200, "success")
    assert all(event.status_code == 200 for event in events), "the stream ends when the job has"
    job = FineTunes.get(job_id).output
    assert (job.status, job.training_type, job.hyper_parameters["beta"]) == ("CANCELED", "dpo_lora", 0.2)
    assert job.validation_file_ids == []
    deleted = FineTunes.delete(job_id)
    assert (deleted.status_code, deleted.output.status) == (200, "success")
    assert FineTunes.get(job_id).status_code == 404


def test_cancelling_what_has_ended_is_a_conflict(trained) -> None:
    refused = FineTunes.cancel(trained.job_id)
    assert (refused.status_code, refused.code) == (400, "UnsupportedOperation")
    assert "succeeded already" in refused.message


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ({"n_epoch": 1}, "hyper_parameters.n_epoch: is not a field that is known here"),
        ({"n_epochs": "many"}, "hyper_parameters.n_epochs:"),
        ({"prompt_loss": 0.5}, "hyper_parameters.prompt_loss: must be 0"),
        ({"lr_scheduler_type": "polynomial"}, "hyper_parameters.lr_scheduler_type: must be one of"),
    ],
)
def test_a_number_that_is_wrong_is_named(rows: str, numbers: dict[str, object], told: str) -> None:
    refused = FineTunes.call("toy", rows, mode="efficient_sft", hyper_parameters=numbers)
    assert (refused.status_code, refused.code) == (400, "InvalidParameter")
    assert told in refused.message


def test_a_job_or_a_file_or_a_model_that_there_is_not(rows: str) -> None:
    for found in (FineTunes.get("ftjob-none"), FineTunes.cancel("ftjob-none"), FineTunes.delete("ftjob-none")):
        assert (found.status_code, found.code) == (404, "NotFound")
    (event,) = FineTunes.stream_events("ftjob-none")
    assert (event.status_code, event.code) == (404, "NotFound")
    assert FineTunes.call("toy", "file-none", mode="efficient_sft").code == "NotFound"
    assert FineTunes.call("none", rows, mode="efficient_sft").code == "Model.NotExist"
