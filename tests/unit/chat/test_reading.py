"""An answer read while it is made says what the whole of it says, and keeps nothing back without need."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.chat import calls
from luthier.chat.messages import ToolCall
from luthier.chat.reading import AnswerReader, BlockReader, Said
from luthier.chat.renderers.base import Renderer, renderer_for
from luthier.chat.tokenizer import Tokenizer
from tests.unit.chat import toys

ONE = '<tool_call>\n{"name": "f", "arguments": {"a": "}<\\""}}\n</tool_call>'
PIECES = [*'{}[]":, \n1a\\', calls.OPEN, calls.CLOSE, '"name"', '"arguments"', ONE, ONE[:20], "\n\n", "text"]


def joined(said: list[Said]) -> tuple[str, list[tuple[str, str]]]:
    text = "".join(one for one in said if isinstance(one, str))
    return text, [(one.name, one.arguments) for one in said if isinstance(one, ToolCall)]


def read(reader: AnswerReader, pieces: list[str]) -> list[Said]:
    return [*(one for piece in pieces for one in reader.add(piece)), *reader.rest()]


@settings(max_examples=500)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=14), cuts=st.lists(st.integers(1, 9), min_size=1))
def test_whatever_the_cuts_it_is_what_the_whole_says(pieces: list[str], cuts: list[int]) -> None:
    text, cut, parts = "".join(pieces), 0, []
    while text[cut:]:
        width = cuts[len(parts) % len(cuts)]
        parts.append(text[cut : cut + width])
        cut += width
    whole = calls.read(text)
    assert joined(read(BlockReader(), parts)) == (whole.text, [(c.name, c.arguments) for c in whole.tool_calls])


@pytest.mark.parametrize(
    ("added", "given"),
    [
        (["Look", ":\n", "<tool", "_call>"], ["Look", ":", "", ""]),
        (["a\n", "b"], ["a", "\nb"]),
        (["1 <", "2"], ["1 ", "<2"]),
        (["<tool_call> is", " a marker"], ["<tool_call> is", " a marker"]),
        (['<tool_call>{"name": 1}', "</tool_call>", "x"], ["", '<tool_call>{"name": 1}</tool_call>', "x"]),
        (['<tool_call>{"name": "f"}', "\nx"], ["", '<tool_call>{"name": "f"}\nx']),
        ([ONE, " \n", "x"], ["call f", "", " \nx"]),
        ([ONE[:-1], ">"], ["", "call f"]),
    ],
)
def test_text_goes_on_as_soon_as_it_cannot_be_a_call(added: list[str], given: list[str]) -> None:
    reader = BlockReader()
    found = []
    for text in added:
        said = reader.add(text)
        found.append("".join(one if isinstance(one, str) else f"call {one.name}" for one in said))
    assert found == given


def test_what_is_held_is_what_was_not_given_yet() -> None:
    reader, given = BlockReader(), ""
    for letter in (text := f"one <tool {ONE[:30]} two <tool_call>"):
        given += "".join(one for one in reader.add(letter) if isinstance(one, str))
        assert text.startswith(given + reader.held)


@pytest.fixture(scope="module", params=["glm4", "chatglm3"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    folder = tmp_path_factory.mktemp(request.param)
    return renderer_for(Tokenizer(getattr(toys, f"toy_{request.param}")(folder)))


ANSWERS = {
    "a text": ["\n Hello there"],
    "a text without a first line": ["Hello there\nand more"],
    "one word": ["Hello"],
    "a word above a text": ["Hello\nthere"],
    "a call": ['weather\n{"city": "Rome"}'],
    "a text, then a call": ["\nLook", 'weather\n{"city": "Rome"}'],
    "two calls": ['weather\n{"city": "Rome"}', 'time\n{"zone": {"a": 1}}'],
    "a call that is not whole": ['weather\n{"city": "Rome"'],
    "Python": ["weather\n```python\ntool_call(city='Rome')\n```"],
    "two texts": ["\none", "\ntwo"],
    "nothing": [""],
}


@pytest.mark.parametrize("answer", list(ANSWERS))
def test_a_family_with_first_lines_reads_the_same_piece_by_piece(family: Renderer, answer: str) -> None:
    divider = family.divider
    assert divider is not None
    reader, said, tokens = family.reader(calls=True), [], []
    for place, part in enumerate(ANSWERS[answer]):
        if place:
            said += reader.divide()
            tokens.append(divider)
        head, line_feed, below = part.partition("\n")
        encoded = [family.tokenizer.encode_plain(text) for text in (head + line_feed, below) if text]
        ids = [token for run in encoded for token in run]
        tokens += ids
        done = ""
        for length in range(1, len(ids) + 1):
            text = family.tokenizer.decode(ids[:length])
            said += reader.add(text[len(done) :])
            done = text
    said += reader.rest()
    whole = family.message(tokens)
    assert joined(said) == (whole.text, [(c.name, c.arguments) for c in whole.tool_calls])


def test_a_text_without_a_first_line_is_given_at_once(family: Renderer) -> None:
    reader = family.reader(calls=True)
    assert [reader.add(text) for text in ("Hello", ", you", " there")] == [[], ["Hello, you"], [" there"]]
    assert [family.reader(calls=False).add("Hello")] == [["Hello"]]


@pytest.mark.parametrize("toy", ["toy_qwen", "toy_glm4", "toy_chatglm3"])
def test_arguments_between_the_words_of_a_family_are_a_call(tmp_path: Path, toy: str) -> None:
    family = renderer_for(Tokenizer(getattr(toys, toy)(tmp_path)))
    around = family.around_call("weather")
    if around is None:
        assert toy == "toy_chatglm3"
        return
    [call] = family.message(family.tokenizer.encode_plain('{"city": "Rome"}'.join(around))).tool_calls
    assert (call.name, call.arguments) == ("weather", '{"city": "Rome"}')
    text = family.message(family.tokenizer.encode_plain(family.before_text() + "Hi")).text
    assert text == "Hi"
