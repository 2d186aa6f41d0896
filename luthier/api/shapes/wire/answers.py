"""The answer to a chat: whole, and as the chunks of a stream.

Answers are plain dictionaries, since a stream has thousands; the classes describe them for the API's document.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import ConfigDict, Field

from luthier.api.shapes.wire.base import Sent
from luthier.control.inference.answers import Answer
from luthier.serving.protocol import CalledTool, Finish, Likelihood, TokenLikelihood


class CachedTokens(Sent):
    cached_tokens: int


class ReasoningTokens(Sent):
    reasoning_tokens: int


class Usage(Sent):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: ReasoningTokens


class FunctionCalled(Sent):
    name: str
    arguments: str = Field(description="JSON, as a text.")


class ToolCalled(Sent):
    id: str
    type: Literal["function"]
    function: FunctionCalled


class TokenLogprob(Sent):
    token: str
    logprob: float
    bytes: list[int] | None


class ChosenLogprob(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class Logprobs(Sent):
    content: list[ChosenLogprob]
    refusal: None


class Message(Sent):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[ToolCalled] | None = None
    function_call: FunctionCalled | None = None


class Choice(Sent):
    index: int
    finish_reason: Literal["stop", "length", "tool_calls", "function_call"]
    message: Message
    logprobs: Logprobs | None


class ChatCompletion(Sent):
    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def usage_of(answers: Sequence[Answer | Finish]) -> dict[str, Any]:
    """Of all answers to one prompt, which is counted once; of it, what none of them had to read."""
    return usage(
        answers[0].prompt_tokens,
        sum(answer.completion_tokens for answer in answers),
        min(answer.cached_tokens for answer in answers),
    )


def usage_of_all(prompts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of the answers to several prompts, the usage of each added up."""
    return usage(
        sum(one["prompt_tokens"] for one in prompts),
        sum(one["completion_tokens"] for one in prompts),
        sum(one["prompt_tokens_details"]["cached_tokens"] for one in prompts),
    )


def choice(index: int, answer: Answer, *, calls_functions: bool = False) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
    if answer.tool_calls:
        message["content"] = answer.text or None
        if calls_functions:
            message["function_call"] = called(answer.tool_calls[0])["function"]
        else:
            message["tool_calls"] = [called(call) for call in answer.tool_calls]
    return {
        "index": index,
        "message": message,
        "finish_reason": reason(answer.reason, calls_functions=calls_functions),
        "logprobs": logprobs(answer.logprobs) if answer.logprobs is not None else None,
    }


def chunk_choice(index: int, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": reason, "logprobs": logprobs}


def called(call: CalledTool) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def reason(made: str, *, calls_functions: bool) -> str:
    return "function_call" if calls_functions and made == "tool_calls" else made


def logprobs(tokens: list[TokenLikelihood]) -> dict[str, Any]:
    content = [
        {**_likelihood(token), "top_logprobs": [_likelihood(one) for one in token.likeliest]} for token in tokens
    ]
    return {"content": content, "refusal": None}


LEAST_LOGPROB = -9999.0
"""JSON has no infinity: what clients are used to reading in its place."""


def _likelihood(token: Likelihood) -> dict[str, Any]:
    return {"token": token.token, "logprob": max(token.logprob, LEAST_LOGPROB), "bytes": token.bytes}
