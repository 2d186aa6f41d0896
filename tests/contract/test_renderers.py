"""Every renderer keeps the promises of the contract, for every tokenizer at hand that it recognises."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.chat.messages import Conversation, Message
from luthier.chat.renderers.base import PROBES, Renderer, renderer_for, renderers
from luthier.chat.tokenizer import Tokenizer

TOKENIZERS = ("toy", "embedded")
EMBEDDED_CARD = Path(__file__).parents[2] / ".luthier/objects/models/smollm2-135m-instruct/card.json"


def talk(*turns: str, system: str | None = None) -> Conversation:
    first = [Message("system", system)] if system is not None else []
    said = [Message("assistant" if place % 2 else "user", turn) for place, turn in enumerate(turns)]
    return Conversation((*first, *said))


CONVERSATIONS = {
    "one turn": talk("What is the capital of France?", "Paris."),
    "with a system": talk("Hi", "Hello!", system="Be brief."),
    "with an empty system": talk("Hi", "Hello!", system=""),
    "several turns": talk("1 + 1", "2", "and one more", "3", "and one more", "4"),
    "several lines": talk("def f(x):\n    return  x + 1\n", "It adds one:\n\n```python\nf(1) == 2\n```\n\nDone."),
    "blanks at the ends": talk("  indented  ", "an answer with a blank at its end "),
    "Chinese": talk("谢谢！", "不客气", system="请用中文回答。"),
    "signs of many bytes": talk(
        "e\u0301 \U0001f642 \U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f642\U0001f642"
    ),
    "digits": talk("Count to 12", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12"),
    "markup": talk("{{ messages }} {% raw %}", "<b>[INST]</b> </s>"),
    "an empty question": talk("", "Did you want to ask something?"),
    **{f"probe {number}": probe for number, probe in enumerate(PROBES)},
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "embedded" and not EMBEDDED_CARD.exists():
        pytest.skip("the embedded model was not brought yet; `make demo` brings it")
    return Tokenizer(request.getfixturevalue(f"{request.param}_folder"))


@pytest.fixture(scope="module", params=renderers.names())
def renderer(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> Renderer:
    family = renderers.load(request.param)
    if not family.recognises(tokenizer):
        pytest.skip("a renderer of another family")
    return family(tokenizer)


@pytest.fixture(params=CONVERSATIONS)
def conversation(request: pytest.FixtureRequest) -> Conversation:
    return CONVERSATIONS[request.param]


def asked(conversation: Conversation, turns: int = -1) -> Conversation:
    """The conversation up to its last question, or its first `turns` messages."""
    return Conversation(conversation.messages[:turns])


def test_some_renderer_recognises_every_tokenizer(tokenizer: Tokenizer) -> None:
    assert renderer_for(tokenizer).fingerprint()


def test_the_generation_prompt_equals_the_tokenizers_own_template(
    renderer: Renderer, tokenizer: Tokenizer, conversation: Conversation
) -> None:
    template = tokenizer.template(list(asked(conversation).messages), generation_prompt=True)
    assert renderer.prompt(asked(conversation)) == tokenizer.encode(template)


def test_an_example_begins_with_the_generation_prompt_and_trains_what_follows(
    renderer: Renderer, conversation: Conversation
) -> None:
    messages = conversation.messages
    for place in (place for place, message in enumerate(messages) if message.role == "assistant"):
        prompt = renderer.prompt(asked(conversation, place))
        only = [Message(m.role, m.content, trained=n == place) for n, m in enumerate(messages)]
        rendered = renderer.example(Conversation(tuple(only)))
        assert rendered.tokens[: len(prompt)] == prompt
        assert rendered.weights.index(1.0) == len(prompt)


def test_parsing_the_trained_tokens_gives_the_answer_back(renderer: Renderer, conversation: Conversation) -> None:
    *shown, answer = conversation.messages
    last = Conversation((*(Message(m.role, m.content, trained=False) for m in shown), answer))
    rendered = renderer.example(last)
    said = [token for token, weight in zip(rendered.tokens, rendered.weights, strict=True) if weight]
    assert renderer.parse(said) == Message("assistant", answer.content)
    assert renderer.parse([*said, *said]).content == answer.content  # nothing after the first stop counts


def test_a_longer_conversation_begins_with_the_shorter_one(renderer: Renderer, conversation: Conversation) -> None:
    whole = renderer.example(conversation)
    for turns in range(2 + (conversation.messages[0].role == "system"), len(conversation.messages), 2):
        part = renderer.example(asked(conversation, turns))
        assert whole.tokens[: len(part.tokens)] == part.tokens
        assert whole.weights[: len(part.weights)] == part.weights


def test_every_trained_turn_ends_in_a_trained_stop(renderer: Renderer, conversation: Conversation) -> None:
    rendered = renderer.example(conversation)
    pairs = list(zip(rendered.tokens, rendered.weights, strict=True))
    ends = [n for n, (_, weight) in enumerate(pairs) if weight and (n + 1 == len(pairs) or not pairs[n + 1][1])]
    assert len(ends) == sum(message.role == "assistant" for message in conversation.messages)
    assert all(pairs[end][0] in renderer.stops for end in ends)
    assert set(rendered.weights) == {0.0, 1.0}


def test_a_turn_that_is_shown_but_not_trained_has_no_weight(renderer: Renderer) -> None:
    user, answer = Message("user", "1 + 1"), Message("assistant", "2")
    both = renderer.example(Conversation((user, answer, user, answer)))
    second = renderer.example(Conversation((user, Message("assistant", "2", trained=False), user, answer)))
    none = renderer.example(Conversation((user, Message("assistant", "2", trained=False))))
    assert second.tokens == both.tokens
    assert second.trained == both.trained // 2
    assert none.trained == 0


def test_equal_renderers_have_equal_fingerprints_and_others_do_not(renderer: Renderer, tokenizer: Tokenizer) -> None:
    class Louder(type(renderer)):  # type: ignore[misc]
        def prompt(self, conversation: Conversation) -> list[int]:
            return [*super().prompt(conversation), 0]

    assert type(renderer)(tokenizer).fingerprint() == renderer.fingerprint()
    assert Louder(tokenizer).fingerprint() != renderer.fingerprint()
