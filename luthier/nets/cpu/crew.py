"""Threads of a compiled pass: as many as a decoder may use, asleep between passes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Crew:
    """Runs `work(number)` of workers 1 to `others` each time it is called, until it is closed."""

    def __init__(self, work: Callable[[int], None], others: int) -> None:
        self._work = work
        self._calls = [threading.Semaphore(0) for _ in range(others)]
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"compiled-pass-{number}", daemon=True)
            for number in range(1, others + 1)
        ]
        for thread in self._threads:
            thread.start()

    def call(self) -> None:
        """Wake the others and return at once; one that still comes from the last call works once more."""
        for calls in self._calls:
            calls.release()

    def seconds(self) -> list[float]:
        """What the processor has given the caller and each of the others; empty where nothing says, or all have left."""
        if self._is_closed or not hasattr(time, "pthread_getcpuclockid"):
            return []
        threads = (threading.current_thread(), *self._threads)
        clocks = (time.pthread_getcpuclockid(thread.ident) for thread in threads if thread.ident is not None)
        return [time.clock_gettime(clock) for clock in clocks]

    def close(self) -> None:
        """Send the threads home, and wait for them; may be called again."""
        self._is_closed = True
        self.call()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        calls = self._calls[number - 1]
        while True:
            calls.acquire()
            if self._is_closed:
                return
            self._work(number)


class Pace:
    """Whether the others help: until another process keeps their cores busy, so that waiting for them takes longer than it saves.

    A shared pass in which every thread had a core to itself, as far as the system says, leaves no doubt that they do. Of others
    one in `_TRIED_EVERY` is done the other way, and compared with the one before it where both are about as long. What is
    quicker so `_CONVINCED` times, a few passes apart and with no such pass between, is done from then on.
    """

    def __init__(self) -> None:
        self._is_shared = True
        self._last: tuple[int, float] | None = None
        """Tokens and seconds of the pass before, if it was done as they all are."""
        self._passes = 0
        self._doubts = 0

    def is_shared(self, tokens: int) -> bool:
        """Whether the next pass of so many tokens is for all threads."""
        is_due = self._passes >= (_TRIED_AGAIN if self._doubts else _TRIED_EVERY)
        is_tried = is_due and self._last is not None and abs(self._last[0] - tokens) <= _ALIKE * tokens
        return self._is_shared != is_tried

    def took(self, tokens: int, is_shared: bool, seconds: float, given: float = 0.0) -> None:
        """Learn from a pass how long it took, and for which part of it the thread that was served least had a core."""
        if is_shared == self._is_shared:
            self._last = tokens, seconds
            if is_shared and given >= _WHOLE:
                self._doubts = 0
            else:
                self._passes += 1
            return
        assert self._last is not None
        other, before = self._last
        self._doubts = self._doubts + 1 if seconds * other < before * tokens else 0
        if self._doubts == _CONVINCED:
            self._is_shared, self._doubts = is_shared, 0
        self._last, self._passes = None, 0


_TRIED_EVERY, _TRIED_AGAIN = 32, 4
_CONVINCED = 3
_ALIKE = 0.1
_WHOLE = 0.9
