"""The command line before 1.25.20: documented everywhere, and always with exit code 0."""

from __future__ import annotations

import json
import re
from pathlib import Path

import dashscope


def test_files_are_uploaded_shown_listed_and_deleted(cli, base: str, data: Path) -> None:
    said = cli("files.upload", "-f", str(data / "rows.jsonl"), "-p", "fine_tune", "-d", "一个", "-u", base)
    uploaded = re.search(r"Upload success, file id: (file-\w+)", said)
    assert uploaded, said
    shown = json.loads(cli("files.get", "-i", uploaded[1]).removeprefix("file info:\n"))
    assert (shown["file_id"], shown["description"]) == (uploaded[1], "一个")
    listed = json.loads(cli("files.list", "-s", "1", "-p", "2").removeprefix("file list info:\n"))
    assert len(listed["files"]) == listed["page_size"] == 2 and listed["total"] >= 2
    assert "Delete success" in cli("files.delete", "-i", uploaded[1])
    assert "status_code: 404, code: NotFound" in cli("files.get", "-i", uploaded[1])


def test_a_job_is_shown_listed_and_its_log_is_printed_to_the_end(cli, trained) -> None:
    succeeded = f"Fine-tune task success, fine-tuned model : {trained.finetuned_output}"
    assert succeeded in cli("fine_tunes.get", "-j", trained.job_id)
    listed = cli("fine_tunes.list", "-s", "1", "-p", "100")
    assert f"job: {trained.job_id}, status: SUCCEEDED, base model: toy" in listed
    assert f"fine-tuned model: {trained.finetuned_output}" in listed
    printed = cli("fine_tunes.stream", "-j", trained.job_id)
    assert f"Fine-tune job: {trained.job_id} is SUCCEEDED" in printed
    lines = dashscope.FineTunes.logs(trained.job_id).output["logs"]
    assert printed.splitlines()[1:] == lines


def test_a_job_is_followed_cancelled_and_deleted(cli, pairs: str) -> None:
    made = dashscope.FineTunes.call("toy", pairs, mode="dpo_lora", hyper_parameters={"n_epochs": 100})
    job_id = made.output.job_id
    following = cli.start("fine_tunes.stream", "-j", job_id)
    assert "success" in cli("fine_tunes.cancel", "-j", job_id)
    assert "ancel" in cli.finished(following)
    assert "canceled" in cli("fine_tunes.get", "-j", job_id)
    assert "delete success" in cli("fine_tunes.delete", "-j", job_id)
    assert "status_code: 404, code: NotFound" in cli("fine_tunes.get", "-j", job_id)


def test_a_model_is_called(cli) -> None:
    """It cannot say how long an answer may be: here the prompt leaves little of the toy's 2,048 tokens, which are bytes."""
    asked = ["generation.call", "-m", "toy", "-p", "a" * 1950]
    whole = cli(*asked)
    assert '"finish_reason": "' in whole and '"total_tokens"' in whole, whole
    frames = cli(*asked, "-s").splitlines()[::2]
    assert '"finish_reason": "null"' in frames[0] and '"finish_reason": "null"' not in frames[-1]


def test_hyper_parameters_come_as_words(cli, rows: str) -> None:
    refused = cli("fine_tunes.call", "-m", "toy", "-t", rows, "--hyper_parameters", "learning_rate=1.6e-5", "n_epoch=2")
    assert "hyper_parameters.n_epoch: is not a field that is known here" in refused


def test_wrong_use_is_told(cli, rows: str) -> None:
    refusals = {
        "InvalidApiKey": ["-k", "wrong.key", "files.list"],
        "Model.NotExist": ["fine_tunes.call", "-m", "none", "-t", rows, "--mode", "efficient_sft"],
        "prompt_loss: must be 0": ["fine_tunes.call", "-m", "toy", "-t", rows, "-p", "0.5"],
        "status_code: 404": ["generation.call", "-m", "none", "-p", "abc"],
        "InvalidParameter": ["files.list", "-s", "0"],
    }
    for told, words in refusals.items():
        assert told in cli(*words), words
