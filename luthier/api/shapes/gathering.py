"""Whole answers, for a caller who is still there."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from fastapi import Request

from luthier.api.presence import while_present
from luthier.control.inference import answers
from luthier.control.inference.answers import Answer
from luthier.control.inference.service import Delta


async def gathered(
    request: Request, deltas: AsyncGenerator[Delta, None], count: int, *, with_logprobs: bool
) -> list[Answer]:
    """All answers to one prompt. Raises CallerLeft when the caller has gone away, which ends the work."""
    return await while_present(request, answers.gathered(deltas, count, with_logprobs=with_logprobs))
