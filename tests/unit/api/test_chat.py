"""What a chat's request means, and every rule of its answer, whole and as a stream, in both dialects."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from luthier.api.zhipu.wire.async_completions import result
from luthier.control.inference.asynchronous import AsyncCompletion, Failure
from luthier.control.inference.service import CompletionRequest, Delta
from luthier.core.errors import LuthierError, ReplicaUnavailable
from luthier.serving.protocol import (
    CalledTool,
    Finish,
    Likelihood,
    OfferedTool,
    Sampling,
    TokenChunk,
    TokenLikelihood,
    Turn,
)
from tests.unit.api.conftest import Api

OPENAI, ZHIPU, ALIAS = "/v1/chat/completions", "/api/paas/v4/chat/completions", "/api/v1/chat/completions"
USER = [{"role": "user", "content": "Hi"}]
DONE = Finish(reason="stop", prompt_tokens=3, completion_tokens=2)
CALLED = Finish(reason="tool_calls", prompt_tokens=3, completion_tokens=2)
USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 2,
    "total_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0},
}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
TIME = {"type": "function", "function": {"name": "time", "description": "Tell the time."}}
CALLS = [CalledTool(id=f"call_{n}", name=name, arguments="{}") for n, name in enumerate(("weather", "time"))]


class Model:
    """Answers with what it is told to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.parts: list[Delta | LuthierError] = [Delta(0, TokenChunk(text="Hel")), Delta(0, TokenChunk(text="lo"))]
        self.parts.append(Delta(0, DONE))
        self.asked: list[CompletionRequest] = []

    async def complete(
        self, who: object, request: CompletionRequest, *, in_background: bool = False
    ) -> AsyncGenerator[Delta, None]:
        self.asked.append(request)

        async def deltas() -> AsyncGenerator[Delta, None]:
            for part in self.parts:
                if isinstance(part, LuthierError):
                    raise part
                yield part

        return deltas()

    def says(self, *parts: TokenChunk | Finish | LuthierError) -> None:
        self.parts = [part if isinstance(part, LuthierError) else Delta(0, part) for part in parts]


@pytest.fixture
def model(api: Api, monkeypatch: pytest.MonkeyPatch) -> Model:
    model = Model()
    monkeypatch.setattr(api.parts.services.inference, "complete", model.complete)
    return model


Ask = Callable[..., CompletionRequest]


@pytest.fixture
def meant(api: Api, model: Model) -> Ask:
    """What a request means below the edge."""

    def ask(path: str = OPENAI, **body: Any) -> CompletionRequest:
        answer = api.call("POST", path, api.ada, json={"model": "toy", "messages": USER} | body)
        assert answer.status_code == 200, answer.text
        return model.asked[-1]

    return ask


