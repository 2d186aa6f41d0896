"""Tool calls in generated text: whole ones are calls, everything else is text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.chat import calls
from luthier.chat.messages import Message, ToolCall

ONE = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "content", "arguments"),
    [
        ("Hello", "Hello", []),
        (ONE, "", ['{"a": 1}']),
        (f"Look:\n{ONE}", "Look:", ['{"a": 1}']),
        (f"Look:\n\n{ONE}\n{ONE}\n", "Look:\n", ['{"a": 1}', '{"a": 1}']),
        (f"{ONE}\nand then\n{ONE}", "\nand then", ['{"a": 1}', '{"a": 1}']),
        ('<tool_call>{"arguments":{"a" :[ 1]},"name":"f"}</tool_call>', "", ['{"a" :[ 1]}']),
        (
            '<tool_call>\n{"name": "f", "arguments": {"a": "</tool_call>"}}\n</tool_call>',
            "",
            ['{"a": "</tool_call>"}'],
        ),
        ("<tool_call>", "<tool_call>", []),
        (ONE[:-1], ONE[:-1], []),
        (ONE.replace("}}", "}"), ONE.replace("}}", "}"), []),
        (ONE.replace('{"a": 1}', '"a"'), ONE.replace('{"a": 1}', '"a"'), []),
        (ONE.replace('"f"', "1"), ONE.replace('"f"', "1"), []),
        (ONE.replace('"f"', '"\\ud800"'), ONE.replace('"f"', '"\\ud800"'), []),
        ("<tool_call>" + "[" * 100_000, "<tool_call>" + "[" * 100_000, []),
        (f"<tool_call>{ONE}", "<tool_call>", ['{"a": 1}']),
    ],
)
def test_whole_calls_are_read_and_the_rest_stays_text(text: str, content: str, arguments: list[str]) -> None:
    message = calls.read(text)
    assert (message.content, [call.arguments for call in message.tool_calls]) == (content, arguments)
    assert [call.id for call in message.tool_calls] == [f"call_{n}" for n in range(len(arguments))]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(
    content=st.text().filter(lambda text: calls.OPEN not in text),
    arguments=st.lists(st.dictionaries(st.text(max_size=4), VALUES, max_size=3), max_size=3),
)
def test_what_is_written_is_read_back(content: str, arguments: list[dict]) -> None:
    made = tuple(ToolCall(f"call_{n}", "f", calls.as_json(one)) for n, one in enumerate(arguments))
    assert calls.read(calls.write(content, made)) == Message("assistant", content, tool_calls=made)


@given(st.lists(st.sampled_from([*'{}[]":, \n1a', calls.OPEN, calls.CLOSE, '"name"', '"arguments"', ONE])).map("".join))
def test_no_text_is_refused(text: str) -> None:
    assert isinstance(calls.read(text).text, str)
