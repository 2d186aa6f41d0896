"""Whole answers, put together from what is told of them as they are made."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from luthier.control.inference.service import Delta
from luthier.serving.protocol import CalledTool, Finish, TokenLikelihood


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: str = ""
    tool_calls: list[CalledTool] = Field(default_factory=list)
    logprobs: list[TokenLikelihood] | None = Field(default=None, description="None where they were not asked for.")
    reason: Literal["stop", "length", "tool_calls"] = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class Gathering:
    """Takes in the deltas of so many answers to one prompt."""

    def __init__(self, count: int, *, with_logprobs: bool) -> None:
        self.answers = [Answer(logprobs=[] if with_logprobs else None) for _ in range(count)]
        self._texts: list[list[str]] = [[] for _ in range(count)]

    def add(self, delta: Delta) -> None:
        answer, texts, part = self.answers[delta.choice], self._texts[delta.choice], delta.part
        if isinstance(part, Finish):
            answer.text = "".join(texts)
            answer.reason = part.reason
            answer.prompt_tokens, answer.completion_tokens = part.prompt_tokens, part.completion_tokens
            answer.cached_tokens = part.cached_tokens
            return
        texts.append(part.text)
        answer.tool_calls += part.tool_calls
        if answer.logprobs is not None:
            answer.logprobs += part.logprobs


async def gathered(deltas: AsyncGenerator[Delta, None], count: int, *, with_logprobs: bool) -> list[Answer]:
    """All answers, once they are whole."""
    gathering = Gathering(count, with_logprobs=with_logprobs)
    async with aclosing(deltas):
        async for delta in deltas:
            gathering.add(delta)
    return gathering.answers
