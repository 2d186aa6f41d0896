"""Tools: offered, demanded, called, answered; in the newer form and in the older one."""

from __future__ import annotations

import json

import openai
import pytest
from openai import OpenAI

WEATHER = {
    "name": "weather",
    "description": "Tell the weather.",
    "parameters": {
        "type": "object",
        "properties": {"is_today": {"type": "boolean"}},
        "required": ["is_today"],
        "additionalProperties": False,
    },
}
CLOCK = {"name": "clock", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}
TOOLS = [{"type": "function", "function": function} for function in (WEATHER, CLOCK)]
NAMED = {"type": "function", "function": {"name": "weather"}}
ASKED = {"tools": TOOLS, "max_tokens": 200, "temperature": 1, "seed": 1}


def test_a_demanded_tool_is_called_with_arguments_of_its_schema(say) -> None:
    for is_parallel in (True, False):
        [choice] = say(**ASKED, tool_choice=NAMED, parallel_tool_calls=is_parallel).choices
        assert choice.finish_reason == "tool_calls"
        for call in choice.message.tool_calls:
            assert (call.type, call.function.name) == ("function", "weather")
            assert isinstance(json.loads(call.function.arguments)["is_today"], bool)
        ids = [call.id for call in choice.message.tool_calls]
        assert len(ids) == len(set(ids)) >= 1
    assert (len(ids), choice.message.content) == (1, None)


def test_any_tool_may_be_demanded(say) -> None:
    message = say(**ASKED, tool_choice="required", parallel_tool_calls=False).choices[0].message
    assert [call.function.name in ("weather", "clock") for call in message.tool_calls] == [True]


def test_a_stream_of_calls_says_the_same(say) -> None:
    whole = say(**ASKED, tool_choice=NAMED, parallel_tool_calls=False).choices[0].message.tool_calls
    chunks = list(say(**ASKED, tool_choice=NAMED, parallel_tool_calls=False, stream=True))
    told: dict[int, dict[str, str]] = {}
    for chunk in chunks:
        for call in chunk.choices[0].delta.tool_calls or []:
            made = told.setdefault(call.index, {"id": "", "name": "", "arguments": ""})
            made["id"] += call.id or ""
            made["name"] += call.function.name or ""
            made["arguments"] += call.function.arguments or ""
    assert list(told) == list(range(len(whole)))
    assert [(one["name"], one["arguments"]) for one in told.values()] == [
        (call.function.name, call.function.arguments) for call in whole
    ]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_the_clients_own_stream_helper_gathers_calls(client: OpenAI) -> None:
    asked = {**ASKED, "tool_choice": NAMED, "messages": [{"role": "user", "content": "ab"}]}
    with client.chat.completions.stream(model="toy", **asked) as stream:
        for _ in stream:
            pass
        [choice] = stream.get_final_completion().choices
    assert choice.message.tool_calls[0].function.name == "weather"


def test_tools_that_are_offered_and_not_wanted_change_nothing_of_the_form(say) -> None:
    for choice in ("auto", "none"):
        answer = say(tools=TOOLS, tool_choice=choice, max_tokens=8).choices[0]
        assert answer.finish_reason in ("stop", "length")
        assert answer.message.tool_calls is None


def test_a_call_and_its_result_go_back_to_the_model(client: OpenAI, say) -> None:
    message = say(**ASKED, tool_choice=NAMED, parallel_tool_calls=False).choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "rain"} for call in message.tool_calls]
    answer = client.chat.completions.create(
        model="toy", messages=[{"role": "user", "content": "ab"}, message, *results], tools=TOOLS, max_tokens=4
    )
    assert answer.choices[0].finish_reason in ("stop", "length")


def test_functions_are_called_in_the_older_form(client: OpenAI, say) -> None:
    asked = {"functions": [WEATHER], "function_call": {"name": "weather"}, "max_tokens": 200, "temperature": 1}
    [choice] = say(**asked, seed=1).choices
    assert choice.finish_reason == "function_call"
    assert isinstance(json.loads(choice.message.function_call.arguments)["is_today"], bool)
    deltas = [chunk.choices[0] for chunk in say(**asked, seed=1, stream=True)]
    [called] = [one.delta.function_call for one in deltas if one.delta.function_call]
    assert (called.name, called.arguments) == ("weather", choice.message.function_call.arguments)
    assert deltas[-1].finish_reason == "function_call"
    older = {"role": "assistant", "content": None, "function_call": choice.message.function_call.model_dump()}
    result = {"role": "function", "name": "weather", "content": "rain"}
    answer = client.chat.completions.create(
        model="toy", messages=[{"role": "user", "content": "ab"}, older, result], functions=[WEATHER], max_tokens=4
    )
    assert answer.choices


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "sun"}}}, "tool_choice.function.name"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
    ],
)
def test_a_wrong_choice_is_refused_by_name(say, asked: dict, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        say(**{"tools": TOOLS} | asked)
    assert refused.value.param == param
