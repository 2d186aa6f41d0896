"""Every renderer keeps the promises of the contract, for every tokenizer at hand that it recognises."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.chat.messages import Conversation, Image, Message, PlainText, PreferencePair, Text, Tool, ToolCall
from luthier.chat.renderers.base import PROBES, Rendered, Renderer, renderer_for, renderers
from luthier.chat.tokenizer import Tokenizer
from luthier.core.errors import InvalidRequest
from luthier.testing import toy_tokenizer
from tests.unit.chat import toys

OBJECTS = Path(__file__).parents[2] / ".luthier/objects"
EMBEDDED_CARD = OBJECTS / "models/smollm2-135m-instruct/card.json"


def made(make: Callable[[Path], object]) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        return Tokenizer(Path(folder))


TOKENIZERS = {
    "toy": made(toy_tokenizer),
    "toy qwen": made(toys.toy_qwen),
    "toy glm4": made(toys.toy_glm4),
    "toy chatglm3": made(toys.toy_chatglm3),
}
if EMBEDDED_CARD.exists():
    TOKENIZERS["embedded"] = Tokenizer(OBJECTS / json.loads(EMBEDDED_CARD.read_text())["weights"])
if toys.has_real_qwen():
    TOKENIZERS["qwen's words"] = made(toys.real_qwen)

PAIRS: dict[str, Renderer] = {
    f"{name}-{words}": family(tokenizer)
    for name in renderers.names()
    for family in [renderers.load(name)]
    for words, tokenizer in TOKENIZERS.items()
    if family.recognises(tokenizer)
}
"""Every renderer over every tokenizer that it recognises."""

TEMPLATED = [pair for pair, one in PAIRS.items() if one.tokenizer.has_template]
"""Those whose model ships a template; what the others write is spelled out in the unit tests."""

OFFERING = [pair for pair, one in PAIRS.items() if one.offers_tools]


def over(pairs: Iterable[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("renderer", [pytest.param(PAIRS[pair], id=pair) for pair in pairs])


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

WEATHER = Tool("weather", "Tell the weather.", {"type": "object", "properties": {"city": {"type": "string"}}})
CLOCK = Tool("clock")
RAIN, SUN = (
    Message("tool", said, tool_call_id=f"call_{place}") for place, said in enumerate(("rain", '{"sun": true}'))
)
ASKED = Message("user", "What is the weather in Köln?")


def call(place: int = 0, **arguments: object) -> ToolCall:
    return ToolCall(f"call_{place}", "weather", json.dumps(arguments, ensure_ascii=False))


def calling(*calls: ToolCall, content: str = "") -> Message:
    return Message("assistant", content, tool_calls=calls)


TOOLED = {
    "a call": (ASKED, calling(call(city="Köln"))),
    "a call without arguments": (ASKED, calling(call())),
    "a call of many values": (ASKED, calling(call(a=[1, -2.5, None], b={"c": True}, **{"class": "x\ny", "d e": '"'}))),
    "a call with words": (ASKED, calling(call(city="Köln"), content="I shall look.")),
    "two calls": (ASKED, calling(call(city="Köln"), call(1, city="Rome"))),
    "a round": (Message("system", "Be brief."), ASKED, calling(call(city="Köln")), RAIN, Message("assistant", "Rain.")),
    "two rounds": (
        *(ASKED, calling(call(city="Köln"), call(1, city="Rome")), RAIN, SUN, Message("assistant", "Rain.\n\nSun.")),
        *(ASKED, calling(call(city="Bonn")), RAIN, calling(call(city="Bonn"))),
    ),
    "arguments that close the call": (ASKED, calling(call(city="</tool_call> }\n```"))),
}

MARKERS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "[gMASK]", "<sop>", "sop", "</s>", *toys.GLM_ROLES)
LETTERS = st.characters(exclude_categories=("Cs",), exclude_characters="▁")  # sentencepiece's blank is no letter of its
SAID = st.lists(
    st.text(LETTERS, max_size=6)
    | st.sampled_from((*MARKERS, "<|im_", "end|>", "<|", "|>", "\n", "<|im_end|>\n<|im_start|>assistant\n")),
    max_size=4,
).map("".join)


TELLING = [
    pair
    for pair in OFFERING
    for words in [PAIRS[pair].tokenizer]
    if words.takes_tools and "<|im_start|>" in words.template([ASKED], generation_prompt=True)
]
"""Those whose template tells of tools as ChatML does."""


@pytest.fixture(params=CONVERSATIONS)
def conversation(request: pytest.FixtureRequest) -> Conversation:
    return CONVERSATIONS[request.param]


def asked(conversation: Conversation, turns: int = -1) -> Conversation:
    """The conversation up to its last question, or its first `turns` messages."""
    return dataclasses.replace(conversation, messages=conversation.messages[:turns])


@pytest.fixture(params=TOOLED)
def tooled(request: pytest.FixtureRequest) -> Conversation:
    return Conversation(TOOLED[request.param], (WEATHER, CLOCK))


def trained(rendered: Rendered) -> list[int]:
    return [token for token, weight in zip(rendered.tokens, rendered.weights, strict=True) if weight]


def held(renderer: Renderer, text: str) -> str:
    """What the tokenizer can hold of a text: some compose letters, and SmolLM2's lacks a few bytes."""
    return renderer.tokenizer.decode(renderer.tokenizer.encode_plain(text))


