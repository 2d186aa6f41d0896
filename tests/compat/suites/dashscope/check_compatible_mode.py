"""dashscope.aigc.chat_completion: OpenAI's form by the module API, below an address of its own.

Neither generation sends `stream`, so it is sent by `extra_body`; the deltas of a chunk are read as they came. Their streams end
with a fault of their own, whatever the server: they take `data: [DONE]`, which is no JSON, for a chunk. There is no asynchronous
form: what the module calls AioGeneration asks for an address of the native API that nobody has.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from typing import Any

import dashscope
import pytest
from dashscope.aigc.chat_completion import Completions

GREEDY: dict[str, Any] = {"model": "toy", "messages": [{"role": "user", "content": "abc"}], "temperature": 0.0}
SHORT = {"max_tokens": 8}  # not as an argument: the older generation sends it under the name of its number


@pytest.fixture
def address(url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the module is pointed at."""
    address = f"{url}/compatible-mode/v1"
    point(address, monkeypatch)
    return address


def point(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashscope, "base_compatible_api_url", address, raising=False)  # 1.x has none of its own


def streamed(**asked: Any) -> list[Any]:
    """All chunks before the end that the client cannot read."""
    chunks: list[Any] = []
    with suppress(AttributeError):
        for chunk in Completions.create(**asked, stream=True):
            chunks.append(chunk)
    return chunks


def test_an_answer_is_whole(address: str) -> None:
    answer = Completions.create(**GREEDY, extra_body=SHORT)
    assert (answer.status_code, answer.object, answer.model) == (200, "chat.completion", "toy")
    assert answer.id.startswith("chatcmpl-") and answer.created > 0 and answer.system_fingerprint
    (choice,) = answer.choices
    assert (choice.index, choice.finish_reason, choice.message.role) == (0, "length", "assistant")
    assert choice.message.content and choice.message.tool_calls is None
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8


def test_a_fine_tuned_model_answers(address: str, trained) -> None:
    answer = Completions.create(**GREEDY | {"model": trained.finetuned_output}, extra_body=SHORT)
    assert (answer.status_code, answer.model) == (200, trained.finetuned_output)
    assert answer.choices[0].message.content is not None


def test_what_may_be_asked_for_is_taken(address: str) -> None:
    asked = GREEDY | {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "repetition_penalty": 1.1, "stop": ["zz"]}
    answer = Completions.create(**asked, extra_body=SHORT | {"n": 2, "seed": 7, "logprobs": True})
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert all(choice.logprobs.content[0]["logprob"] <= 0 for choice in answer.choices)


def test_a_stream_adds_up_to_the_answer(address: str) -> None:
    whole = Completions.create(**GREEDY, extra_body=SHORT).choices[0].message.content
    more = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = streamed(**GREEDY, extra_body=SHORT | more)
    assert {(chunk.status_code, chunk.object) for chunk in chunks} == {(200, "chat.completion.chunk")}
    assert len({chunk.id for chunk in chunks}) == 1
    assert "".join(chunk.choices[0].delta.get("content", "") for chunk in chunks) == whole
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert not last.choices and last.usage.completion_tokens == 8


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("invalid", 400, "invalid_parameter"),
        ("denied", 403, "permission_denied"),
        ("absent", 404, "model_not_found"),
        ("limited", 429, "rate_limit_exceeded"),
        ("crash", 500, "internal_error"),
        ("unavailable", 503, "replica_unavailable"),
    ],
)
def test_an_error_is_an_answer_with_its_status(
    faulty_url: str, monkeypatch: pytest.MonkeyPatch, name: str, status: int, code: str
) -> None:
    point(f"{faulty_url}/compatible-mode/v1", monkeypatch)
    told = Completions.create(**GREEDY | {"model": f"fail-{name}"})
    assert (told.status_code, told.choices, told.error["code"]) == (status, None, code)
    assert told.error["message"]
    (told,) = Completions.create(**GREEDY | {"model": f"fail-{name}"}, stream=True, extra_body={"stream": True})
    assert (told.status_code, told.error["code"]) == (status, code)


def test_a_wrong_key_is_no_key(address: str) -> None:
    told = Completions.create(**GREEDY, api_key="wrong.key")
    assert (told.status_code, told.error["code"]) == (401, "invalid_api_key")


@pytest.mark.skipif(not hasattr(dashscope, "Client"), reason="1.x does not read it")
def test_the_address_may_come_from_the_environment(address: str, key: str) -> None:
    program = (
        "from dashscope.aigc.chat_completion import Completions\n"
        f"print(Completions.create(**{GREEDY!r}, extra_body={SHORT!r}).choices[0].finish_reason)"
    )
    told = {"DASHSCOPE_COMPATIBLE_BASE_URL": address, "DASHSCOPE_API_KEY": key}
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG")}
    done = subprocess.run([sys.executable, "-c", program], env=kept | told, capture_output=True, text=True, timeout=180)
    assert done.stdout.strip() == "length", done.stderr