def whole(api: Api, path: str = OPENAI, **body: Any) -> dict[str, Any]:
    answer = api.call("POST", path, api.ada, json={"model": "toy", "messages": USER} | body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(api: Api, path: str = OPENAI, **body: Any) -> list[str]:
    answer = api.call("POST", path, api.ada, json={"model": "toy", "messages": USER, "stream": True} | body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("\n\n")
    return answer.text.removesuffix("\n\n").split("\n\n")


def stream(api: Api, path: str = OPENAI, **body: Any) -> list[dict[str, Any]]:
    *frames, last = events(api, path, **body)
    assert last == "data: [DONE]"
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


# What is asked for


@pytest.mark.parametrize("path", [OPENAI, ZHIPU, ALIAS])
def test_a_bare_request_means_the_models_own_distribution(meant: Ask, path: str) -> None:
    assert meant(path) == CompletionRequest(
        model="toy",
        messages=[Turn(role="user", content="Hi")],
        sampling=Sampling(temperature=1.0, top_p=1.0),
        is_whole=True,
    )


@pytest.mark.parametrize("path", [OPENAI, ZHIPU])
def test_every_number_is_passed_on(meant: Ask, path: str) -> None:
    request = meant(
        path,
        temperature=0.5,
        top_p=0.9,
        seed=7,
        max_tokens=5,
        stop="a",
        frequency_penalty=1,
        presence_penalty=-1,
        logit_bias={"65": -100, "66": 100},
        logprobs=True,
        top_logprobs=3,
        n=2,
    )
    assert request.n == 2
    assert request.sampling == Sampling(
        temperature=0.5,
        top_p=0.9,
        seed=7,
        max_tokens=5,
        stop=["a"],
        frequency_penalty=1.0,
        presence_penalty=-1.0,
        logit_bias={65: -100.0, 66: 100.0},
        logprobs=3,
    )


@pytest.mark.parametrize("path", [OPENAI, ZHIPU])
def test_what_vllm_takes_beside_openais_fields_is_taken(meant: Ask, path: str) -> None:
    request = meant(path, min_p=0.05, top_k=40, repetition_penalty=1.1, stop_token_ids=[7, 9])
    assert request.sampling == Sampling(min_p=0.05, top_k=40, repetition_penalty=1.1, stop_tokens=[7, 9])


@pytest.mark.parametrize("top_k", [0, -1, None])
def test_a_top_k_below_one_is_all_tokens(meant: Ask, top_k: int | None) -> None:
    assert meant(top_k=top_k).sampling.top_k is None


@pytest.mark.parametrize(
    ("asked", "schema", "regex"),
    [
        ({"structured_outputs": {"regex": "a|b"}}, None, "a|b"),
        ({"guided_regex": "a|b"}, None, "a|b"),
        ({"structured_outputs": {"json": {"type": "array"}}}, {"type": "array"}, None),
        ({"structured_outputs": {"json": '{"type": "array"}'}}, {"type": "array"}, None),
        ({"structured_outputs": {"json_object": True}}, {}, None),
        ({"structured_outputs": {"json_object": False}}, None, None),
        ({"structured_outputs": None, "response_format": {"type": "text"}}, None, None),
    ],
)
def test_the_form_of_an_answer_may_be_told_as_vllm_does(
    meant: Ask, asked: dict[str, Any], schema: Any, regex: Any
) -> None:
    request = meant(**asked)
    assert (request.json_schema, request.regex) == (schema, regex)


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a"}, "guided_regex": "b"}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}, "structured_outputs"),
        ({"structured_outputs": {"grammar": "root ::= x"}}, "structured_outputs"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "structured_outputs"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": "[]"}}, "structured_outputs.json"),
        ({"min_p": 1.5}, "min_p"),
        ({"top_k": -2}, "top_k"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
    ],
)
def test_what_vllm_takes_is_refused_by_its_name(api: Api, model: Model, asked: dict[str, Any], param: str) -> None:
    answer = api.call("POST", OPENAI, api.ada, json={"model": "toy", "messages": USER} | asked)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("path", [OPENAI, ZHIPU])
def test_tokens_that_were_cached_are_told(api: Api, model: Model, path: str) -> None:
    """Of a prompt that is counted once, those that no answer had to read."""
    finishes = [Finish(reason="stop", prompt_tokens=9, completion_tokens=2, cached_tokens=cached) for cached in (8, 4)]
    model.parts = [Delta(choice, finish) for choice, finish in enumerate(finishes)]
    used = whole(api, path, n=2)["usage"]
    assert (used["prompt_tokens"], used["prompt_tokens_details"]) == (9, {"cached_tokens": 4})
    last = stream(api, path, n=2, stream_options={"include_usage": True})[-1]
    assert last["usage"] == used


def test_the_newer_name_of_a_field_wins(meant: Ask) -> None:
    assert meant(max_tokens=5, max_completion_tokens=6).sampling.max_tokens == 6


def test_logprobs_without_the_likeliest_are_asked_for_as_none_of_them(meant: Ask) -> None:
    assert meant(logprobs=True).sampling.logprobs == 0
    assert meant(logprobs=False).sampling.logprobs is None


def test_do_sample_false_is_greedy_in_zhipus_dialect_and_nothing_in_openais(meant: Ask) -> None:
    asked = {"do_sample": False, "temperature": 0.01, "top_p": 0.5}
    assert meant(ZHIPU, **asked).sampling == Sampling(temperature=0.0, top_p=1.0)
    assert meant(OPENAI, **asked).sampling == Sampling(temperature=0.01, top_p=0.5)


def test_what_zhipus_clients_always_send_is_taken(meant: Ask) -> None:
    sent = {"response_format": None, "thinking": None, "tool_stream": True, "user_id": "u", "meta": None, "extra": None}
    assert meant(ZHIPU, **sent) == meant(ZHIPU)


@pytest.mark.parametrize(
    ("form", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {}),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array"}}}, {"type": "array"}),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": {"type": "array"}}},
            {"type": "array"},
        ),
    ],
)
def test_a_response_format_is_a_schema(meant: Ask, form: dict[str, Any], schema: object) -> None:
    assert meant(response_format=form).json_schema == schema


