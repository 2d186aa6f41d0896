"""The older call, which continues a text."""

from __future__ import annotations

import openai
import pytest
from openai import OpenAI

LETTER = {"65": 100}


@pytest.fixture
def go_on(client: OpenAI):
    def ask(prompt="ab", **more):
        return client.completions.create(**{"model": "toy", "prompt": prompt, "temperature": 0, "max_tokens": 6} | more)

    return ask


def test_a_text_is_continued(go_on) -> None:
    answer = go_on()
    assert (answer.object, len(answer.choices)) == ("text_completion", 1)
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.prompt_tokens == 2
    assert go_on(max_tokens=None, logit_bias=LETTER).usage.completion_tokens == 16


def test_prompts_are_texts_or_tokens_or_several_of_them(go_on) -> None:
    alone = [go_on(prompt).choices[0].text for prompt in ("ab", "cd")]
    together = go_on(["ab", "cd"])
    assert [choice.text for choice in together.choices] == alone
    assert [choice.index for choice in together.choices] == [0, 1]
    assert together.usage.prompt_tokens == 4
    assert go_on([64, 65]).choices[0].text == go_on([[64, 65], [65]]).choices[0].text


def test_several_answers_to_several_prompts_are_numbered_through(go_on) -> None:
    answer = go_on(["ab", "cd"], n=2, best_of=2, temperature=1, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]


def test_an_echo_comes_before_the_answer(go_on) -> None:
    assert go_on(echo=True).choices[0].text == "ab" + go_on().choices[0].text


def test_log_probabilities_have_their_older_form(go_on) -> None:
    answer = go_on(logprobs=2, logit_bias=LETTER, max_tokens=3).choices[0]
    told = answer.logprobs
    assert "".join(told.tokens) == answer.text
    assert told.text_offset == [0, 1, 2]
    assert len(told.token_logprobs) == 3
    assert all(token in likeliest for token, likeliest in zip(told.tokens, told.top_logprobs, strict=True))


def test_a_stream_says_the_same(lenient: OpenAI, go_on) -> None:
    asked = {"model": "toy", "prompt": ["ab", "cd"], "temperature": 0, "max_tokens": 6}
    frames = lenient.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )  # strictly, no reason is null
    *chunks, last = frames
    texts = ["", ""]
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    whole = go_on(["ab", "cd"])
    assert texts == [choice.text for choice in whole.choices]
    assert (last.choices, last.usage) == ([], whole.usage)


@pytest.mark.parametrize(
    ("asked", "param"), [({"suffix": "end"}, "suffix"), ({"best_of": 2}, "best_of"), ({"prompt": []}, "prompt")]
)
def test_what_is_not_offered_is_refused(go_on, asked: dict, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        go_on(**asked)
    assert refused.value.param == param
