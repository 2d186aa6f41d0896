"""The documented calls without a client of their own: host and key changed, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import requests

GENERATION = "/services/aigc/text-generation/generation"


@pytest.fixture
def curl(base: str, key: str):
    def send(method: str, path: str, *, status: int = 200, headers: dict[str, str] | None = None, **sent: Any):
        answer = requests.request(
            method, base + path, headers={"Authorization": f"Bearer {key}"} | (headers or {}), timeout=180, **sent
        )
        assert answer.status_code == status, answer.text
        return answer

    return send


def test_files_are_uploaded_and_a_refused_one_is_listed_apart(curl, data: Path) -> None:
    rows = (data / "rows.jsonl").read_bytes()
    told = curl(
        "POST",
        "/files",
        files=[("files", ("a.jsonl", rows)), ("files", ("b.txt", rows)), ("files", ("c.jsonl", rows))],
        data=[
            ("descriptions", "first"),
            ("descriptions", "second"),
            ("descriptions", "third"),
            ("purpose", "fine-tune"),
        ],
    ).json()
    assert [file["name"] for file in told["data"]["uploaded_files"]] == ["a.jsonl", "c.jsonl"]
    assert [file["name"] for file in told["data"]["failed_uploads"]] == ["b.txt"]
    last = told["data"]["uploaded_files"][-1]["file_id"]
    assert curl("GET", f"/files/{last}").json()["data"]["description"] == "third"
    assert curl("DELETE", f"/files/{last}").json()["request_id"]


def test_a_job_is_created_shown_read_cancelled_and_deleted(curl, rows: str) -> None:
    sent = {
        "model": "toy",
        "training_file_ids": [rows],
        "hyper_parameters": {"n_epochs": "100", "max_length": 64, "split": 0.9, "max_split_val_dataset_sample": 1},
        "training_type": "efficient_sft",
        "finetuned_output_suffix": "curl",
        "nobody_knows": {"this": None},
    }
    made = curl("POST", "/fine-tunes", json=sent).json()
    job_id = made["output"]["job_id"]
    assert made["output"]["status"] in ("PENDING", "RUNNING") and "code" not in made
    assert curl("GET", f"/fine-tunes/{job_id}").json()["output"]["hyper_parameters"]["max_length"] == 64
    logs = curl("GET", f"/fine-tunes/{job_id}/logs?offset=0&line=1000").json()["output"]
    assert logs["total"] == len(logs["logs"]) >= 2
    assert curl("POST", f"/fine-tunes/{job_id}/cancel").json()["output"] == {"status": "success"}
    curl("GET", f"/fine-tunes/{job_id}/stream")  # which ends when the job has
    assert curl("GET", f"/fine-tunes/{job_id}").json()["output"]["status"] == "CANCELED"
    assert curl("DELETE", f"/fine-tunes/{job_id}").json()["output"] == {"status": "success"}
    curl("GET", f"/fine-tunes/{job_id}", status=404)


def test_a_checkpoint_is_called_by_its_name(curl, trained) -> None:
    checkpoints = curl("GET", f"/fine-tunes/{trained.job_id}/checkpoints").json()["output"]
    assert checkpoints[0]["checkpoint_id"] == f"{trained.job_id}:checkpoint-{checkpoints[0]['step']}"
    said = curl("POST", GENERATION, json=chat(checkpoints[0]["model_name"])).json()
    assert said["output"]["choices"][0]["message"]["role"] == "assistant"


def chat(model: str) -> dict[str, Any]:
    return {
        "model": model,
        "input": {"messages": [{"role": "user", "content": "abc"}]},
        "parameters": {"result_format": "message", "max_tokens": 4, "seed": None},
    }


def test_an_answer_is_streamed_frame_by_frame(curl) -> None:
    told = curl("POST", GENERATION, json=chat("toy"), headers={"X-DashScope-SSE": "enable"})
    assert told.headers["content-type"].startswith("text/event-stream")
    frames = told.content.decode().removesuffix("\n\n").split("\n\n")
    for number, frame in enumerate(frames, 1):
        assert frame.startswith(f"id:{number}\nevent:result\n:HTTP_STATUS/200\ndata:{{")


@pytest.mark.parametrize(
    ("method", "path", "sent", "status", "code"),
    [
        ("GET", "/nothing", {}, 404, "NotFound"),
        ("GET", "/deployments/none", {}, 404, "NotFound"),
        ("PUT", "/files", {}, 405, "MethodNotAllowed"),
        ("POST", "/fine-tunes", {"data": b"{"}, 400, "InvalidParameter"),
        ("POST", "/fine-tunes", {"data": b'{"model": "\xff"}'}, 400, "InvalidParameter"),
        ("POST", GENERATION, {"json": []}, 400, "InvalidParameter"),
        ("POST", "/files", {"data": {"purpose": "fine-tune"}}, 400, "InvalidParameter"),
    ],
)
def test_what_is_wrong_is_said_flat(curl, method: str, path: str, sent: dict, status: int, code: str) -> None:
    headers = {} if isinstance(sent.get("data"), dict) else {"content-type": "application/json"}
    told = curl(method, path, status=status, headers=headers, **sent).json()
    assert set(told) == {"code", "message", "request_id"}
    assert (told["code"], bool(told["message"]), told["request_id"][:4]) == (code, True, "req-")


def test_no_key_is_said_flat_too(base: str) -> None:
    told = requests.get(f"{base}/files", timeout=60)
    assert (told.status_code, told.json()["code"]) == (401, "InvalidApiKey")
