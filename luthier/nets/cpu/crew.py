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
