"""Adapters come on demand, stay while in use, and the coldest goes first."""

from __future__ import annotations

import asyncio

import pytest

from luthier.serving.backends.base import AdapterUnreadable
from luthier.serving.protocol import AdapterRef
from luthier.serving.residency import Residency


def ref(id: str) -> AdapterRef:
    return AdapterRef(id=id, key=id, sha256="")


class Device:
    def __init__(self) -> None:
        self.moves: list[str] = []
        self.broken: set[str] = set()

    async def load(self, ref: AdapterRef) -> None:
        await asyncio.sleep(0.01)
        if ref.id in self.broken:
            raise ValueError(ref.id)
        self.moves.append(f"+{ref.id}")

    async def unload(self, id: str) -> None:
        await asyncio.sleep(0.01)
        self.moves.append(f"-{id}")


def residency(limit: int) -> tuple[Residency, Device]:
    device = Device()
    return Residency(limit, device.load, device.unload), device


async def use(residency: Residency, id: str) -> None:
    async with residency.hold(ref(id)) as held:
        assert held == id


async def test_the_base_model_needs_no_place() -> None:
    home, device = residency(1)
    async with home.hold(None) as held:
        assert held is None
    assert device.moves == []


async def test_the_coldest_goes_first() -> None:
    home, device = residency(2)
    for id in ("a", "b", "a", "c"):
        await use(home, id)
    assert device.moves == ["+a", "+b", "-b", "+c"]
    assert home.ids == ["a", "c"]


async def test_asking_at_the_same_time_loads_once() -> None:
    home, device = residency(2)
    await asyncio.gather(*(use(home, "a") for _ in range(5)))
    assert device.moves == ["+a"]


async def test_a_pinned_one_stays_and_who_finds_no_place_waits() -> None:
    home, device = residency(1)
    async with home.hold(ref("a")):
        waiting = [asyncio.create_task(use(home, id)) for id in ("b", "c")]
        await asyncio.sleep(0.05)
        assert device.moves == ["+a"]
    await asyncio.gather(*waiting)
    assert device.moves == ["+a", "-a", "+b", "-b", "+c"]


async def test_a_failed_load_reaches_everyone_who_waits_and_may_be_tried_again() -> None:
    home, device = residency(1)
    device.broken.add("a")
    failed = await asyncio.gather(use(home, "a"), use(home, "a"), return_exceptions=True)
    assert [type(error) for error in failed] == [ValueError, ValueError]
    device.broken.clear()
    await use(home, "a")
    assert home.ids == ["a"]


async def test_who_gives_up_does_not_take_the_load_from_others() -> None:
    home, device = residency(1)
    first = asyncio.create_task(use(home, "a"))
    await asyncio.sleep(0)
    second = asyncio.create_task(use(home, "a"))
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert device.moves == ["+a"]
    await use(home, "b")  # nothing is pinned any more


async def test_an_id_is_refused_with_other_bytes_while_it_is_there_and_after_it_went() -> None:
    home, device = residency(1)
    other = ref("a").model_copy(update={"sha256": "other"})
    await use(home, "a")
    with pytest.raises(AdapterUnreadable, match="never reused"):
        async with home.hold(other):
            pass
    await use(home, "b")
    assert device.moves == ["+a", "-a", "+b"]
    with pytest.raises(AdapterUnreadable, match="never reused"):
        async with home.hold(other):
            pass
    await use(home, "a")
    assert device.moves == ["+a", "-a", "+b", "-b", "+a"]


async def test_bytes_that_could_not_be_loaded_do_not_take_the_id() -> None:
    home, device = residency(1)
    device.broken.add("a")
    with pytest.raises(ValueError, match="a"):
        async with home.hold(ref("a").model_copy(update={"sha256": "other"})):
            pass
    device.broken.clear()
    await use(home, "a")