@pytest.mark.parametrize(
    ("choice", "offered", "must_call"),
    [
        (None, ["weather", "time"], None),
        ("auto", ["weather", "time"], None),
        ("none", [], None),
        ("required", ["weather", "time"], ["weather", "time"]),
        ({"type": "function", "function": {"name": "time"}}, ["weather", "time"], ["time"]),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [TIME]}},
            ["time"],
            None,
        ),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [TIME]}},
            ["time"],
            ["time"],
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("path", [OPENAI, ZHIPU])
def test_a_tool_choice_says_what_is_offered_and_what_must_be_called(
    meant: Ask, path: str, choice: object, offered: list[str], must_call: list[str] | None
) -> None:
    request = meant(path, tools=[WEATHER, TIME], tool_choice=choice)
    assert [tool.name for tool in request.tools] == offered
    assert request.must_call == must_call
    assert request.parallel_tool_calls


def test_a_tool_is_passed_on_as_it_is(meant: Ask) -> None:
    request = meant(tools=[WEATHER, TIME], parallel_tool_calls=False)
    assert request.tools == [
        OfferedTool(name="weather", parameters={"type": "object"}),
        OfferedTool(name="time", description="Tell the time."),
    ]
    assert not request.parallel_tool_calls


@pytest.mark.parametrize(
    ("choice", "must_call"), [(None, None), ("auto", None), ({"name": "weather"}, ["weather"])], ids=str
)
def test_functions_are_tools_one_at_a_time(meant: Ask, choice: object, must_call: list[str] | None) -> None:
    request = meant(functions=[WEATHER["function"]], function_call=choice)
    assert [tool.name for tool in request.tools] == ["weather"]
    assert request.must_call == must_call
    assert not request.parallel_tool_calls


def test_a_service_of_zhipus_is_refused_unless_it_is_off(api: Api, meant: Ask) -> None:
    off, on = ({"type": "web_search", "web_search": {"enable": value}} for value in (False, True))
    assert [tool.name for tool in meant(ZHIPU, tools=[off, TIME]).tools] == ["time"]
    status, error = api.refused("POST", ZHIPU, api.ada, json={"model": "toy", "messages": USER, "tools": [on]})
    assert (status, error["code"], error["param"]) == (400, "1214", "tools[0].type")


CALL = {"id": "call_9", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
CALL_9 = CalledTool(id="call_9", name="weather", arguments="{}")


@pytest.mark.parametrize(
    ("messages", "turns"),
    [
        ([{"role": "developer", "content": "Be brief."}], [Turn(role="system", content="Be brief.")]),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
            [Turn(role="user", content="ab")],
        ),
        (
            [
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "call_9", "content": "rain"},
            ],
            [
                Turn(role="assistant", content="", tool_calls=[CALL_9]),
                Turn(role="tool", content="rain", tool_call_id="call_9"),
            ],
        ),
        (
            [
                {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
                {"role": "function", "name": "f", "content": "rain"},
            ],
            [
                Turn(role="assistant", content="", tool_calls=[CalledTool(id="call_1", name="f", arguments="{}")]),
                Turn(role="tool", content="rain", tool_call_id="call_1"),
            ],
        ),
        ([{"role": "assistant", "content": ""}], [Turn(role="assistant", content="")]),
    ],
)
@pytest.mark.parametrize("path", [OPENAI, ZHIPU])
def test_messages_of_every_kind_are_turns(meant: Ask, path: str, messages: list, turns: list[Turn]) -> None:
    assert meant(path, messages=[*USER, *messages]).messages == [Turn(role="user", content="Hi"), *turns]