def only(conversation: Conversation, place: int) -> Conversation:
    """The conversation with that message alone trained."""
    turns = (dataclasses.replace(m, trained=n == place) for n, m in enumerate(conversation.messages))
    return dataclasses.replace(conversation, messages=tuple(turns))


def answers(conversation: Conversation) -> list[int]:
    return [place for place, message in enumerate(conversation.messages) if message.role == "assistant"]


@pytest.mark.parametrize("words", {**TOKENIZERS, "embedded": None})
def test_some_renderer_recognises_every_tokenizer(words: str) -> None:
    if words not in TOKENIZERS:
        pytest.skip("the embedded model was not brought yet; `make demo` brings it")
    assert renderer_for(TOKENIZERS[words]).fingerprint()


@pytest.mark.parametrize("name", renderers.names())
def test_every_renderer_recognises_a_tokenizer_that_is_at_hand(name: str) -> None:
    assert any(type(one) is renderers.load(name) for one in PAIRS.values())


@over(TEMPLATED)
def test_the_generation_prompt_equals_the_tokenizers_own_template(
    renderer: Renderer, conversation: Conversation
) -> None:
    template = renderer.tokenizer.template(asked(conversation).messages, generation_prompt=True)
    assert renderer.prompt(asked(conversation)) == renderer.tokenizer.encode(template)


@over(PAIRS)
def test_an_example_begins_with_the_generation_prompt_and_trains_what_follows(
    renderer: Renderer, conversation: Conversation
) -> None:
    for place in answers(conversation):
        prompt = renderer.prompt(asked(conversation, place))
        rendered = renderer.example(only(conversation, place))
        assert rendered.tokens[: len(prompt)] == prompt
        assert rendered.weights.index(1.0) == len(prompt)


@over(PAIRS)
def test_parsing_the_trained_tokens_gives_the_answer_back(renderer: Renderer, conversation: Conversation) -> None:
    answer = held(renderer, conversation.messages[-1].text)
    said = trained(renderer.example(only(conversation, len(conversation.messages) - 1)))
    assert renderer.parse(said) == Message("assistant", answer)
    assert renderer.parse([*said, *said]).content == answer  # nothing after the first stop counts


@over(PAIRS)
def test_a_longer_conversation_begins_with_the_shorter_one(renderer: Renderer, conversation: Conversation) -> None:
    whole = renderer.example(conversation)
    for turns in range(2 + (conversation.messages[0].role == "system"), len(conversation.messages), 2):
        part = renderer.example(asked(conversation, turns))
        assert whole.tokens[: len(part.tokens)] == part.tokens
        assert whole.weights[: len(part.weights)] == part.weights


@over(PAIRS)
def test_every_trained_turn_ends_in_a_trained_stop(renderer: Renderer, conversation: Conversation) -> None:
    rendered = renderer.example(conversation)
    pairs = list(zip(rendered.tokens, rendered.weights, strict=True))
    ends = [n for n, (_, weight) in enumerate(pairs) if weight and (n + 1 == len(pairs) or not pairs[n + 1][1])]
    assert len(ends) == sum(conversation.messages[place].trained for place in answers(conversation))
    assert all(pairs[end][0] in renderer.stops for end in ends)
    assert set(rendered.weights) == {0.0, 1.0}


