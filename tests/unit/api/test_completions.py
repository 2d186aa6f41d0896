"""OpenAI's older call: what a prompt may be, how choices are numbered, and its own form of log-probabilities."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.control.inference.service import Delta
from luthier.serving.protocol import Finish, Likelihood, Sampling, TokenChunk, TokenLikelihood
from tests.unit.api import test_chat
from tests.unit.api.conftest import Api
from tests.unit.api.test_chat import DONE, Model

PATH = "/v1/completions"
model = test_chat.model


def whole(api: Api, **body: Any) -> dict[str, Any]:
    answer = api.call("POST", PATH, api.ada, json={"model": "toy", "prompt": "Once"} | body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([65, 66], [[65, 66]]), ([[65], [66, 67]], [[65], [66, 67]])],
    ids=str,
)
def test_a_prompt_is_a_text_or_tokens_or_several_of_them(api: Api, model: Model, prompt: Any, prompts: list) -> None:
    choices = whole(api, prompt=prompt)["choices"]
    assert [request.prompt for request in model.asked] == prompts
    assert [choice["index"] for choice in choices] == list(range(len(prompts)))


@pytest.mark.parametrize("prompt", ["", [], [""], [[]], ["a", ""], None, 5, ["a", 5], [[65], "a"], [-1], ["a"] * 129])
def test_a_prompt_that_is_none_is_refused(api: Api, model: Model, prompt: Any) -> None:
    status, error = api.refused("POST", PATH, api.ada, json={"model": "toy", "prompt": prompt})
    assert status == 400 and error["param"].startswith("prompt")


def test_answers_of_all_prompts_together_are_limited(api: Api, model: Model) -> None:
    assert len(whole(api, prompt=["a"] * 128)["choices"]) == 128
    status, error = api.refused("POST", PATH, api.ada, json={"model": "toy", "prompt": ["a"] * 65, "n": 2})
    assert (status, error["code"], error["param"]) == (400, "invalid_parameter", "prompt")
    assert "130" in error["message"]


def test_what_nobody_says_is_sixteen_tokens_of_the_models_own_distribution(api: Api, model: Model) -> None:
    whole(api)
    assert model.asked[0].sampling == Sampling(temperature=1.0, top_p=1.0, max_tokens=16)
    assert (model.asked[0].messages, model.asked[0].n) == ([], 1)


def test_every_number_is_passed_on(api: Api, model: Model) -> None:
    numbers = {"temperature": 0.5, "top_p": 0.9, "seed": 7, "max_tokens": 5}
    whole(api, **numbers, stop=["a"], frequency_penalty=1, presence_penalty=-1, logit_bias={"65": 3}, logprobs=2)
    more: dict[str, Any] = {"frequency_penalty": 1.0, "presence_penalty": -1.0, "logit_bias": {65: 3.0}, "logprobs": 2}
    assert model.asked[0].sampling == Sampling(**numbers, stop=["a"], **more)


def test_what_vllm_takes_beside_openais_fields_is_taken(api: Api, model: Model) -> None:
    numbers: dict[str, Any] = {"min_p": 0.1, "top_k": 5, "repetition_penalty": 1.2}
    whole(api, **numbers, stop_token_ids=[3], structured_outputs={"regex": "a+"})
    [asked] = model.asked
    assert asked.sampling == Sampling(**numbers, stop_tokens=[3], max_tokens=16)
    assert (asked.regex, asked.json_schema) == ("a+", None)


def test_cached_tokens_of_several_prompts_are_summed(api: Api, model: Model) -> None:
    model.parts = [Delta(0, Finish(reason="stop", prompt_tokens=9, completion_tokens=2, cached_tokens=4))]
    used = whole(api, prompt=["x", "y"])["usage"]
    assert (used["prompt_tokens"], used["prompt_tokens_details"]) == (18, {"cached_tokens": 8})


def test_a_whole_answer_has_every_field(api: Api, model: Model) -> None:
    answer = whole(api)
    assert answer.pop("id").startswith("cmpl-") and answer.pop("created") > 0
    assert answer.pop("system_fingerprint").startswith("fp_")
    assert answer == {
        "object": "text_completion",
        "model": "toy",
        "choices": [{"index": 0, "text": "Hello", "finish_reason": "stop", "logprobs": None}],
        "usage": test_chat.USAGE,
    }


def test_choices_of_several_prompts_are_numbered_through_and_their_usage_is_summed(api: Api, model: Model) -> None:
    model.parts = [Delta(1, TokenChunk(text="b")), Delta(0, TokenChunk(text="a")), Delta(1, DONE), Delta(0, DONE)]
    answer = whole(api, prompt=["x", "y"], n=2, best_of=2)
    assert [(c["index"], c["text"]) for c in answer["choices"]] == [(0, "a"), (1, "b"), (2, "a"), (3, "b")]
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (6, 8)
    frames = test_chat.stream(api, PATH, prompt=["x", "y"], n=2, stream_options={"include_usage": True})
    assert [frame["choices"][0]["index"] for frame in frames[:-1]] == [1, 0, 1, 0, 3, 2, 3, 2]
    assert (frames[-1]["choices"], frames[-1]["usage"]) == ([], answer["usage"])


def test_an_echo_comes_before_the_answer(api: Api, model: Model) -> None:
    assert whole(api, echo=True)["choices"][0]["text"] == "OnceHello"
    frames = test_chat.stream(api, PATH, prompt="Once", echo=True)
    assert [frame["choices"][0]["text"] for frame in frames] == ["Once", "Hel", "lo", ""]
    assert [frame["choices"][0]["finish_reason"] for frame in frames] == [None, None, None, "stop"]


@pytest.mark.parametrize(
    ("asked", "code", "param"),
    [
        ({"suffix": "end"}, "not_offered", "suffix"),
        ({"best_of": 2}, "not_offered", "best_of"),
        ({"n": 3, "best_of": 2}, "invalid_parameter", "best_of"),
        ({"echo": True, "prompt": [65]}, "not_offered", "echo"),
        ({"echo": True, "logprobs": 1}, "not_offered", "echo"),
        ({"logprobs": 6}, "invalid_request", "logprobs"),
        ({"max_tokens": 0}, "invalid_request", "max_tokens"),
    ],
    ids=str,
)
def test_what_is_not_offered_is_refused(api: Api, model: Model, asked: dict[str, Any], code: str, param: str) -> None:
    status, error = api.refused("POST", PATH, api.ada, json={"model": "toy", "prompt": "Once"} | asked)
    assert (status, error["code"], error["param"]) == (400, code, param)


def likely(token: str, spelled: bytes) -> TokenLikelihood:
    other = Likelihood(token="b", logprob=-1.5, bytes=[98])
    return TokenLikelihood(token=token, logprob=-0.5, bytes=list(spelled), likeliest=[other])


def test_logprobs_say_where_in_the_text_every_token_begins(api: Api, model: Model) -> None:
    first, second = "é".encode()[:1], "é".encode()[1:]
    tokens = [likely("a", b"a"), likely("\ufffd", first), likely("\ufffd", second), likely("c", b"c")]
    model.says(TokenChunk(text="a", logprobs=tokens[:1]), TokenChunk(text="éc", logprobs=tokens[1:]))
    model.parts.append(Delta(0, Finish(reason="length", prompt_tokens=3, completion_tokens=4)))
    told = whole(api, logprobs=1)["choices"][0]["logprobs"]
    assert told["tokens"] == ["a", "\ufffd", "\ufffd", "c"]
    assert told["token_logprobs"] == [-0.5] * 4
    assert told["text_offset"] == [0, 1, 1, 2]
    assert told["top_logprobs"][0] == {"a": -0.5, "b": -1.5}
    frames = test_chat.stream(api, PATH, prompt="Once", logprobs=1)
    offsets = [frame["choices"][0]["logprobs"]["text_offset"] for frame in frames[:2]]
    assert offsets == [[0], [1, 1, 2]]
    assert frames[2]["choices"][0]["logprobs"] is None
    assert whole(api, logprobs=0)["choices"][0]["logprobs"]["top_logprobs"] is None
