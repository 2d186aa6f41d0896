"""Work that is done for a caller, and ends when he has gone away."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

T = TypeVar("T")


class CallerLeft(Exception):
    """Nobody is there to be answered."""


async def while_present(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work gives. The request's body must have been read.

    Raises CallerLeft when the connection is closed before, and then the work is cancelled.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise CallerLeft
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def nobody_answered(request: Request, left: Exception) -> Response:
    return Response(status_code=499)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
