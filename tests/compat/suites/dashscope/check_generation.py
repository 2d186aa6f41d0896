"""dashscope.Generation and AioGeneration, whole and streamed."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from typing import Any

import dashscope
import pytest
from dashscope import Generation
from dashscope.aigc.generation import AioGeneration

MESSAGES = [{"role": "system", "content": "Say it back."}, {"role": "user", "content": "abc"}]
GREEDY: dict[str, Any] = {"model": "toy", "messages": MESSAGES, "temperature": 0, "max_tokens": 8}


def content(response) -> str:
    assert response.status_code == 200, response
    return response.output.choices[0].message.content


@pytest.fixture(scope="module")
def whole() -> str:
    return content(Generation.call(**GREEDY, result_format="message"))


def test_a_fine_tuned_model_is_called_by_its_name(trained) -> None:
    answer = Generation.call(trained.finetuned_output, "abc", temperature=0, max_tokens=8)
    assert answer.status_code == 200, answer
    assert answer.output.text and answer.output.finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer.request_id.startswith("req-") and not answer.code


def test_both_forms_of_an_answer_say_the_same(whole: str) -> None:
    answer = Generation.call(**GREEDY)
    assert answer.output.text == whole
    assert answer.output.finish_reason == "length" and answer.usage.output_tokens == 8


def test_a_history_is_told_as_turns_are() -> None:
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    told = content(Generation.call("toy", messages=turns, temperature=0, max_tokens=8, result_format="message"))
    old = Generation.call("toy", "c", history=[{"user": "a", "bot": "b"}], temperature=0, max_tokens=8)
    assert old.output.text == told


def test_a_stream_without_a_wish_has_all_of_the_answer_so_far(whole: str) -> None:
    frames = list(Generation.call(**GREEDY, stream=True))
    texts = [frame.output.text for frame in frames]
    assert all(later.startswith(earlier[:-1]) for earlier, later in pairwise(texts))
    assert texts[-1] == whole
    assert [frame.output.finish_reason for frame in frames] == ["null"] * (len(frames) - 1) + ["length"]
    assert frames[-1].usage.output_tokens == 8


def test_a_stream_of_what_is_new_adds_up_to_the_answer(whole: str) -> None:
    frames = list(Generation.call(**GREEDY, stream=True, incremental_output=True, result_format="message"))
    assert "".join(content(frame) for frame in frames) == whole and len(frames) > 2


def test_a_stream_that_the_client_puts_together_ends_with_the_answer(whole: str) -> None:
    frames = list(Generation.call(**GREEDY, stream=True, incremental_output=False, result_format="message"))
    assert content(frames[-1]) == whole
    frames = list(Generation.call(**GREEDY, stream=True, incremental_output=False))
    assert frames[-1].output.text == whole


def test_the_asynchronous_client_says_the_same(whole: str) -> None:
    async def asked() -> tuple[str, str]:
        answer = await AioGeneration.call(**GREEDY, result_format="message")
        stream = await AioGeneration.call(**GREEDY, stream=True, incremental_output=True, result_format="message")
        return content(answer), "".join([content(frame) async for frame in stream])

    assert asyncio.run(asked()) == (whole, whole)


def test_a_seed_repeats_an_answer_and_parameters_may_be_strings() -> None:
    sent = {"model": "toy", "messages": MESSAGES, "temperature": "1.5", "top_p": "0.9", "top_k": "50", "seed": "7"}
    texts = {Generation.call(**sent, max_tokens="8", repetition_penalty="1.1").output.text for _ in range(2)}
    assert len(texts) == 1


def test_several_answers_are_counted_together() -> None:
    answer = Generation.call("toy", messages=MESSAGES, n=2, seed=1, max_tokens=4)
    assert [choice.index for choice in answer.output.choices] == [0, 1]
    assert answer.usage.output_tokens <= 8


def test_several_answers_are_put_together_by_the_client() -> None:
    sent = {"n": 2, "seed": 1, "max_tokens": 4, "result_format": "message"}
    whole = [choice.message.content for choice in Generation.call("toy", messages=MESSAGES, **sent).output.choices]
    frames = Generation.call("toy", messages=MESSAGES, **sent, stream=True, incremental_output=False)
    last: dict[int, str] = {}
    for frame in frames:
        last |= {choice["index"]: choice["message"]["content"] for choice in frame.output.choices}
    assert [last[index] for index in range(2)] == whole


def test_a_stop_ends_an_answer_and_is_not_a_part_of_it(whole: str) -> None:
    sign = next(one for one in whole[1:] if one.isascii()) if any(map(str.isascii, whole[1:])) else whole[-1]
    for stop in (sign, [sign, "never"]):
        answer = Generation.call(**GREEDY, stop=stop)
        assert (answer.output.text, answer.output.finish_reason) == (whole[: whole.index(sign)], "stop")
    everything = list(range(259))
    assert Generation.call(**GREEDY, stop=everything).output.text == ""


def test_the_likeliest_tokens_are_told() -> None:
    answer = Generation.call(**GREEDY, logprobs=True, top_logprobs=2, result_format="message")
    told = answer.output.choices[0]["logprobs"]["content"]
    assert len(told) == 8
    assert all(one["logprob"] <= 0 and len(one["top_logprobs"]) == 2 for one in told)


def test_an_answer_is_json_where_that_is_asked_for() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "yes", "schema": {"type": "boolean"}}}
    answer = Generation.call("toy", messages=MESSAGES, response_format=form, max_tokens=16)
    assert answer.status_code == 200, answer
    assert json.loads(answer.output.text) in (True, False)


TOOLS = [{"type": "function", "function": {"name": "t"}}]


def test_a_tool_that_must_be_called_is_called_and_its_answer_is_read() -> None:
    turns: list[dict[str, Any]] = [{"role": "user", "content": "."}]
    answer = Generation.call("toy", messages=turns, tools=TOOLS, tool_choice="required")
    assert answer.status_code == 200, answer
    choice = answer.output.choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert (call["index"], call["type"], call["function"]["name"]) == (0, "function", "t")
    assert isinstance(json.loads(call["function"]["arguments"]), dict)
    named = {"type": "function", "function": {"name": "t"}}
    frames = list(Generation.call("toy", messages=turns, tools=TOOLS, tool_choice=named, stream=True))
    assert frames[-1].status_code == 200, frames[-1]
    assert [call["function"]["name"] for call in frames[-1].output.choices[0].message.tool_calls] == ["t"]
    turns += [dict(choice.message), {"role": "tool", "content": "1", "tool_call_id": call["id"]}]
    after = Generation.call("toy", messages=turns, max_tokens=4)
    assert after.status_code == 200, after


def test_what_cannot_be_done_here_has_no_effect_where_it_changes_no_truth(whole: str) -> None:
    answer = Generation.call(
        **GREEDY, enable_search=True, search_options={"forced_search": True}, enable_thinking=False, thinking_budget=10
    )
    assert answer.output.text == whole


def test_what_is_wrong_is_named() -> None:
    for sent, field in (({"temperature": 3}, "parameters.temperature"), ({"top_p": 0}, "parameters.top_p")):
        refused = Generation.call("toy", "abc", **sent)
        assert (refused.status_code, refused.code) == (400, "InvalidParameter")
        assert field in refused.message
    absent = Generation.call("none", "abc")
    assert (absent.status_code, absent.code) == (404, "Model.NotExist")


def test_a_wrong_key_is_refused() -> None:
    refused = Generation.call("toy", "abc", api_key="wrong.key")
    assert (refused.status_code, refused.code) == (401, "InvalidApiKey")
    assert dashscope.Files.list(api_key="wrong.key").code == "InvalidApiKey"