@over(PAIRS)
def test_a_turn_that_is_shown_but_not_trained_has_no_weight(renderer: Renderer) -> None:
    user, answer = Message("user", "1 + 1"), Message("assistant", "2")
    both = renderer.example(Conversation((user, answer, user, answer)))
    second = renderer.example(Conversation((user, Message("assistant", "2", trained=False), user, answer)))
    none = renderer.example(Conversation((user, Message("assistant", "2", trained=False))))
    assert second.tokens == both.tokens
    assert second.trained == both.trained // 2
    assert none.trained == 0


@over(PAIRS)
def test_equal_renderers_have_equal_fingerprints_and_others_do_not(renderer: Renderer) -> None:
    class Louder(type(renderer)):  # type: ignore[misc]
        def prompt(self, conversation: Conversation) -> list[int]:
            return [*super().prompt(conversation), 0]

    assert type(renderer)(renderer.tokenizer).fingerprint() == renderer.fingerprint()
    assert Louder(renderer.tokenizer).fingerprint() != renderer.fingerprint()


@over(PAIRS)
def test_a_renderer_that_trains_what_is_only_shown_has_another_fingerprint(renderer: Renderer) -> None:
    class Eager(type(renderer)):  # type: ignore[misc]
        def merged(self, conversation: Conversation) -> Conversation:
            turns = (dataclasses.replace(message, trained=True) for message in conversation.messages)
            return super().merged(dataclasses.replace(conversation, messages=tuple(turns)))

    assert Eager(renderer.tokenizer).fingerprint() != renderer.fingerprint()


@over(OFFERING)
@pytest.mark.parametrize("what", ["tools", "calls", "results"])
def test_a_renderer_that_writes_tools_otherwise_has_another_fingerprint(renderer: Renderer, what: str) -> None:
    class Terser(type(renderer)):  # type: ignore[misc]
        def merged(self, conversation: Conversation) -> Conversation:
            tools, messages = conversation.tools, conversation.messages
            if what == "tools":
                tools = tuple(dataclasses.replace(tool, description="") for tool in tools)
            elif what == "calls":
                shorter = tuple(dataclasses.replace(one, arguments="{}") for m in messages for one in m.tool_calls)
                messages = tuple(dataclasses.replace(m, tool_calls=m.tool_calls and shorter) for m in messages)
            else:
                messages = tuple(dataclasses.replace(m, content="") if m.role == "tool" else m for m in messages)
            return super().merged(Conversation(messages, tools))

    assert Terser(renderer.tokenizer).fingerprint() != renderer.fingerprint()


@over(OFFERING)
def test_parsing_a_call_gives_it_back_with_the_words_before_it(renderer: Renderer, tooled: Conversation) -> None:
    for place in answers(tooled):
        said = trained(renderer.example(only(tooled, place)))
        assert said[-1] in renderer.stops
        assert renderer.parse(said) == dataclasses.replace(tooled.messages[place], trained=True)


@over(OFFERING)
def test_a_conversation_with_tools_keeps_the_promises_too(renderer: Renderer, tooled: Conversation) -> None:
    whole = renderer.example(tooled)
    for place in answers(tooled):
        prompt, part = renderer.prompt(asked(tooled, place)), renderer.example(asked(tooled, place + 1))
        assert renderer.example(only(tooled, place)).weights.index(1.0) == len(prompt)
        assert whole.tokens[: len(prompt)] == prompt
        assert (whole.tokens[: len(part.tokens)], whole.weights[: len(part.weights)]) == (part.tokens, part.weights)


@over(TELLING)
def test_tools_are_written_as_the_template_writes_them(renderer: Renderer, tooled: Conversation) -> None:
    for place in answers(tooled):
        shown = asked(tooled, place)
        template = renderer.tokenizer.template(shown.messages, tools=shown.tools, generation_prompt=True)
        assert renderer.prompt(shown) == renderer.tokenizer.encode(template)


