"""What was read a moment ago is given again, and never after it was said to be out of date."""

from __future__ import annotations

import asyncio

import pytest

from luthier.core.recent import Recent


class Source:
    """Counts its reads; each gives what `value` is when it begins, and waits for `may_end`."""

    def __init__(self) -> None:
        self.value: str | None = "old"
        self.reads = 0
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.began = asyncio.Event()

    async def read(self) -> str | None:
        self.reads += 1
        value = self.value
        self.began.set()
        await self.may_end.wait()
        return value


async def test_a_value_is_read_again_when_its_time_is_over() -> None:
    source, recent = Source(), Recent[str, str](seconds=0.05)
    assert [await recent.get("key", source.read) for _ in range(3)] == ["old"] * 3
    assert source.reads == 1
    source.value = "new"
    await asyncio.sleep(0.06)
    assert await recent.get("key", source.read) == "new"


async def test_its_time_begins_with_the_read_not_with_its_end() -> None:
    source, recent = Source(), Recent[str, str](seconds=0.05)
    source.may_end.clear()
    asked = asyncio.create_task(recent.get("key", source.read))
    await asyncio.sleep(0.06)
    source.may_end.set()
    await asked
    await recent.get("key", source.read)
    assert source.reads == 2


async def test_many_who_ask_at_once_share_one_read_and_one_who_leaves_does_not_end_it() -> None:
    source, recent = Source(), Recent[str, str](seconds=1)
    source.may_end.clear()
    asked = [asyncio.create_task(recent.get("key", source.read)) for _ in range(5)]
    await source.began.wait()
    asked[0].cancel()
    await asyncio.sleep(0)
    source.may_end.set()
    assert await asyncio.gather(*asked[1:]) == ["old"] * 4
    assert source.reads == 1


async def test_what_was_not_there_is_looked_for_again() -> None:
    source, recent = Source(), Recent[str, str](seconds=1)
    source.value = None
    assert await recent.get("key", source.read) is None
    source.value = "new"
    assert await recent.get("key", source.read) == "new"


@pytest.mark.parametrize("all_of_it", [False, True])
async def test_what_is_forgotten_is_read_again(all_of_it: bool) -> None:
    source, recent = Source(), Recent[str, str](seconds=1)
    await recent.get("key", source.read)
    source.value = "new"
    recent.forget_all() if all_of_it else recent.forget("key")
    assert await recent.get("key", source.read) == "new"


@pytest.mark.parametrize("all_of_it", [False, True])
async def test_a_read_that_began_before_a_change_is_not_kept_and_not_shared_after_it(all_of_it: bool) -> None:
    source, recent = Source(), Recent[str, str](seconds=1)
    source.may_end.clear()
    early = asyncio.create_task(recent.get("key", source.read))
    await source.began.wait()
    source.value = "new"
    recent.forget_all() if all_of_it else recent.forget("key")
    late = asyncio.create_task(recent.get("key", source.read))
    await asyncio.sleep(0)  # it asks while the early one is still being read
    source.may_end.set()
    assert (await early, await late) == ("old", "new")
    assert await recent.get("key", source.read) == "new"


async def test_a_read_that_fails_is_told_to_all_who_asked_and_tried_again() -> None:
    recent = Recent[str, str](seconds=1)

    async def fail() -> str:
        await asyncio.sleep(0)
        raise OSError("no")

    told = await asyncio.gather(*(recent.get("key", fail) for _ in range(2)), return_exceptions=True)
    assert [type(one) for one in told] == [OSError, OSError]
    assert await recent.get("key", Source().read) == "old"


async def test_no_more_is_kept_than_it_has_room_for() -> None:
    source, recent = Source(), Recent[int, str](seconds=1, most=10)
    for key in range(100):
        await recent.get(key, source.read)
    assert len(recent._kept) <= 10


async def test_what_is_too_old_is_dropped_when_something_else_is_read() -> None:
    source, recent = Source(), Recent[str, str](seconds=0.02)
    for key in ("a secret", "another"):
        await recent.get(key, source.read)
    await asyncio.sleep(0.03)
    await recent.get("key", source.read)
    assert list(recent._kept) == ["key"]


async def test_what_is_too_old_is_dropped_when_it_is_found() -> None:
    source, recent = Source(), Recent[str, str](seconds=0.02)
    await recent.get("key", source.read)
    await asyncio.sleep(0.03)
    source.value = None
    assert await recent.get("key", source.read) is None
    assert not recent._kept
