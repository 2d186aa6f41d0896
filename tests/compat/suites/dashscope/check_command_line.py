"""The command line of 2.x, in its own spelling and in the dotted one of before where it still takes it.

Where it prints `Invalid response for job` the fault is the client's, whatever the server answers: it looks for a dictionary
where its own API gives an object.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import dashscope
import pytest


def test_files_are_uploaded_shown_listed_and_deleted(cli, base: str, data: Path) -> None:
    said = cli("files.upload", "-f", str(data / "rows.jsonl"), "-p", "fine_tune", "-d", "of before", "-u", base)
    uploaded = re.search(r"file id: (file-\w+)", said)
    assert uploaded, said
    shown = json.loads(cli("files", "get", uploaded[1]))
    assert (shown["file_id"], shown["description"]) == (uploaded[1], "of before")
    listed = json.loads(cli("files", "list", "-p", "1", "-s", "2"))
    assert len(listed["files"]) == listed["page_size"] == 2 and listed["total"] >= 2
    assert "Delete success" in cli("files.delete", uploaded[1])


def test_a_job_is_shown_and_listed(cli, trained) -> None:
    succeeded = f"Fine-tune task success, fine-tuned model: {trained.finetuned_output}"
    for spelling in (["ft", "get"], ["fine_tunes.get"]):
        assert succeeded in cli(*spelling, trained.job_id)
    listed = cli("ft", "list", "-s", "100")
    assert f"job: {trained.job_id}, status: SUCCEEDED, base model: toy" in listed
    assert f"fine-tuned model: {trained.finetuned_output}" in listed
    assert trained.job_id in cli("fine_tunes.stream", trained.job_id)


def test_a_job_is_cancelled_and_deleted(cli, pairs: str) -> None:
    made = dashscope.FineTunes.call("toy", pairs, mode="dpo_lora", hyper_parameters={"n_epochs": 100})
    job_id = made.output.job_id
    assert f"Cancel fine-tune job: {job_id} success!" in cli("ft", "cancel", job_id)
    assert [event.status_code for event in dashscope.FineTunes.stream_events(job_id)][-1] == 200, "until it has ended"
    assert f"fine_tune job: {job_id} delete success" in cli("ft", "delete", job_id)


def test_models_are_listed_and_shown(cli, trained) -> None:
    assert json.loads(cli("models", "get", "toy"))["model"] == "toy"
    listed = json.loads(cli("models", "list", "-p", "1", "-s", "100"))
    assert trained.finetuned_output in [model["model"] for model in listed["models"]]


def test_a_model_is_called(cli) -> None:
    asked = ["-m", "toy", "-p", "abc", "--temperature", "0", "--max-tokens", "8"]
    frames = [json.loads(line) for line in cli("generation.call", *asked, "-s").splitlines()]
    assert len(frames) > 2 and frames[-1]["usage"]["output_tokens"] == 8
    messages = json.dumps([{"role": "system", "content": "Say it back."}])
    more = ["--messages", messages, "--result-format", "message", "--n", "2", "--seed", "7", "--top-p", "0.9"]
    penalties = ["--repetition-penalty", "1.1", "--presence-penalty", "0.5", "--top-k", "50", "--stop", "x,y"]
    told = json.loads(cli("generation", "create", "-m", "toy", "-p", "abc", "--max-tokens", "4", *more, *penalties))
    assert [choice["index"] for choice in told["output"]["choices"]] == [0, 1]


def test_wrong_use_has_its_exit_code(cli, rows: str) -> None:
    """401 and 403 end with 2, 400 with 3, what else is wrong with 1; creating and calling end with 1 whatever is wrong."""
    assert "InvalidApiKey" in cli("-k", "wrong.key", "files", "list", exits=2)
    assert "InvalidParameter" in cli("files", "list", "-p", "0", exits=3)
    assert "NotFound" in cli("ft", "get", "ftjob-none", exits=1)
    assert "prompt_loss: must be 0" in cli("ft", "create", "-m", "toy", "-t", rows, "-p", "0.5", exits=1)
    assert "Model.NotExist" in cli("generation", "create", "-m", "none", "-p", "abc", exits=1)


EXITS = [
    ("invalid", 400, 3),
    ("too-long", 400, 3),
    ("conflict", 400, 3),
    ("denied", 403, 2),
    ("absent", 404, 1),
    ("too-large", 413, 3),  # by its code, BadRequest.TooLarge
    ("limited", 429, 4),
    ("fault", 500, 1),
    ("unavailable", 503, 1),
]


@pytest.mark.parametrize(("name", "status", "code"), EXITS)
def test_an_error_has_the_exit_code_of_its_kind(faulty_cli, name: str, status: int, code: int) -> None:
    said = faulty_cli("models", "get", f"fail-{name}", exits=code)
    assert f"status_code: {status}, " in said and "request_id: req-" in said


@pytest.mark.parametrize("name", ["denied", "invalid", "limited", "fault"])
def test_calling_a_model_ends_with_1_whatever_is_wrong(faulty_cli, name: str) -> None:
    for more in ([], ["-s"]):
        assert "Failed" in faulty_cli("generation", "create", "-m", f"fail-{name}", "-p", "abc", *more, exits=1)


def test_the_key_is_who_somebody_is(cli) -> None:
    assert cli("auth", "whoami").strip()
    assert "Invalid API key" in cli("-k", "wrong.key", "auth", "whoami", exits=2)
