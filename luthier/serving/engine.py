"""The thread in which tokens are made: a backend's steps, and what is called between them."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from luthier.core import logs
from luthier.nets.tokens import Token
from luthier.serving.backends.base import Asked, Backend, Said

T = TypeVar("T")
log = logs.get("engine")
_DIED = 70  # the status of a process whose software failed
_END = object()
_AT_ONCE = 16
"""Tokens of one answer: what else the loop has to do comes between."""


@dataclass(eq=False)
class _Heard:
    """What has come for one who waits in the loop: tokens, then _END or an error."""

    items: deque[Any] = field(default_factory=deque)
    has_come: asyncio.Event = field(default_factory=asyncio.Event)


class Engine:
    """One thread, which alone touches the backend: it needs no lock. Made within the loop that asks."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._backend: Backend | None = None
        self._answers: dict[Asked, _Heard] = {}  # the thread's own
        self._outbox: deque[tuple[_Heard, Any]] = deque()
        self._is_awaited = False  # the loop was called and has not come yet
        self._thread = Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def serve(self, backend: Backend) -> None:
        """Make answers with this backend, which was opened in the engine's thread."""
        self._inbox.put(lambda: setattr(self, "_backend", backend))

    async def answer(self, asked: Asked) -> AsyncGenerator[Sequence[Token]]:
        """Yield the answer's tokens as they are made, several where several are there.

        It joins the others at the next step. What fails for it is raised here and leaves others alone. When this is closed,
        the answer is cancelled before the next step.
        """
        heard = _Heard()
        self._inbox.put(lambda: self._begin(asked, heard))
        tokens: list[Token] = []
        item: Any = None
        is_over = False
        try:
            while not is_over:
                if not heard.items:
                    heard.has_come.clear()
                    await heard.has_come.wait()
                while heard.items and not is_over and len(tokens) < _AT_ONCE:
                    item = heard.items.popleft()
                    if isinstance(item, Token):
                        tokens.append(item)
                    else:
                        is_over = True
                if tokens:
                    yield tokens
                    tokens = []
                    await asyncio.sleep(0)
                if is_over and isinstance(item, Exception):
                    raise item
        finally:
            if not is_over:
                self._inbox.put(lambda: self._cancel(asked))

    async def call(self, function: Callable[[], T]) -> T:
        """Run a function between two steps. Once begun it runs to its end, even when this is cancelled."""
        done: asyncio.Future[T] = self._loop.create_future()

        def told(settle: Callable[[Any], None], value: object) -> None:
            if not done.cancelled():
                settle(value)

        def run() -> None:
            try:
                result = function()
            except Exception as error:
                self._loop.call_soon_threadsafe(told, done.set_exception, error)
            else:
                self._loop.call_soon_threadsafe(told, done.set_result, result)

        self._inbox.put(run)
        return await done

    def close(self) -> None:
        """End the thread after the step it is in, and close the backend. Answers that are open get nothing more."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException:
            # Callers would wait for ever for a thread that is gone: they hear instead that the replica is lost.
            log.exception("the engine's thread has died")
            os._exit(_DIED)

    def _work(self) -> None:
        while True:
            while self._backend is None or self._backend.is_idle or not self._inbox.empty():
                if (order := self._inbox.get()) is None:
                    if self._backend is not None:
                        self._backend.close()
                    return
                order()
            self._step(self._backend)

    def _begin(self, asked: Asked, heard: _Heard) -> None:
        assert self._backend is not None
        try:
            self._backend.begin(asked)
        except Exception as error:
            self._tell([(heard, error)])
        else:
            self._answers[asked] = heard

    def _cancel(self, asked: Asked) -> None:
        assert self._backend is not None
        self._answers.pop(asked, None)
        self._backend.cancel(asked)

    def _step(self, backend: Backend) -> None:
        try:
            said = backend.step()
        except Exception as error:
            for asked in list(self._answers):
                backend.cancel(asked)
            said = [Said(asked, error=error) for asked in self._answers]
        told: list[tuple[_Heard, Any]] = []
        for one in said:
            if (heard := self._answers.get(one.asked)) is None:
                continue
            if one.token is not None:
                told.append((heard, one.token))
            if one.is_last or one.error is not None:
                del self._answers[one.asked]
                told.append((heard, _END if one.error is None else one.error))
        self._tell(told)

    def _tell(self, told: Sequence[tuple[_Heard, Any]]) -> None:
        self._outbox.extend(told)
        if told and not self._is_awaited:
            # Each call writes a byte to the pipe that wakes the loop. A full pipe would lose a signal such as SIGTERM,
            # so a busy loop is called once, however much is made meanwhile.
            self._is_awaited = True
            self._loop.call_soon_threadsafe(self._take)

    def _take(self) -> None:
        self._is_awaited = False  # before the count: what is made from here on calls again
        for _ in range(len(self._outbox)):
            heard, item = self._outbox.popleft()
            heard.items.append(item)
            heard.has_come.set()
