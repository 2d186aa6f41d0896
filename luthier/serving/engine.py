"""The thread in which tokens are made: open streams take turns, one step each."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass
class _End:
    error: Exception | None = None


@dataclass
class _Turn:
    steps: Iterator[Any]
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    out: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    made: deque[Any] = field(default_factory=deque)
    is_awaited: bool = False  # the loop was called and has not come yet
    is_cancelled: bool = False

    def put(self, item: Any) -> None:
        self.made.append(item)
        if not self.is_awaited:
            # Each call writes a byte to the pipe that wakes the loop. A full pipe would lose a signal such as SIGTERM,
            # so a busy loop is called once, however much is made meanwhile.
            self.is_awaited = True
            self.loop.call_soon_threadsafe(self._take)

    def _take(self) -> None:
        self.is_awaited = False  # before the count: what is made from here on calls again
        for _ in range(len(self.made)):
            self.out.put_nowait(self.made.popleft())


class Engine:
    """Runs iterators in one thread, round robin. What they touch needs no lock, because nothing else runs there."""

    def __init__(self) -> None:
        self._inbox: SimpleQueue[_Turn | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def stream(self, steps: Iterator[T]) -> AsyncGenerator[T]:
        """Yield what `steps` yields, made in the engine's thread.

        Joins the round at once. What `steps` raises is raised here and leaves other streams alone. When this is closed,
        `steps` takes no step beyond the one it is in, and is then closed too.
        """
        turn = _Turn(steps)
        self._inbox.put(turn)
        try:
            while not isinstance(item := await turn.out.get(), _End):
                yield item
                await asyncio.sleep(0)  # what else the loop has to do comes between, also when much is ready
            if item.error is not None:
                raise item.error
        finally:
            turn.is_cancelled = True

    async def call(self, function: Callable[[], T]) -> T:
        """Run a function between two steps. Once begun it runs to its end, even when this is cancelled."""
        [result] = [result async for result in self.stream(function() for _ in range(1))]
        return result

    def close(self) -> None:
        """End the thread after the step it is in. Streams that are still open get nothing more."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        turns: deque[_Turn] = deque()
        while True:
            while not turns or not self._inbox.empty():
                if (new := self._inbox.get()) is None:
                    return
                turns.append(new)
            turn = turns.popleft()
            if self._step(turn):
                turns.append(turn)

    def _step(self, turn: _Turn) -> bool:
        """Whether there may be a next step."""
        if turn.is_cancelled:
            if close := getattr(turn.steps, "close", None):
                close()
            return False
        try:
            turn.put(next(turn.steps))
        except StopIteration:
            turn.put(_End())
            return False
        except Exception as error:
            turn.put(_End(error))
            return False
        return True
