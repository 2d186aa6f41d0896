"""Which adapters are on the device: load on demand, pin while in use, evict the coldest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from luthier.core import logs
from luthier.serving.backends.base import AdapterUnreadable
from luthier.serving.protocol import AdapterRef

log = logs.get("residency")


@dataclass
class _Resident:
    sha256: str
    loading: asyncio.Task[None]
    pins: int = 0


class Residency:
    """At most `limit` adapters. `load` and `unload` are called one at a time, never for one that is pinned."""

    def __init__(
        self,
        limit: int,
        load: Callable[[AdapterRef], Awaitable[None]],
        unload: Callable[[str], Awaitable[None]],
    ) -> None:
        self._limit = limit
        self._load = load
        self._unload = unload
        self._residents: dict[str, _Resident] = {}  # the coldest first
        self._known: dict[str, str] = {}  # of every id that was ever loaded the sha256 of its bytes
        self._moving = asyncio.Lock()
        self._changed = asyncio.Event()

    @property
    def ids(self) -> list[str]:
        return [id for id, resident in self._residents.items() if _is_loaded(resident)]

    @asynccontextmanager
    async def hold(self, ref: AdapterRef | None) -> AsyncIterator[str | None]:
        """Have an adapter on the device while the block runs; gives its id. None, the base model, is always there.

        Who asks for an adapter that is being loaded waits for that load. When every place is pinned, waits for one.
        Raises what `load` raises; a failed load leaves nothing and is tried again by who asks next. Raises
        AdapterUnreadable for an id that is, or ever was, here with other bytes.
        """
        if ref is None:
            yield None
            return
        resident = await self._resident(ref)
        resident.pins += 1
        try:
            await asyncio.shield(resident.loading)  # others may wait for it when this one gives up
            yield ref.id
        finally:
            resident.pins -= 1
            self._changed.set()

    async def _resident(self, ref: AdapterRef) -> _Resident:
        while ref.id not in self._residents:
            if self._known.get(ref.id, ref.sha256) != ref.sha256:
                raise _reused(ref)
            idle = (id for id, resident in self._residents.items() if not resident.pins and _is_loaded(resident))
            if len(self._residents) < self._limit:
                self._residents[ref.id] = _Resident(ref.sha256, asyncio.create_task(self._bring(ref, evict=None)))
            elif (coldest := next(idle, None)) is not None:
                del self._residents[coldest]
                self._residents[ref.id] = _Resident(ref.sha256, asyncio.create_task(self._bring(ref, evict=coldest)))
            else:
                self._changed.clear()
                await self._changed.wait()
        if self._residents[ref.id].sha256 != ref.sha256:
            raise _reused(ref)
        resident = self._residents.pop(ref.id)
        self._residents[ref.id] = resident  # the warmest now
        return resident

    async def _try_unload(self, adapter: str) -> None:
        """One that stays though it should go takes a place, but is no reason to refuse another adapter."""
        try:
            await self._unload(adapter)
        except Exception:
            log.exception("an adapter could not be unloaded", adapter=adapter)

    async def _bring(self, ref: AdapterRef, *, evict: str | None) -> None:
        async with self._moving:
            try:
                if evict is not None:
                    await self._try_unload(evict)
                await self._load(ref)
                self._known[ref.id] = ref.sha256
            except BaseException:
                del self._residents[ref.id]
                raise
            finally:
                self._changed.set()


def _reused(ref: AdapterRef) -> AdapterUnreadable:
    return AdapterUnreadable(f"The adapter id {ref.id} was given to other bytes before; an id is never reused.")


def _is_loaded(resident: _Resident) -> bool:
    return resident.loading.done() and not resident.loading.cancelled() and resident.loading.exception() is None
