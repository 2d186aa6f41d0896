"""An async iterator of frames → DashScope's server-sent events: numbered, no space after a field's colon, no end mark."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from luthier.api.dashscope import errors
from luthier.api.streaming import EventStream, in_one_line
from luthier.core import logs
from luthier.core.errors import InternalError, LuthierError

log = logs.get("dashscope")

_KEEP_ALIVE = b":keep-alive\n\n"


def server_sent_events(frames: AsyncGenerator[dict[str, Any] | None, None], request_id: str) -> EventStream:
    """Send every frame, and a comment where there is None. What is raised in between becomes the last frame.

    Its status is written on a line of its own, which comes before the data: without it the module API reads 400.
    """

    async def body() -> AsyncGenerator[bytes, None]:
        number = 0
        async with aclosing(frames):
            try:
                async for frame in frames:
                    if frame is None:
                        yield _KEEP_ALIVE
                        continue
                    number += 1
                    yield _event(number, "result", 200, frame)
            except LuthierError as error:
                yield _failed(number + 1, error, request_id)
            except Exception:
                log.exception("a stream failed")
                fault = InternalError("The server made a mistake; its log has the rest.")
                yield _failed(number + 1, fault, request_id)

    return EventStream(body())


def _failed(number: int, error: LuthierError, request_id: str) -> bytes:
    status = errors.status_of(type(error))
    return _event(number, "error", status, errors.body(error, request_id), f"status:{status}\n")


def _event(number: int, kind: str, status: int, data: dict[str, Any], more: str = "") -> bytes:
    head = f"id:{number}\nevent:{kind}\n:HTTP_STATUS/{status}\n{more}data:"
    return head.encode() + in_one_line(data) + b"\n\n"
