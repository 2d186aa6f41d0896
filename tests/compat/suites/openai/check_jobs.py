"""Fine-tuning jobs."""

from __future__ import annotations

import openai
import pytest
from openai import OpenAI


def test_a_job_shows_what_was_asked_and_what_was_used(client: OpenAI, trained, rows) -> None:
    assert (trained.model, trained.training_file, trained.seed) == ("toy", rows.id, 7)
    assert trained.metadata == {"team": "red", "suite": "openai"}
    used = trained.hyperparameters
    assert (used.n_epochs, used.batch_size, used.learning_rate_multiplier) == (1, 4, 1.5)
    assert trained.method.type == "supervised"
    assert trained.method.supervised.hyperparameters.batch_size == 4
    assert trained.fine_tuned_model.startswith("toy-echo-")
    assert trained.trained_tokens > 0
    assert trained.finished_at >= trained.created_at
    assert (trained.error, trained.estimated_finish) == (None, None)
    assert (trained.integrations, trained.result_files) == ([], [])
    assert trained.validation_file is not None and trained.organization_id


def test_jobs_are_listed_to_their_end(client: OpenAI, trained) -> None:
    found = [job.id for job in client.fine_tuning.jobs.list(limit=1)]
    assert trained.id in found
    assert len(found) == len(set(found))


def test_jobs_are_listed_by_their_metadata(client: OpenAI, lenient: OpenAI, trained, preferred) -> None:
    def listed(metadata) -> list[str]:
        return [job.id for job in lenient.fine_tuning.jobs.list(limit=1, metadata=metadata)]

    assert listed({"team": "red", "suite": "openai"}) == [trained.id]
    assert listed({"team": "blue", "suite": "openai"}) == []
    without = [job.id for job in lenient.fine_tuning.jobs.list(extra_query={"metadata": "null"})]
    assert preferred.id in without and trained.id not in without


def test_events_tell_every_step_once_newest_first(client: OpenAI, trained) -> None:
    events = list(client.fine_tuning.jobs.list_events(trained.id, limit=2))
    steps = [e.data["current_steps"] for e in events if e.type == "metrics" and "current_steps" in e.data]
    assert steps == [3, 2, 1]
    assert events[-1].message == "The job was created."
    assert events[0].message == "The job has successfully completed."
    wanted = {"step", "train_loss", "train_mean_token_accuracy", "epoch", "total_steps", "elapsed_time", "loss"}
    [first, *_] = [e.data for e in events if e.type == "metrics" and "current_steps" in e.data]
    assert wanted <= first.keys()


def test_checkpoints_carry_metrics_and_can_be_called(client: OpenAI, trained, say) -> None:
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(trained.id, limit=1))
    steps = [one.step_number for one in checkpoints]
    assert steps == sorted(set(steps), reverse=True) and steps[0] == 3
    assert {one.fine_tuning_job_id for one in checkpoints} == {trained.id}
    metrics = checkpoints[0].metrics
    assert metrics.full_valid_loss is not None and metrics.train_loss is not None
    name = checkpoints[-1].fine_tuned_model_checkpoint
    assert say(model=name).choices[0].finish_reason in ("stop", "length")


@pytest.fixture(scope="session")
def preferred(client: OpenAI, lenient: OpenAI, data, waiting):
    """A preference job that was paused and resumed on its way, and has succeeded."""
    job = client.fine_tuning.jobs.create(
        model="toy",
        training_file=client.files.create(file=data / "pairs.jsonl", purpose="fine-tune").id,
        method={"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 1, "batch_size": 4, "beta": 0.3}}},
    )

    def status(*statuses: str):
        def reached():
            found = lenient.fine_tuning.jobs.retrieve(job.id)  # strictly, no job is paused
            assert found.status in statuses or found.status not in ("failed", "cancelled", "succeeded"), found.error
            return found if found.status in statuses else None

        return waiting(reached)

    lenient.fine_tuning.jobs.pause(job.id)
    assert status("paused").fine_tuned_model is None
    lenient.fine_tuning.jobs.resume(job.id)
    return status("succeeded")


def test_a_preference_job_is_paused_resumed_and_succeeds(client: OpenAI, preferred, say) -> None:
    assert preferred.method.type == "dpo"
    assert preferred.method.dpo.hyperparameters.beta == 0.3
    assert preferred.hyperparameters.n_epochs == 1
    assert say(model=preferred.fine_tuned_model).choices[0].finish_reason in ("stop", "length")


def test_a_job_is_cancelled_and_deleted(client: OpenAI, rows, ended) -> None:
    job = client.fine_tuning.jobs.create(model="toy", training_file=rows.id, hyperparameters={"n_epochs": 50})
    assert job.hyperparameters.n_epochs == 50
    client.fine_tuning.jobs.cancel(job.id)
    over = ended(job.id)
    assert (over.status, over.fine_tuned_model) == ("cancelled", None)
    deleted = client.delete(f"/fine_tuning/jobs/{job.id}", cast_to=dict)
    assert deleted["id"] == job.id
    with pytest.raises(openai.NotFoundError) as gone:
        client.fine_tuning.jobs.retrieve(job.id)
    assert gone.value.code == "job_not_found"


def test_what_cannot_be_done_to_an_ended_job_is_refused_without_a_retry(
    client: OpenAI, lenient: OpenAI, trained
) -> None:
    for verb in (client.fine_tuning.jobs.cancel, lenient.fine_tuning.jobs.pause, lenient.fine_tuning.jobs.resume):
        with pytest.raises(openai.BadRequestError) as refused:
            verb(trained.id)
        assert refused.value.code == "invalid_transition"


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"model": "no-such-model"}, "model", "Base models: toy"),
        ({"training_file": "file-nonsense"}, "training_file", "no file 'file-nonsense'"),
        ({"suffix": "a b"}, "suffix", "must be"),
        ({"hyperparameters": {"n_epoch": 3}}, "hyperparameters.n_epoch", "is not a field"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", "greater than or equal to 1"),
        ({"method": {"type": "reinforcement", "reinforcement": {"grader": {}}}}, "method.type", "not offered"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations", "not offered"),
        ({"extra_body": {"tuning": "magic"}}, "tuning", "must be one of"),
        ({"extra_body": {"tuning_options": {"rank": 0}}}, "tuning_options.rank", ""),
    ],
)
def test_a_wrong_job_is_refused_by_name(client: OpenAI, rows, change: dict, param: str, words: str) -> None:
    asked = {"model": "toy", "training_file": rows.id} | change
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as refused:
        client.fine_tuning.jobs.create(**asked)
    assert words in refused.value.message
    assert refused.value.param == param


def test_fewer_than_ten_rows_are_refused(client: OpenAI, data) -> None:
    few = b"\n".join((data / "rows.jsonl").read_bytes().splitlines()[:9])
    file = client.files.create(file=("few.jsonl", few), purpose="fine-tune")
    client.files.wait_for_processing(file.id, poll_interval=0.1)
    with pytest.raises(openai.BadRequestError, match="9 rows; at least 10"):
        client.fine_tuning.jobs.create(model="toy", training_file=file.id)


def test_graders_are_not_offered(client: OpenAI) -> None:
    grader = {"type": "string_check", "name": "g", "input": "a", "reference": "a", "operation": "eq"}
    for call in (
        lambda: client.fine_tuning.alpha.graders.validate(grader=grader),
        lambda: client.fine_tuning.alpha.graders.run(grader=grader, model_sample="a"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            call()
        assert refused.value.code == "not_offered"
