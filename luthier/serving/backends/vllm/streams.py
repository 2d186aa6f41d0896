"""Answers as they stream from the server: each is a task of one loop, which has a thread of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

from luthier.core.errors import InternalError, InvalidRequest, ReplicaUnavailable
from luthier.nets.tokens import Token
from luthier.serving.backends.base import Asked
from luthier.serving.backends.vllm.server import reason
from luthier.serving.backends.vllm.wire import tokens


class Heard(NamedTuple):
    """More of an answer; with `error` or `is_last` there is no more."""

    asked: Asked
    tokens: list[Token]
    error: Exception | None = None
    is_last: bool = False


class Streams:
    """`begin`, `cancel`, `heard` and `close` are called from one thread."""

    def __init__(self, url: str, key: str) -> None:
        self._url, self._key = url, key
        self._heard: SimpleQueue[Heard] = SimpleQueue()
        self._tasks: dict[Asked, asyncio.Task[None]] = {}  # the loop's own
        self._loop = asyncio.new_event_loop()
        self._client = self._opened()
        self._thread = Thread(target=self._loop.run_forever, name="vllm streams", daemon=True)
        self._thread.start()

    def begin(self, asked: Asked, body: dict[str, Any]) -> None:
        self._loop.call_soon_threadsafe(self._start, asked, body)

    def cancel(self, asked: Asked) -> None:
        """Close its connection, at which the server drops the answer. Something of it may still be heard."""
        self._loop.call_soon_threadsafe(self._stop, asked)

    def heard(self, wait_seconds: float) -> list[Heard]:
        """What has come since; waits so long at most for something."""
        found: list[Heard] = []
        try:
            found.append(self._heard.get(timeout=wait_seconds) if wait_seconds else self._heard.get_nowait())
            while True:
                found.append(self._heard.get_nowait())
        except Empty:
            return found

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _opened(self) -> Any:
        import httpx2

        return httpx2.AsyncClient(
            base_url=self._url,
            headers={"Authorization": f"Bearer {self._key}"},
            timeout=httpx2.Timeout(None),  # who waits for an answer decides for how long
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=32),
            trust_env=False,
        )

    def _start(self, asked: Asked, body: dict[str, Any]) -> None:
        task = self._tasks[asked] = self._loop.create_task(self._stream(asked, body))
        task.add_done_callback(lambda _: self._tasks.pop(asked, None))

    def _stop(self, asked: Asked) -> None:
        if (task := self._tasks.get(asked)) is not None:
            task.cancel()

    async def _end(self) -> None:
        running = list(self._tasks.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._client.aclose()

    async def _stream(self, asked: Asked, body: dict[str, Any]) -> None:
        import httpx2

        try:
            async with self._client.stream("POST", "/v1/completions", json=body) as answer:
                if answer.status_code != 200:
                    raise _refusal(answer.status_code, reason(await answer.aread()))
                await self._read(asked, answer.aiter_bytes())
        except httpx2.TransportError as broken:
            self._heard.put(Heard(asked, [], _broken(type(broken).__name__)))
        except Exception as error:
            self._heard.put(Heard(asked, [], error))

    async def _read(self, asked: Asked, pieces: AsyncIterator[bytes]) -> None:
        has_ended = False
        async for event in _events(pieces):
            if has_ended:
                continue  # a connection that was read to its end serves the next answer
            if (fault := event.get("error")) is not None:
                raise _refusal(int(fault.get("code") or 500), str(fault.get("message")))
            for choice in event["choices"]:
                ended = choice.get("finish_reason")
                if ended not in (None, "stop", "length"):
                    raise InternalError(f"vLLM ended an answer with {ended!r}.")
                made = tokens(choice, asked.sampling)
                if made or ended:
                    self._heard.put(Heard(asked, made, is_last=ended is not None))
                has_ended = ended is not None
        if not has_ended:
            raise _broken("the stream ended in the middle")


async def _events(pieces: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream. Lines end at \\n alone: a text may hold U+2028, at which others would cut it."""
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if data and data != b"[DONE]" and line.startswith(b"data:"):
                yield json.loads(data)


def _refusal(status: int, message: str) -> Exception:
    if status == 400:
        return InvalidRequest(f"vLLM refused the request: {message}")
    if status == 503:
        return ReplicaUnavailable(f"vLLM is not available: {message}")
    return InternalError(f"vLLM answered {status}: {message}")


def _broken(how: str) -> ReplicaUnavailable:
    return ReplicaUnavailable(f"The connection to vLLM broke ({how}).", hint="Try again.")
