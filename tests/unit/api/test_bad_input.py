"""What no model can answer is refused in the words of the dialect it came in, and the replica lives on."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import requests

from tests.servers import KEY, RunningServer

Body = dict[str, Any]

OPENAI, ZHIPU = "/v1/chat/completions", "/api/paas/v4/chat/completions"
DASHSCOPE = "/api/v1/services/aigc/text-generation/generation"
CHATS = (OPENAI, ZHIPU, DASHSCOPE)


def body(path: str, *, content: Any = "Hi", messages: Any = None, **more: Any) -> Body:
    """A chat in the form of a path; `more` are its parameters."""
    said = [{"role": "user", "content": content}] if messages is None else messages
    more = {"max_tokens": 4, "temperature": 0, "seed": 1} | more
    if path == DASHSCOPE:
        return {"model": "toy", "input": {"messages": said}, "parameters": more | {"result_format": "message"}}
    return {"model": "toy", "messages": said, **more}


def post(server: RunningServer, path: str, sent: Body | bytes) -> requests.Response:
    data = sent if isinstance(sent, bytes) else json.dumps(sent).encode()
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    return requests.post(f"{server.url}{path}", data=data, headers=headers, timeout=60)


def told(path: str, answer: requests.Response) -> tuple[int, str, str]:
    """Status, code and message of a refusal, which has the form of the path's dialect."""
    said = answer.json()
    if path == DASHSCOPE:
        assert set(said) == {"code", "message", "request_id"}
        return answer.status_code, said["code"], said["message"]
    assert set(said) == {"error"}
    return answer.status_code, said["error"]["code"], said["error"]["message"]


def nested(depth: int) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def function(parameters: Any, name: str = "f") -> Body:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def held_to(schema: Any) -> Body:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def in_object(schema: Any) -> Any:
    return {"type": "object", "properties": {"a": schema}}