@pytest.mark.parametrize("path", [OPENAI, ZHIPU])
@pytest.mark.parametrize(
    "said", [{"content": None, "refusal": "No."}, {"content": [{"type": "refusal", "refusal": "No."}]}]
)
def test_a_refusal_is_what_the_assistant_said(meant: Ask, path: str, said: dict[str, Any]) -> None:
    messages = [*USER, {"role": "assistant", **said}, *USER]
    assert meant(path, messages=messages).messages[1] == Turn(role="assistant", content="No.")


@pytest.mark.parametrize("path", [OPENAI, ZHIPU])
def test_a_picture_is_refused_in_plain_words(api: Api, path: str) -> None:
    content = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": "AAAA"}}]
    body = {"model": "toy", "messages": [{"role": "user", "content": content}]}
    status, error = api.refused("POST", path, api.ada, json=body)
    assert (status, error["param"]) == (400, "messages[0].content")
    assert "image_url are not offered" in error["message"]


# What is answered


def test_a_whole_answer_has_every_field(api: Api, model: Model) -> None:
    answer = whole(api)
    assert answer.pop("id").startswith("chatcmpl-") and answer.pop("created") > 0
    assert answer.pop("system_fingerprint").startswith("fp_")
    message = {"role": "assistant", "content": "Hello", "refusal": None}
    assert answer == {
        "object": "chat.completion",
        "model": "toy",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
        "usage": USAGE,
    }


def test_the_path_inside_dashscopes_answers_like_openai(api: Api, model: Model) -> None:
    assert whole(api, ALIAS).keys() == whole(api, OPENAI).keys()


def test_zhipus_answers_say_what_the_request_was_called(api: Api, model: Model) -> None:
    assert whole(api, ZHIPU, request_id="mine")["request_id"] == "mine"
    assert whole(api, ZHIPU)["request_id"].startswith("req-")
    assert {frame["request_id"] for frame in stream(api, ZHIPU, request_id="mine")} == {"mine"}


