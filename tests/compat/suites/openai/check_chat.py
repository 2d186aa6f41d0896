"""Chat completions, whole and streamed."""

from __future__ import annotations

import json

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel


def test_an_answer_has_its_usage_and_its_reason(say) -> None:
    answer = say(max_tokens=5)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert 0 <= answer.usage.prompt_tokens_details.cached_tokens < answer.usage.prompt_tokens
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.system_fingerprint
    assert answer._request_id.startswith("req-")


def test_the_stream_of_a_tuned_model_says_what_the_whole_answer_says(say, trained) -> None:
    whole = say("abca", trained.fine_tuned_model)
    chunks = list(say("abca", trained.fine_tuned_model, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content == ""
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == whole.choices[0].finish_reason
    assert len({chunk.id for chunk in chunks}) == 1
    assert whole.choices[0].message.content != say("abca").choices[0].message.content


def test_usage_comes_in_a_last_chunk_when_asked_for(say) -> None:
    *chunks, last = say(stream=True, stream_options={"include_usage": True})
    assert last.choices == [] and last.usage.total_tokens > 0
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert all(chunk.choices for chunk in say(stream=True))


def test_the_same_seed_gives_the_same_text_and_another_one_another(say) -> None:
    def said(seed: int) -> str:
        return say(temperature=1, seed=seed, max_tokens=40).choices[0].message.content

    assert said(1) == said(1) != said(2)


def test_several_answers_are_numbered(say) -> None:
    answer = say(n=3, temperature=1, seed=5, max_tokens=20)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in answer.choices]
    assert texts[0] == say(temperature=1, seed=5, max_tokens=20).choices[0].message.content
    assert len(set(texts)) > 1
    streamed = ["", "", ""]
    for chunk in say(n=3, temperature=1, seed=5, max_tokens=20, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


LETTER = {"65": 100}
"""The toy's token 65 is a letter, and the only one that is left by such a bias."""


def test_a_bias_says_what_is_said_and_a_stop_ends_it(say) -> None:
    answer = say(logit_bias=LETTER, max_tokens=5)
    text = answer.choices[0].message.content
    assert len(text) == 5 and len(set(text)) == 1
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 5)
    for stop in (text[:3], ["no", text[:3]]):
        stopped = say(logit_bias=LETTER, max_completion_tokens=9, stop=stop).choices[0]
        assert (stopped.message.content, stopped.finish_reason) == ("", "stop")


def test_penalties_change_what_is_said(say) -> None:
    """The toy repeats itself, which is what they are against."""
    plain = say(max_tokens=40).choices[0].message.content
    for name in ("presence_penalty", "frequency_penalty"):
        assert say(max_tokens=40, **{name: 0}).choices[0].message.content == plain
        assert say(max_tokens=40, **{name: 2}).choices[0].message.content != plain


def test_log_probabilities_are_told_of_every_token(say) -> None:
    answer = say(logit_bias=LETTER, max_tokens=4, logprobs=True, top_logprobs=2)
    told = answer.choices[0].logprobs.content
    assert b"".join(bytes(one.bytes) for one in told).decode() == answer.choices[0].message.content
    assert len(told) == 4
    for one in told:
        assert one.logprob <= 0 and len(one.top_logprobs) == 2
        assert one.top_logprobs[0].logprob >= one.top_logprobs[1].logprob
    frames = say(logit_bias=LETTER, max_tokens=4, logprobs=True, top_logprobs=2, stream=True)
    streamed = [one for chunk in frames if chunk.choices[0].logprobs for one in chunk.choices[0].logprobs.content]
    assert [one.bytes for one in streamed] == [one.bytes for one in told]


def test_a_json_object_is_one(say) -> None:
    form = {"type": "json_object"}
    answers = [say(response_format=form, temperature=1, seed=seed, max_tokens=900).choices[0] for seed in range(4)]
    whole = [answer.message.content for answer in answers if answer.finish_reason == "stop"]
    assert whole and all(isinstance(json.loads(text), dict) for text in whole)


SCHEMA = {
    "type": "object",
    "properties": {"is_rainy": {"type": "boolean"}, "sky": {"enum": ["blue", "grey"]}},
    "required": ["is_rainy", "sky"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("strict", [True, False, None])
def test_an_answer_keeps_to_its_schema(say, strict: bool | None) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA, "strict": strict}}
    answer = say(response_format=form, temperature=1, seed=3, max_tokens=200)
    assert answer.choices[0].finish_reason == "stop"
    said = json.loads(answer.choices[0].message.content)
    assert said.keys() == {"is_rainy", "sky"} and said["sky"] in ("blue", "grey")


def test_the_clients_own_parsing_reads_an_answer(client: OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="toy",
        messages=[{"role": "user", "content": "ab"}],
        response_format=Flag,
        temperature=1,
        seed=1,
        max_tokens=100,
    )
    assert isinstance(answer.choices[0].message.parsed, Flag)


class Flag(BaseModel):
    is_up: bool


def test_the_clients_own_stream_helper_gathers_an_answer(client: OpenAI, say) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "weather", "schema": SCHEMA}}
    asked = {"response_format": form, "temperature": 1, "seed": 3, "max_tokens": 200}
    messages = [{"role": "user", "content": "ab"}]
    with client.chat.completions.stream(model="toy", messages=messages, **asked) as stream:
        said = "".join(event.delta for event in stream if event.type == "content.delta")
        final = stream.get_final_completion()
    assert said == final.choices[0].message.content == say(**asked).choices[0].message.content


def test_what_changes_nothing_is_taken(say) -> None:
    plain = say().choices[0].message.content
    answer = say(
        user="u",
        metadata={"a": "b"},
        store=True,
        reasoning_effort="low",
        verbosity="low",
        modalities=["text"],
        prediction={"type": "content", "content": "x"},
        service_tier="auto",
        safety_identifier="s",
        prompt_cache_key="k",
        extra_body={"thinking": None, "response_format": None, "tools": None},
    )
    assert answer.choices[0].message.content == plain


def test_parts_that_are_texts_are_one_text(client: OpenAI, say) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    answer = client.chat.completions.create(
        model="toy", messages=[{"role": "user", "content": parts}], temperature=0, max_tokens=16
    )
    assert answer.choices[0].message.content == say("ab").choices[0].message.content


def test_a_developer_is_a_system(client: OpenAI) -> None:
    def said(role: str) -> str:
        messages = [{"role": role, "content": "Be brief."}, {"role": "user", "content": "ab"}]
        answer = client.chat.completions.create(model="toy", messages=messages, temperature=0, max_tokens=16)
        return answer.choices[0].message.content

    assert said("developer") == said("system")


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "mp3"}}, "modalities"),
        ({"web_search_options": {}}, "web_search_options"),
    ],
)
def test_what_is_not_offered_is_refused(say, asked: dict, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        say(**asked)
    assert (refused.value.code, refused.value.param) == ("not_offered", param)


def test_a_picture_is_refused_in_plain_words(client: OpenAI) -> None:
    parts = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    with pytest.raises(openai.BadRequestError, match="not offered") as refused:
        client.chat.completions.create(model="toy", messages=[{"role": "user", "content": parts}])
    assert refused.value.param == "messages[0].content"


def test_a_prompt_that_is_too_long_is_told_before_a_stream_begins(say) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as too_long:
            say("x" * 3000, stream=stream)
        assert too_long.value.code == "context_length_exceeded"
