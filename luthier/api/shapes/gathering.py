"""Whole answers, for a caller who is still there."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import Request

from luthier.control.inference.answers import Answer, Gathering
from luthier.control.inference.service import Delta


async def gathered(
    request: Request, deltas: AsyncGenerator[Delta, None], count: int, *, with_logprobs: bool
) -> list[Answer] | None:
    """All answers to one prompt; None when the caller has gone away, which ends the work."""
    gathering = Gathering(count, with_logprobs=with_logprobs)
    async with aclosing(deltas):
        async for delta in deltas:
            gathering.add(delta)
            if await request.is_disconnected():
                return None
    return gathering.answers