def test_a_call_is_told_in_place_of_a_text(api: Api, model: Model) -> None:
    model.says(TokenChunk(tool_calls=CALLS[:1]), TokenChunk(tool_calls=CALLS[1:]), CALLED)
    [choice] = whole(api, tools=[WEATHER, TIME])["choices"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    assert choice["message"]["tool_calls"] == [
        {"id": "call_0", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
        {"id": "call_1", "type": "function", "function": {"name": "time", "arguments": "{}"}},
    ]
    deltas = [frame["choices"][0] for frame in stream(api, tools=[WEATHER, TIME])]
    told = [call for choice in deltas for call in choice["delta"].get("tool_calls", [])]
    assert told == [{"index": index, **call} for index, call in enumerate(choice["message"]["tool_calls"])]
    assert [choice["finish_reason"] for choice in deltas] == [None, None, None, "tool_calls"]


def test_text_before_a_call_stays(api: Api, model: Model) -> None:
    model.says(TokenChunk(text="Let me see."), TokenChunk(tool_calls=CALLS[:1]), CALLED)
    assert whole(api, tools=[WEATHER])["choices"][0]["message"]["content"] == "Let me see."


def test_a_function_is_called_in_the_older_form(api: Api, model: Model) -> None:
    model.says(TokenChunk(tool_calls=CALLS[:1]), CALLED)
    [choice] = whole(api, functions=[WEATHER["function"]])["choices"]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"] == {"name": "weather", "arguments": "{}"}
    assert "tool_calls" not in choice["message"]
    _, called, end = [frame["choices"][0] for frame in stream(api, functions=[WEATHER["function"]])]
    assert called["delta"] == {"function_call": {"name": "weather", "arguments": "{}"}}
    assert end["finish_reason"] == "function_call"


@pytest.mark.parametrize("path", [OPENAI, ZHIPU, ALIAS, "/api/v1/services/aigc/text-generation/generation"])
def test_an_event_is_one_line_to_every_client(api: Api, model: Model, path: str) -> None:
    """Some split a stream as Python splits a text, which takes more signs for the end of a line than the format does."""
    said = "a\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\r\n谢"
    model.says(TokenChunk(text=said), DONE)
    asked = {"model": "toy", "messages": USER, "input": {"messages": USER}, "stream": True}
    answer = api.call("POST", path, api.ada, json=asked, headers={"x-dashscope-sse": "enable"})
    events = [
        json.loads(line[5:]) for line in answer.text.splitlines() if line.startswith("data:") and "[DONE]" not in line
    ]
    assert json.dumps(said)[1:-1] in json.dumps(events)
    assert "谢" in answer.text  # what ends no line is not written longer than it is


SURE = TokenLikelihood(
    token="a", logprob=-0.25, bytes=[97], likeliest=[Likelihood(token="é", logprob=float("-inf"), bytes=[195, 169])]
)
TOLD = {
    "token": "a",
    "logprob": -0.25,
    "bytes": [97],
    "top_logprobs": [{"token": "é", "logprob": -9999.0, "bytes": [195, 169]}],
}


def test_logprobs_are_told_for_every_token(api: Api, model: Model) -> None:
    model.says(TokenChunk(text="a", logprobs=[SURE]), TokenChunk(logprobs=[SURE]), DONE)
    told = whole(api, logprobs=True, top_logprobs=1)["choices"][0]["logprobs"]
    assert told == {"content": [TOLD, TOLD], "refusal": None}
    frames = stream(api, logprobs=True, top_logprobs=1)
    found = [frame["choices"][0]["logprobs"] for frame in frames]
    assert found == [None, {"content": [TOLD], "refusal": None}, {"content": [TOLD], "refusal": None}, None]


def test_several_answers_are_told_apart_and_their_prompt_is_counted_once(api: Api, model: Model) -> None:
    model.parts = [Delta(1, TokenChunk(text="b")), Delta(0, TokenChunk(text="a")), Delta(1, DONE), Delta(0, DONE)]
    answer = whole(api, n=2)
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["a", "b"]
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (3, 4)
    frames = stream(api, n=2, stream_options={"include_usage": True})
    assert [frame["choices"][0]["index"] for frame in frames[:-1]] == [0, 1, 1, 0, 1, 0]
    assert [frame["choices"][0]["delta"].get("role") for frame in frames[:-1]] == ["assistant"] * 2 + [None] * 4
    assert frames[-1]["usage"] == answer["usage"]
    with_usage = [frame for frame in stream(api, ZHIPU, n=2) if frame.get("usage")]
    assert [frame["usage"] for frame in with_usage] == [answer["usage"]]


def test_a_stream_begins_with_the_role_and_ends_with_the_reason(api: Api, model: Model) -> None:
    frames = stream(api)
    assert len({frame["id"] for frame in frames}) == 1
    assert {(frame["object"], frame["model"]) for frame in frames} == {("chat.completion.chunk", "toy")}
    choices = [frame["choices"][0] for frame in frames]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert [choice["delta"] for choice in choices[1:]] == [{"content": "Hel"}, {"content": "lo"}, {}]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "stop"]
    assert not any("usage" in frame for frame in frames)


def test_usage_ends_a_stream_only_where_it_is_asked_for(api: Api, model: Model) -> None:
    *frames, last = stream(api, stream_options={"include_usage": True})
    assert (last["choices"], last["usage"]) == ([], USAGE)
    assert [frame["usage"] for frame in frames] == [None] * 4
    assert all(frame["choices"] for frame in stream(api, stream_options={"include_usage": None}))


def test_in_zhipus_streams_usage_rides_on_the_last_choice(api: Api, model: Model) -> None:
    *frames, last = stream(api, ZHIPU)
    assert (last["choices"][0]["finish_reason"], last["usage"]) == ("stop", USAGE)
    assert not any("usage" in frame for frame in frames)
    *_, last_choice, empty = stream(api, ZHIPU, stream_options={"include_usage": True})
    assert last_choice["usage"] == USAGE
    assert (empty["choices"], empty["usage"]) == ([], USAGE)


@pytest.mark.parametrize(
    ("path", "code"), [(OPENAI, "replica_unavailable"), (ALIAS, "replica_unavailable"), (ZHIPU, "503")]
)
def test_what_breaks_off_a_stream_is_its_last_event(api: Api, model: Model, path: str, code: str) -> None:
    model.says(TokenChunk(text="Hel"), ReplicaUnavailable("It broke off."))
    last = events(api, path)[-1]
    assert last.startswith("event: error\ndata: ")
    error = {"message": "It broke off.", "type": "server_error", "param": None, "code": code}
    assert json.loads(last.removeprefix("event: error\ndata: ")) == {"error": error}


# Asynchronous completions


def test_an_answer_is_fetched_later_in_zhipus_words(api: Api) -> None:
    answer = api.call("GET", "/api/paas/v4/async-result/task-bob", api.bob).json()
    assert answer.pop("created") > 0
    message = {"role": "assistant", "content": "Hi", "refusal": None}
    assert answer == {
        "id": "task-bob",
        "request_id": "bobs",
        "model": "toy",
        "task_status": "SUCCESS",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
        "usage": USAGE | {"prompt_tokens": 1, "total_tokens": 3},
    }


@pytest.mark.parametrize(
    ("asked", "name"), [({"functions": [WEATHER["function"]]}, "function_call"), ({"tools": [WEATHER]}, "tool_calls")]
)
def test_an_answer_that_is_fetched_later_calls_in_the_form_that_was_asked_for(
    api: Api, model: Model, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], name: str
) -> None:
    async def is_ready(who: object, name: str) -> None:
        """No replica runs here."""

    monkeypatch.setattr(api.parts.services.inference, "check_ready", is_ready)
    model.says(TokenChunk(tool_calls=CALLS[:1]), CALLED)
    sent = {"model": "toy", "messages": USER} | asked
    task = api.call("POST", "/api/paas/v4/async/chat/completions", api.ada, json=sent).json()["id"]
    deadline = time.monotonic() + 60
    while (told := api.call("GET", f"/api/paas/v4/async-result/{task}", api.ada).json())["task_status"] == "PROCESSING":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert told["choices"] == whole(api, ZHIPU, **asked)["choices"]
    assert told["choices"][0]["finish_reason"] == name and name in told["choices"][0]["message"]


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (Failure(code="context_length_exceeded", message="Too long.", param="messages"), "1261"),
        (Failure(code="invalid_parameter", message="Wrong.", param="tools"), "1214"),
        (Failure(code="internal_error", message="Ours."), "500"),
        (Failure(code="a_code_of_tomorrow", message="What?"), "500"),
    ],
)
def test_why_there_is_no_answer_is_told_by_the_number_of_the_call_that_waits(failure: Failure, code: str) -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    told = result(AsyncCompletion("task-1", "mine", "toy", "failed", [], failure, at))
    assert told["task_status"] == "FAIL"
    assert told["error"] == {"code": code, "message": failure.message, "param": failure.param}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/paas/v4/chat/completions", "/v1/completions"])
def test_more_ids_that_end_an_answer_than_may_be_are_refused_under_their_own_name(api: Api, path: str) -> None:
    said = {"prompt": "Hi"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "Hi"}]}
    status, error = api.refused("POST", path, api.ada, json=said | {"model": "toy", "stop_token_ids": [1] * 1001})
    assert status == 400
    assert "stop_token_ids" in error["message"]