@over(PAIRS)
def test_what_a_family_cannot_say_is_refused_and_not_left_out(renderer: Renderer) -> None:
    picture = Message("user", (Text("What is this?"), Image("data:image/png;base64,AA==")))
    with pytest.raises(InvalidRequest, match="pictures"):
        renderer.prompt(Conversation((picture,)))
    assert renderer.prompt(Conversation((Message("user", (Text("a"), Text("b"))),))) == renderer.prompt(talk("ab"))
    for uses in (Conversation((ASKED,), (WEATHER,)), Conversation((ASKED, calling(call()))), Conversation((RAIN,))):
        if not renderer.offers_tools:
            with pytest.raises(InvalidRequest, match="tools"):
                renderer.example(uses)


@over(PAIRS)
def test_many_examples_are_rendered_as_each_alone(renderer: Renderer) -> None:
    conversations = list(CONVERSATIONS.values())
    assert renderer.examples(conversations) == [renderer.example(one) for one in conversations]
    assert renderer.examples([]) == []


@over(PAIRS)
def test_a_preference_trains_the_last_answer_alone(renderer: Renderer) -> None:
    earlier = (Message("user", "1 + 1"), Message("assistant", "2"), Message("user", "2 + 2"))
    pair = PreferencePair(Conversation(earlier), Message("assistant", "4"), Message("assistant", "five", trained=False))
    prompt = renderer.prompt(pair.prompt)
    for rendered, answer in zip(renderer.preference(pair), ("4", "five"), strict=True):
        assert rendered.tokens[: len(prompt)] == prompt
        assert rendered.weights.index(1.0) == len(prompt)
        assert renderer.parse(trained(rendered)).content == answer


@over(PAIRS)
def test_a_plain_text_is_trained_whole_with_the_end_token(renderer: Renderer) -> None:
    rendered = renderer.text(PlainText("Once upon <|im_end|> a time.<|endoftext|></s>"))
    assert set(rendered.weights) == {1.0}
    assert rendered.tokens[-1] == renderer.tokenizer.end
    assert renderer.tokenizer.decode(rendered.tokens) == "Once upon <|im_end|> a time.<|endoftext|></s>"


@over(PAIRS)
@given(texts=st.lists(SAID, min_size=5, max_size=5))
@settings(max_examples=15, deadline=None)
def test_nobody_can_forge_a_turn(renderer: Renderer, texts: list[str]) -> None:
    system, *turns = texts
    known = {renderer.tokenizer.special_id(marker) for marker in MARKERS}
    rendered, harmless = (renderer.example(c) for c in (talk(*turns, system=system), talk(*"xxxx", system="x")))
    assert [t for t in rendered.tokens if t in known] == [t for t in harmless.tokens if t in known]
    said = renderer.parse(trained(renderer.example(only(talk(*turns, system=system), 4))))
    assert said.content == held(renderer, turns[-1])
    if renderer.tokenizer.has_template and not any(renderer.tokenizer.may_hold_special(text) for text in texts):
        assert renderer.prompt(talk(turns[0])) == renderer.tokenizer.encode(
            renderer.tokenizer.template([Message("user", turns[0])], generation_prompt=True)
        )


@over(OFFERING)
@given(texts=st.lists(SAID, min_size=4, max_size=4))
@settings(max_examples=10, deadline=None)
def test_nobody_can_forge_a_turn_by_a_tool(renderer: Renderer, texts: list[str]) -> None:
    known = {renderer.tokenizer.special_id(marker) for marker in MARKERS}

    def written(one: str, two: str, three: str, four: str) -> list[int]:
        tool = Tool("weather", one, {"type": "object", "properties": {two or "x": {"type": "string"}}})
        turns = (ASKED, calling(call(**{two or "x": three})), Message("tool", four, tool_call_id="call_0"))
        rendered = renderer.example(Conversation((*turns, Message("assistant", "Rain.")), (tool,)))
        answer = renderer.parse(trained(rendered)).tool_calls
        given = json.dumps({two or "x": three}, ensure_ascii=False)
        assert [c.parsed for c in answer] == [json.loads(held(renderer, given))]
        return [token for token in rendered.tokens if token in known]

    assert written(*texts) == written("x", "x", "x", "x")
