"""Threads of a compiled pass: as many as a decoder may use, asleep between passes."""

from __future__ import annotations

import threading
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
    """Whether the others help: as was quicker of late, since another process may keep their cores busy.

    Passes are told apart by the power of two of their tokens; one in `_TRIED_EVERY` is done the other way, to see.
    """

    def __init__(self) -> None:
        self._seconds: dict[tuple[int, bool], float] = {}
        self._passes: dict[int, int] = {}

    def is_shared(self, tokens: int) -> bool:
        """Whether the next pass of so many tokens is for all threads."""
        size = tokens.bit_length()
        self._passes[size] = number = self._passes.get(size, 0) + 1
        alone, shared = (self._seconds.get((size, is_shared)) for is_shared in (False, True))
        if shared is None:
            return True
        if alone is None:
            return False
        return (shared <= alone) != (number % _TRIED_EVERY == 0)

    def took(self, tokens: int, is_shared: bool, seconds: float) -> None:
        """Remember how long a pass took: the latest ones count most."""
        key = tokens.bit_length(), is_shared
        self._seconds[key] = _KEPT * self._seconds.get(key, seconds) + (1 - _KEPT) * seconds


_TRIED_EVERY = 32
_KEPT = 0.7
