"""What was read a moment ago: a burst of requests reads once, and what changes here is forgotten at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass
class Recent(Generic[K, V]):
    """Keeps what is read for `seconds` from the beginning of the read, so nothing it gives is older than that.

    Who changes what is kept calls `forget` after the commit: whoever asks from then on gets what is read from then on.
    Changes by other processes show within `seconds`.
    """

    seconds: float
    most: int = 10_000
    _kept: dict[K, tuple[V, float]] = field(default_factory=dict)
    _reading: dict[K, asyncio.Task[V | None]] = field(default_factory=dict)

    async def get(self, key: K, read: Callable[[], Awaitable[V | None]]) -> V | None:
        """What is kept for `key`, else what `read` gives; many who ask at once share one read. None is never kept."""
        if (kept := self._kept.get(key)) is not None:
            if time.monotonic() < kept[1]:
                return kept[0]
            del self._kept[key]
        if (reading := self._reading.get(key)) is None:
            reading = self._reading[key] = asyncio.ensure_future(self._read(key, read))
        return await asyncio.shield(reading)  # one who goes away does not take it from the others

    def forget(self, key: K) -> None:
        self._kept.pop(key, None)
        self._reading.pop(key, None)

    def forget_all(self) -> None:
        self._kept.clear()
        self._reading.clear()

    async def _read(self, key: K, read: Callable[[], Awaitable[V | None]]) -> V | None:
        until = time.monotonic() + self.seconds
        try:
            value = await read()
            if value is not None and self._is_current(key):
                self._drop_expired()
                if len(self._kept) >= self.most:
                    self._kept.clear()
                self._kept[key] = value, until
            return value
        finally:
            if self._is_current(key):
                del self._reading[key]

    def _drop_expired(self) -> None:
        """Keys may be secrets, and values large: what has had its time goes when the next is kept. The oldest stand first."""
        now = time.monotonic()
        while self._kept and self._kept[first := next(iter(self._kept))][1] <= now:
            del self._kept[first]

    def _is_current(self, key: K) -> bool:
        """Whether nobody said meanwhile that this read may be out of date."""
        return self._reading.get(key) is asyncio.current_task()
