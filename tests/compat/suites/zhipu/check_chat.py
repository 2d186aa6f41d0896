"""Chat: whole, streamed, with tools, and as these clients change what they are told."""

from __future__ import annotations

import json

import pytest


def test_an_answer_has_its_usage_and_the_name_of_its_request(say) -> None:
    answer = say(request_id="mine-1", user_id="me")
    assert (answer.request_id, answer.model) == ("mine-1", "toy")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert say().request_id


def test_a_temperature_of_zero_is_greedy(say) -> None:
    """The client sends do_sample false and a temperature of 0.01 in its place."""
    texts = {say(seed=seed, max_tokens=40).choices[0].message.content for seed in range(3)}
    assert len(texts) == 1
    assert say(temperature=0.9, do_sample=False, max_tokens=40).choices[0].message.content in texts
    assert len({say(temperature=0.9, seed=seed, max_tokens=40).choices[0].message.content for seed in range(3)}) > 1


def test_a_stream_says_the_same_and_its_last_chunk_has_the_usage(say, lenient) -> None:
    whole = say()
    chunks = list(say(through=lenient, stream=True))
    assert all(chunk.choices for chunk in chunks)  # programs read choices[0] of every one
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


def test_usage_in_a_chunk_of_its_own_has_to_be_asked_for(say, lenient) -> None:
    *_, last_choice, last = say(through=lenient, stream=True, extra_body={"stream_options": {"include_usage": True}})
    assert last_choice.usage.total_tokens == last.usage.total_tokens > 0
    assert last.choices == []


LETTER = {"65": 100}


def test_a_stop_ends_the_answer(say) -> None:
    text = say(extra_body={"logit_bias": LETTER}, max_tokens=5).choices[0].message.content
    assert len(text) == 5 and len(set(text)) == 1
    stopped = say(extra_body={"logit_bias": LETTER}, max_tokens=9, stop=[text[:3]]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == ("", "stop")


def test_several_answers_are_asked_for_by_the_body(say) -> None:
    answer = say(extra_body={"n": 2}, temperature=0.9, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1]


def test_what_changes_nothing_is_taken(say) -> None:
    plain = say().choices[0].message.content
    more = {"thinking": {"type": "disabled"}, "tool_stream": True, "watermark_enabled": False, "meta": {"a": "b"}}
    assert say(extra_body=more).choices[0].message.content == plain
    assert say(extra_body={"response_format": None, "tools": None}).choices[0].message.content == plain


def test_a_json_object_is_one(say) -> None:
    schema = {"type": "object", "properties": {"is_up": {"type": "boolean"}}, "required": ["is_up"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {**schema, "additionalProperties": False}}}
    said = say(extra_body={"response_format": form}, temperature=0.9, seed=1, max_tokens=100)
    assert isinstance(json.loads(said.choices[0].message.content)["is_up"], bool)
    answer = say(extra_body={"response_format": {"type": "json_object"}}, max_tokens=100).choices[0]
    assert answer.message.content.startswith("{")


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather.",
        "parameters": {
            "type": "object",
            "properties": {"is_today": {"type": "boolean"}},
            "required": ["is_today"],
            "additionalProperties": False,
        },
    },
}
OFF = {"type": "web_search", "web_search": {"enable": False}}
CALLED = {
    "tools": [WEATHER, OFF],
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
    "extra_body": {"parallel_tool_calls": False},
    "temperature": 0.9,
    "seed": 1,
    "max_tokens": 200,
}


def test_a_demanded_tool_is_called_and_its_result_goes_back(say, client, lenient) -> None:
    [choice] = say(**CALLED).choices
    [call] = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert (call.type, call.function.name) == ("function", "weather")
    assert isinstance(json.loads(call.function.arguments)["is_today"], bool)
    [told] = [
        call
        for chunk in say(through=lenient, stream=True, **CALLED)
        for call in chunk.choices[0].delta.tool_calls or []
    ]
    assert (told.index, told.function.name, told.function.arguments) == (0, "weather", call.function.arguments)
    turns = [
        {"role": "user", "content": "ab"},
        choice.message.model_dump(),
        {"role": "tool", "tool_call_id": call.id, "content": "rain"},
    ]
    answer = client.chat.completions.create(model="toy", messages=turns, tools=[WEATHER], max_tokens=4)
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_a_service_that_is_not_here_is_refused(say, core) -> None:
    with pytest.raises(core.APIRequestFailedError, match="web_search are not offered"):
        say(tools=[{"type": "web_search", "web_search": {"enable": True}}])


def test_a_picture_is_refused_in_plain_words(client, core) -> None:
    parts = [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    ]
    with pytest.raises(core.APIRequestFailedError, match="image_url are not offered"):
        client.chat.completions.create(model="toy", messages=[{"role": "user", "content": parts}])
