"""An async iterator of frames → server-sent events, each flushed by itself; closing the connection closes the iterator."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from luthier.core import logs
from luthier.core.errors import InternalError, LuthierError

log = logs.get("streaming")


class EventStream(StreamingResponse):
    """Server-sent events. However the answer ends, what makes them is closed with it."""

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()


_encode = msgspec.json.Encoder().encode

_ENDS_OF_LINES = {sign.encode(): f"\\u{ord(sign):04x}".encode() for sign in ("\x85", "\u2028", "\u2029")}

EVENT: dict[str, Any] = {
    "type": "object",
    "description": "One event of the stream.",
    "properties": {
        "id": {"type": "string"},
        "event": {"type": "string"},
        "data": {"type": "string", "description": "JSON, as a text."},
    },
    "required": ["data"],
}
"""For the API's document: what a text/event-stream is made of."""


def server_sent_events(
    frames: AsyncGenerator[dict[str, Any], None], error_body: Callable[[LuthierError], dict[str, Any]]
) -> EventStream:
    """Send every frame as a `data:` event, then `[DONE]`.

    What is raised in between becomes an `event: error` with `error_body(error)`, the form that OpenAI's and Zhipu's clients
    both understand.
    """

    async def body() -> AsyncGenerator[bytes, None]:
        async with aclosing(frames):
            try:
                async for frame in frames:
                    yield _data(frame)
                yield b"data: [DONE]\n\n"
            except LuthierError as error:
                yield b"event: error\n" + _data(error_body(error))
            except Exception:
                log.exception("a stream failed")
                yield b"event: error\n" + _data(
                    error_body(InternalError("The server made a mistake; its log has the rest."))
                )

    return EventStream(body())


def in_one_line(frame: dict[str, Any]) -> bytes:
    """JSON in one line, also to the clients that take more signs for the end of one than the format of events does."""
    written = _encode(frame)
    for sign, escaped in _ENDS_OF_LINES.items():
        written = written.replace(sign, escaped)
    return written


def _data(frame: dict[str, Any]) -> bytes:
    return b"data: " + in_one_line(frame) + b"\n\n"
