"""Files, jobs and the models they make."""

from __future__ import annotations

import pytest
from zhipuai import ZhipuAI
from zhipuai.core import APIRequestFailedError, APIStatusError


def test_a_file_is_uploaded_listed_given_back_and_deleted(client: ZhipuAI, data) -> None:
    content = (data / "rows.jsonl").read_bytes()
    file = client.files.create(file=("数据.jsonl", content), purpose="fine-tune")
    assert (file.filename, file.bytes, file.purpose) == ("数据.jsonl", len(content), "fine-tune")
    found = client.files.list(purpose="fine-tune", limit=100)
    assert file.id in [one.id for one in found.data]
    assert client.files.content(file.id).content == content
    deleted = client.files.delete(file.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (file.id, True, "file")
    assert file.id not in [one.id for one in client.files.list(purpose="fine-tune", limit=100).data]


def test_files_are_listed_to_their_end(client: ZhipuAI, data) -> None:
    content = (data / "rows.jsonl").read_bytes()
    made = [client.files.create(file=(f"{n}.jsonl", content), purpose="fine-tune").id for n in range(3)]
    found: list[str] = []
    more = {}
    while True:
        page = client.files.list(purpose="fine-tune", limit=2, **more)
        found += [file.id for file in page.data]
        if not page.has_more:
            break
        more = {"after": page.data[-1].id}
    assert len(found) == len(set(found))
    assert [one for one in found if one in made] == made[::-1]


def test_a_job_shows_what_became_of_it(client: ZhipuAI, trained, rows) -> None:
    assert (trained.model, trained.training_file, trained.request_id) == ("toy", rows.id, "mine-1")
    assert trained.fine_tuned_model.startswith("toy-zhi-")
    assert trained.hyperparameters.n_epochs == 1
    assert trained.trained_tokens > 0
    assert (trained.error, trained.result_files) == (None, [])
    assert client.fine_tuning.jobs.retrieve(trained.id).finished_at == trained.finished_at


def test_jobs_are_listed_to_their_end(client: ZhipuAI, trained) -> None:
    found: list[str] = []
    more = {}
    while True:
        page = client.fine_tuning.jobs.list(limit=1, **more)
        found += [job.id for job in page.data]
        if not page.has_more:
            break
        more = {"after": found[-1]}
    assert trained.id in found and len(found) == len(set(found))


def test_events_tell_every_step_newest_first(client: ZhipuAI, trained) -> None:
    events = client.fine_tuning.jobs.list_events(trained.id, limit=100).data
    steps = [event.data.current_steps for event in events if event.type == "metrics" and event.data.current_steps]
    assert steps == sorted(steps, reverse=True) and steps[-1] == 1
    [last, *_] = [event.data for event in events if event.type == "metrics" and event.data.current_steps]
    assert last.total_steps == steps[0]
    assert last.loss is not None and last.elapsed_time and last.remaining_time == "0:00:00"
    [newest] = client.fine_tuning.jobs.list_events(trained.id, limit=1).data
    assert newest.id == events[0].id
    [second] = client.fine_tuning.jobs.list_events(trained.id, limit=1, after=newest.id).data
    assert second.id == events[1].id


def test_a_job_is_cancelled_and_deleted(client: ZhipuAI, rows, ended) -> None:
    job = client.fine_tuning.jobs.create(model="toy", training_file=rows.id, hyperparameters={"n_epochs": 50})
    client.fine_tuning.jobs.cancel(job.id)
    assert ended(job.id).status == "cancelled"
    deleted = client.fine_tuning.jobs.delete(job.id)
    assert (deleted.id, deleted.status) == (job.id, "cancelled")
    with pytest.raises(APIStatusError) as gone:
        client.fine_tuning.jobs.retrieve(job.id)
    assert gone.value.status_code == 404


def test_what_is_learned_follows_from_the_rows(client: ZhipuAI, data, waiting, ended) -> None:
    """Pairs are preferences, though this client has no word for it."""
    file = client.files.create(file=(data / "pairs.jsonl").open("rb"), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="toy", training_file=file.id)
    method = waiting(lambda: client.get(f"/fine_tuning/jobs/{job.id}", cast_type=object))["method"]
    client.fine_tuning.jobs.cancel(job.id)
    assert method["type"] == "dpo"
    assert ended(job.id).status == "cancelled"


def test_an_ended_job_cannot_be_cancelled(client: ZhipuAI, trained) -> None:
    with pytest.raises(APIRequestFailedError, match="nothing to cancel"):
        client.fine_tuning.jobs.cancel(trained.id)


def test_the_tuned_model_answers_and_is_deleted(client: ZhipuAI, trained) -> None:
    name = trained.fine_tuned_model
    messages = [{"role": "user", "content": "ab"}]
    assert client.chat.completions.create(model=name, messages=messages, max_tokens=4).model == name
    done = client.fine_tuning.models.delete(name)
    assert (done.model_name, done.delete_status) == (name, "deleted")
    assert done.request_id
    with pytest.raises(APIStatusError) as gone:
        client.chat.completions.create(model=name, messages=messages)
    assert gone.value.status_code == 404 and "1211" in str(gone.value)


def test_a_wrong_hyper_parameter_is_named(client: ZhipuAI, rows) -> None:
    with pytest.raises(APIRequestFailedError, match=r"hyperparameters\.n_epochs"):
        client.fine_tuning.jobs.create(model="toy", training_file=rows.id, hyperparameters={"n_epochs": 0})