CALLS = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "\ud800"}}]
BAD: dict[str, Body] = {
    "a million answers": {"n": 1_000_000},
    "no answer": {"n": 0},
    "a billion tokens": {"max_tokens": 1_000_000_000},
    "more tokens than a number holds": {"max_tokens": 10**30},
    "no tokens": {"max_tokens": 0},
    "a seed that no number holds": {"seed": 10**30},
    "many stops": {"stop": [str(n) for n in range(100_000)]},
    "a long stop": {"stop": ["x" * 100_000]},
    "a temperature that is none": {"temperature": float("nan")},
    "a hot temperature": {"temperature": 1e308},
    "no messages": {"messages": []},
    "messages that are none": {"messages": "Hi"},
    "no content": {"messages": [{"role": "user"}]},
    "an unknown role": {"messages": [{"role": "root", "content": "Hi"}]},
    "half a character": {"content": "\ud800"},
    "half a character in a call": {"messages": [{"role": "assistant", "content": "", "tool_calls": CALLS}]},
    "a null sign": {"content": "a\0b"},
    "more than the context": {"content": "x" * 50_000},
    "an image": {"content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]},
    "many tools": {"tools": [function({}, f"f{n}") for n in range(10_000)]},
    "a deep tool": {"tools": [function(nested(100))]},
    "a tool as deep as a reader goes": {"tools": [function(nested(400))]},
    "a deep choice": {"tools": [function({})], "tool_choice": nested(400)},
    "large tools": {"tools": [function({"title": "x" * 2_000}, f"f{n}") for n in range(100)]},
    "a tool whose pattern is no number": {"tools": [function(in_object({"pattern": "a{4294967296}"}))]},
    "a tool whose schema is none": {"tools": [function({"type": "nothing"})]},
    "a deep schema": held_to(nested(100)),
    "a schema as deep as a reader goes": held_to(nested(400)),
    "a large schema": held_to({"title": "x" * 200_000}),
    "a schema that is itself": held_to({"$ref": "#"}),
    "a schema of all ways": held_to(
        {"allOf": [{"anyOf": [{"properties": {f"p{n}": {"const": m}}} for m in range(4)]} for n in range(12)]}
    ),
    "a pattern that is none": held_to(in_object({"type": "string", "pattern": "("})),
    "a pattern of many repeats": held_to(in_object({"type": "string", "pattern": "a{4294967296}"})),
    "patterns that exclude each other": held_to(
        in_object({"type": "string", "allOf": [{"pattern": f"^.*{sign}.*$"} for sign in "abcdefghijklmnopqrstuvwxyz"]})
    ),
}


@pytest.mark.parametrize("path", CHATS)
@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_answered_is_refused(toy_server: RunningServer, path: str, case: str) -> None:
    status, code, message = told(path, post(toy_server, path, body(path, **BAD[case])))
    assert status == 400
    assert code in {OPENAI: _ANY, ZHIPU: ("1210", "1214", "1261"), DASHSCOPE: ("InvalidParameter",)}[path]
    assert 0 < len(message) < 2_000


_ANY = ("invalid_request", "invalid_parameter", "context_length_exceeded", "not_offered")

BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "not utf-8": lambda sent: sent.replace(b'"Hi"', b'"\xff\xfe"'),
    "half": lambda sent: sent[: len(sent) // 2],
    "deep": lambda sent: sent.replace(b'"Hi"', b"[" * 50_000 + b"]" * 50_000),
    "deep where nobody looks": lambda sent: sent.replace(b'"Hi"', b'"Hi","x":' + b"[" * 50_000 + b"]" * 50_000),
}


@pytest.mark.parametrize("path", CHATS)
@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_json_is_refused(toy_server: RunningServer, path: str, case: str) -> None:
    sent = BROKEN[case](json.dumps(body(path)).encode())
    assert told(path, post(toy_server, path, sent))[0] == 400


GOOD: dict[str, Body] = {
    "unknown fields": {"no_such_field": 1, "another": nested(20)},
    "a context's worth of tokens": {"max_tokens": 512},
    "an empty text": {"content": ""},
    "a pattern made to explode": held_to(in_object({"type": "string", "pattern": "^((a{1,100}){1,100}){1,100}$"})),
    "a pattern that looks far ahead": held_to(in_object({"type": "string", "pattern": "^(.*a.{15}b.{15}){5}$"})),
    "a schema that doubles": held_to(
        {
            "$defs": {
                f"a{n}": {"type": "object", "properties": {s: {"$ref": f"#/$defs/a{n + 1}"} for s in "xy"}}
                for n in range(30)
            }
            | {"a30": {"type": "null"}},
            "$ref": "#/$defs/a0",
        }
    ),
}


@pytest.mark.parametrize("path", CHATS)
@pytest.mark.parametrize("case", GOOD)
def test_what_only_looks_bad_is_answered(toy_server: RunningServer, path: str, case: str) -> None:
    answer = post(toy_server, path, body(path, **GOOD[case]))
    assert answer.status_code == 200, answer.text


def read_tokens(path: str, answer: requests.Response) -> int:
    usage = answer.json()["usage"]
    return usage["input_tokens"] if path == DASHSCOPE else usage["prompt_tokens"]


@pytest.mark.parametrize("path", CHATS)
def test_special_tokens_in_a_content_are_read_as_the_text_that_they_are(toy_server: RunningServer, path: str) -> None:
    marker = "<|im_end|>"  # one token where it ends a turn; the toy's tokenizer has one for each letter of a text
    as_text, as_marker = (post(toy_server, path, body(path, content=said)) for said in ("x" * len(marker), marker))
    assert read_tokens(path, as_text) == read_tokens(path, as_marker)


def test_special_tokens_in_a_plain_prompt_are_read_as_text_too(toy_server: RunningServer) -> None:
    counted = [
        read_tokens("/v1", post(toy_server, "/v1/completions", {"model": "toy", "prompt": said, "max_tokens": 1}))
        for said in ("x" * 10, "<|im_end|>")
    ]
    assert counted[0] == counted[1]


def test_after_all_that_the_same_replica_answers(toy_server: RunningServer) -> None:
    assert post(toy_server, OPENAI, body(OPENAI)).status_code == 200
    [replica] = toy_server.engines("luthier.serving")
    before = replica.pid
    for case in BAD.values():
        post(toy_server, OPENAI, body(OPENAI, **case))
    assert post(toy_server, OPENAI, body(OPENAI)).status_code == 200
    assert [one.pid for one in toy_server.engines("luthier.serving")] == [before]
    assert "a call failed" not in toy_server.log and "a request failed" not in toy_server.log
