"""Whatever is wrong with a request is said in OpenAI's envelope, with the field that is to blame."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from luthier.api import edge
from luthier.core import logs
from luthier.testing import jsonl, toy_rows
from tests.unit.api.conftest import UPLOAD_LIMIT, Api

CHAT = {"model": "toy", "messages": [{"role": "user", "content": "Hi"}]}
JOB = {"model": "toy", "training_file": "file-none"}
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Bearer nonsense", "Bearer a.b", "Basic dXNlcjpwYXNz", "nonsense", b"Bearer \xe9.\xff"],
)
def test_a_wrong_key_is_unauthenticated(api: Api, header: str | bytes) -> None:
    status, error = api.refused("GET", "/v1/models", None, headers={"authorization": header} if header else {})
    assert (status, error["code"], error["param"]) == (401, "invalid_api_key", None)


def test_a_key_may_come_in_any_case_of_its_scheme(api: Api) -> None:
    assert api.call("GET", "/v1/models", None, headers={"authorization": f"bearer  {api.ada} "}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", "/v1/files/", 404, "not_found"),
        ("POST", "/v1/embeddings", 400, "not_offered"),
        ("POST", "/v1/fine_tuning/alpha/graders/run", 400, "not_offered"),
        ("POST", "/v1/fine_tuning/alpha/graders/validate", 400, "not_offered"),
        ("PATCH", "/v1/files", 405, "method_not_supported"),
        ("PUT", "/v1/chat/completions", 405, "method_not_supported"),
        ("GET", "/v1/chat/completions", 404, "not_found"),
        ("GET", "/v1/responses", 404, "not_found"),
        ("GET", "/api/v1/chat/completions", 404, "not_found"),
        ("GET", "/api/v1/chat/completions/x", 404, "not_found"),
        ("GET", "/api/paas/v4/nothing", 404, "1222"),
        ("PATCH", "/api/paas/v4/files", 405, "1222"),
        ("POST", "/api/paas/v4/embeddings", 400, "1210"),
    ],
)
def test_a_path_or_method_that_there_is_not(api: Api, method: str, path: str, status: int, code: str) -> None:
    found, error = api.refused(method, path, api.ada)
    assert (found, error["code"]) == (status, code)


def test_outside_of_the_dialects_an_error_is_plain(api: Api) -> None:
    answer = api.call("GET", "/nothing", None)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


BODIES: list[tuple[bytes, str | None, str]] = [
    (b"", None, "required"),
    (b"{", None, "not JSON"),
    (b"{'model': 1}", None, "not JSON"),
    (b'{"model": "\xff"}', None, "UTF-8"),
    (b"[" * 100_000, None, "nested too deeply"),
    (b"null", None, ""),
    (b"[]", None, "dictionary"),
    (b'"text"', None, "dictionary"),
    (b"{}", "model", "training_file: Field required"),
    (b'{"model": 1, "training_file": "x"}', "model", "valid string"),
    (b'{"model": NaN, "training_file": "x"}', "model", "valid string"),
    (b'{"model": "toy", "training_file": ["x"]}', "training_file", "valid string"),
    (b'{"model": "\\ud800", "training_file": "x"}', "model", "not text"),
    (b'{"model": "toy", "training_file": "\\u0000"}', "training_file", "not text"),
    (b'{"model": "toy", "training_file": "x", "metadata": {"a": "\\udfff"}}', "metadata", "not text"),
    (b'{"model": "toy", "training_file": "x", "seed": 1.5}', "seed", "integer"),
]


@pytest.mark.parametrize(("body", "param", "said"), BODIES, ids=[str(n) for n in range(len(BODIES))])
def test_a_body_that_is_wrong_names_what_is_wrong(api: Api, body: bytes, param: str | None, said: str) -> None:
    status, error = api.refused("POST", "/v1/fine_tuning/jobs", api.ada, content=body, headers=JSON)
    assert (status, error["code"], error["param"]) == (400, "invalid_request", param)
    assert said in error["message"]


def test_a_body_under_another_content_type_is_told_how_to_be_sent(api: Api) -> None:
    for path in ("/v1/fine_tuning/jobs", "/v1/chat/completions", "/api/paas/v4/chat/completions"):
        sent = {"content": json.dumps(CHAT | JOB).encode(), "headers": {"content-type": "text/plain"}}
        status, error = api.refused("POST", path, api.ada, **sent)
        assert (status, error["param"]) == (400, None)
        assert "Send it with Content-Type: application/json." in error["message"]


def test_a_field_of_several_types_is_named_as_it_was_written_and_each_fault_is_told_once(api: Api) -> None:
    for asked, field in (
        ({"tool_choice": {"function": {}}}, "tool_choice.function.name"),
        ({"function_call": {}}, "function_call.name"),
        ({"prompt": [["a"]]}, "prompt[0][0]"),
    ):
        path = "/v1/completions" if "prompt" in asked else "/v1/chat/completions"
        _, error = api.refused("POST", path, api.ada, json=CHAT | asked)
        assert f"{field}: " in error["message"] and error["param"] in (*asked, "prompt[0]"), error
        for leaked in ("NamedTool", "FunctionName", "list[", "constrained", "nullable"):
            assert leaked not in error["message"], error["message"]
        for told in error["message"].removesuffix(".").split("; "):
            faults = told.partition(": ")[2].split(" or ")
            assert len(faults) == len(set(faults)), error["message"]


@pytest.mark.parametrize("value", [0, -1, 101, 1.5, "many", "AUTO", [], {}, True])
def test_a_wrong_hyper_parameter_is_named_however_it_is_wrong(api: Api, value: Any) -> None:
    status, error = api.refused(
        "POST", "/v1/fine_tuning/jobs", api.ada, json=JOB | {"hyperparameters": {"n_epochs": value}}
    )
    if value is True:  # JSON's true is no number, but Python's is
        assert status in (400, 404)
        return
    assert (status, error["param"]) == (400, "hyperparameters.n_epochs")


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"hyperparameters": {"learning_rate": 1e-4}}, "hyperparameters.learning_rate"),
        (
            {"method": {"type": "supervised", "supervised": {"hyperparameters": {"lora_rank": 4}}}},
            "method.supervised.hyperparameters.lora_rank",
        ),
    ],
)
def test_an_unknown_hyper_parameter_is_refused_by_its_name(api: Api, asked: dict[str, Any], param: str) -> None:
    status, error = api.refused("POST", "/v1/fine_tuning/jobs", api.ada, json=JOB | asked)
    assert (status, error["param"]) == (400, param)
    assert param in error["message"]


@pytest.mark.parametrize(
    ("asked", "status", "code", "param"),
    [
        ({}, 404, "file_not_found", "training_file"),
        ({"model": "gpt-4o"}, 404, "model_not_found", "model"),
        ({"suffix": "two words"}, 400, "invalid_parameter", "suffix"),
        ({"seed": -1}, 400, "invalid_parameter", "seed"),
        ({"method": {"type": "reinforcement"}}, 400, "not_offered", "method.type"),
        ({"integrations": [{"type": "wandb"}]}, 400, "not_offered", "integrations"),
        ({"tuning": "magic"}, 400, "invalid_parameter", "tuning"),
        ({"tuning_options": {"rnk": 8}}, 400, "invalid_parameter", "tuning_options.rnk"),
        ({"tuning": "lora", "tuning_options": {"rank": 0}}, 400, "invalid_parameter", "tuning_options.rank"),
        ({"method": {"type": "magic"}}, 400, "invalid_parameter", "method.type"),
        ({"metadata": {"a": "x" * 513}}, 400, "invalid_parameter", "metadata"),
        ({"metadata": dict.fromkeys(map(str, range(17)), "")}, 400, "invalid_parameter", "metadata"),
    ],
)
def test_a_job_that_cannot_be_is_refused(api: Api, asked: dict[str, Any], status: int, code: str, param: str) -> None:
    before = api.call("GET", "/v1/fine_tuning/jobs", api.ada).json()["data"]
    found, error = api.refused("POST", "/v1/fine_tuning/jobs", api.ada, json=JOB | asked)
    assert (found, error["code"], error["param"]) == (status, code, param)
    assert api.call("GET", "/v1/fine_tuning/jobs", api.ada).json()["data"] == before


def test_a_file_that_is_broken_or_too_short_is_told_with_its_lines(api: Api) -> None:
    for content, said in (
        (jsonl(toy_rows(12)) + b"{\n", "line 13, column 1, row 13: "),
        (jsonl(toy_rows(9)), "at least 10"),
    ):
        file = api.upload(api.ada, content)
        read = api.until(f"/v1/files/{file}", api.ada, "processed", "error")
        assert read["status"] == ("error" if "line" in said else "processed")
        status, error = api.refused("POST", "/v1/fine_tuning/jobs", api.ada, json=JOB | {"training_file": file})
        assert (status, error["code"], error["param"]) == (400, "invalid_training_file", "training_file")
        assert said in error["message"]
        assert read["status_details"] is None or read["status_details"] in error["message"]
        assert api.call("DELETE", f"/v1/files/{file}", api.ada).json()["deleted"] is True


def test_null_is_absent_and_unknown_fields_are_passed_over(api: Api) -> None:
    file = api.bobs["file_id"]
    absent = ("validation_file", "suffix", "seed", "metadata", "method", "hyperparameters", "integrations")
    bare = {"model": "toy", "training_file": file}
    jobs = [
        bare,
        bare | dict.fromkeys(absent),
        bare | {"hyperparameters": {"n_epochs": None, "batch_size": "auto"}, "a_field_of_tomorrow": [1]},
    ]
    made = [api.call("POST", "/v1/fine_tuning/jobs", api.bob, json=job).json() for job in jobs]
    assert [job["object"] for job in made] == ["fine_tuning.job"] * 3
    assert len({json.dumps(job["hyperparameters"]) for job in made}) == 1
    for job in made:
        api.call("POST", f"/v1/fine_tuning/jobs/{job['id']}/cancel", api.bob)
        api.until(f"/v1/fine_tuning/jobs/{job['id']}", api.bob, "cancelled", "succeeded")


def test_null_is_absent_in_a_chat_too(api: Api) -> None:
    names = (
        "stream",
        "stream_options",
        "temperature",
        "top_p",
        "max_tokens",
        "max_completion_tokens",
        "stop",
        "seed",
        "n",
    )
    more = ("frequency_penalty", "presence_penalty", "tools", "functions", "response_format", "logprobs", "logit_bias")
    body = CHAT | {"model": "nothing"} | dict.fromkeys((*names, *more)) | {"a_field_of_tomorrow": {}}
    status, error = api.refused("POST", "/v1/chat/completions", api.ada, json=body)
    assert (status, error["code"]) == (404, "model_not_found")  # all the rest was taken


def test_null_is_absent_within_what_a_chat_holds_too(api: Api) -> None:
    function = {"name": "f"}
    call = {"id": "1", "type": None, "function": {"name": "f", "arguments": "{}"}}
    within = {
        "messages": [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "1", "content": ""}],
        "tools": [{"type": None, "function": function}],
        "tool_choice": {"type": None, "function": function},
        "response_format": {"type": None},
        "stream_options": {"include_usage": None},
    }
    for path, code in (("/v1/chat/completions", "model_not_found"), ("/api/paas/v4/chat/completions", "1211")):
        status, error = api.refused("POST", path, api.ada, json={"model": "nothing"} | within)
        assert (status, error["code"]) == (404, code), error  # all the rest was taken


@pytest.mark.parametrize(
    "asked",
    [
        {"modalities": ["text", "audio"]},
        {"audio": {"voice": "alloy"}},
        {"web_search_options": {}},
    ],
    ids=lambda asked: next(iter(asked)),
)
def test_what_is_not_offered_is_refused_rather_than_ignored(api: Api, asked: dict[str, Any]) -> None:
    status, error = api.refused("POST", "/v1/chat/completions", api.ada, json=CHAT | asked)
    assert (status, error["code"], error["param"]) == (400, "not_offered", next(iter(asked)))


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "nobody", "content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "Hi"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "function", "name": "f", "content": "Hi"}]}, "messages[0].name"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "messages[0].tool_calls[0].function"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0]"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "custom"}]}, "tools[0].type"),
        ({"tools": [{"function": {"name": "two words"}}]}, "tools[0].function.name"),
        ({"tools": [{"function": {"name": "f"}}, {"function": {"name": "f"}}]}, "tools[1].function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice.function.name"),
        ({"functions": [{"name": "f"}], "tools": [{"function": {"name": "f"}}]}, "functions"),
        ({"functions": [{"name": "f"}], "function_call": {"name": "g"}}, "function_call.function.name"),
        ({"seed": 2**63}, "seed"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"text": "Hi"}]}]}, "messages[0].content"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"presence_penalty": -3}, "presence_penalty"),
        ({"stream": "perhaps"}, "stream"),
    ],
)
def test_a_wrong_field_of_a_chat_is_named(api: Api, asked: dict[str, Any], param: str) -> None:
    status, error = api.refused("POST", "/v1/chat/completions", api.ada, json=CHAT | asked)
    assert status == 400
    assert error["param"] == param


@pytest.mark.parametrize(
    ("query", "param"),
    [("limit=0", "limit"), ("limit=x", "limit"), ("order=up", "order"), ("limit=-5&order=up", "limit")],
)
def test_a_wrong_query_is_named(api: Api, query: str, param: str) -> None:
    status, error = api.refused("GET", f"/v1/files?{query}", api.ada)
    assert (status, error["param"]) == (400, param)


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        ({"data": {"purpose": "fine-tune"}}, "file"),
        ({"files": {"file": ("x", b"{}")}}, "purpose"),
        ({"files": {"file": ("x", b"{}")}, "data": {"purpose": "vision"}}, "purpose"),
        ({"data": {"purpose": "fine-tune", "file": "a text"}}, "file"),
        ({"json": {"purpose": "fine-tune"}}, "file"),
    ],
)
def test_an_upload_that_lacks_something_says_what(api: Api, sent: dict[str, Any], param: str) -> None:
    status, error = api.refused("POST", "/v1/files", api.ada, **sent)
    assert (status, error["param"]) == (400, param)


def test_a_multipart_body_that_is_none_is_refused(api: Api) -> None:
    headers = {"content-type": "multipart/form-data; boundary=x"}
    status, _ = api.refused("POST", "/v1/files", api.ada, content=b"nonsense", headers=headers)
    assert status == 400


def pieces(size: int) -> Iterator[bytes]:
    """A body whose length nobody states beforehand."""
    for _ in range(size // 1000 + 1):
        yield b" " * 1000


@pytest.mark.parametrize("is_stated", [True, False])
@pytest.mark.parametrize("kind", ["json", "form"])
def test_a_body_that_is_too_large_is_refused(api: Api, monkeypatch, kind: str, is_stated: bool) -> None:
    monkeypatch.setattr(edge, "JSON_LIMIT_BYTES", 50_000)
    limit, path, content_type = {
        "json": (50_000, "/v1/fine_tuning/jobs", "application/json"),
        "form": (UPLOAD_LIMIT, "/v1/files", "multipart/form-data; boundary=x"),
    }[kind]
    content = b" " * (limit + 1) if is_stated else pieces(limit)
    status, error = api.refused("POST", path, api.ada, content=content, headers={"content-type": content_type})
    assert (status, error["code"]) == (413, "request_too_large")
    assert f"{limit:,} bytes" in error["message"]


def test_a_fault_of_ours_is_told_with_an_id_that_the_log_has_and_without_its_cause(
    api: Api, monkeypatch, capsys
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a secret detail")

    monkeypatch.setattr(api.parts.services.jobs, "list", fail)
    logs.configure("error")
    answer = api.call("GET", "/v1/fine_tuning/jobs", api.ada)
    logs.configure("critical")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    told = capsys.readouterr().err
    assert answer.headers["x-request-id"] in told
    assert "a secret detail" in told
    assert api.ada not in told


def test_every_answer_has_an_id_of_its_own(api: Api) -> None:
    answers = [api.call("GET", path, api.ada) for path in ("/v1/models", "/v1/models", "/v1/nothing", "/healthz", "/")]
    assert len({answer.headers["x-request-id"] for answer in answers}) == 5


def test_a_job_that_has_ended_cannot_be_cancelled_and_the_client_is_not_asked_to_try_again(api: Api) -> None:
    status, error = api.refused("POST", f"/v1/fine_tuning/jobs/{api.bobs['job_id']}/cancel", api.bob)
    assert (status, error["code"]) == (400, "invalid_transition")


def test_a_base_model_cannot_be_deleted(api: Api) -> None:
    status, error = api.refused("DELETE", "/v1/models/toy", api.ada)
    assert (status, error["param"]) == (400, "model")
