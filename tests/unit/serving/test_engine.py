"""Streams take turns in one thread, and do not disturb each other."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import pytest

from luthier.serving.engine import Engine


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    engine = Engine()
    yield engine
    engine.close()


async def test_streams_advance_together(engine: Engine) -> None:
    made: list[str] = []

    def steps(name: str) -> Iterator[int]:
        for n in range(4):
            time.sleep(0.01)
            made.append(name)
            yield n

    async def all_of(name: str) -> list[int]:
        return [n async for n in engine.stream(steps(name))]

    assert await asyncio.gather(all_of("a"), all_of("b")) == [[0, 1, 2, 3]] * 2
    assert "".join(made) in ("abababab", "aabababb")  # the first may take a step before the second has come


async def test_all_steps_are_made_in_the_engines_thread(engine: Engine) -> None:
    assert await engine.call(lambda: threading.current_thread().name) == "engine"


async def test_an_exception_is_that_of_its_own_stream(engine: Engine) -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    async def read(steps: Iterator[int]) -> list[int]:
        return [n async for n in engine.stream(steps)]

    failed, well = await asyncio.gather(read(broken()), read(iter(range(50))), return_exceptions=True)
    assert isinstance(failed, ValueError)
    assert well == list(range(50))


async def test_a_closed_stream_takes_no_further_step_and_is_closed(engine: Engine) -> None:
    taken, closed = [], threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                time.sleep(0.005)
                taken.append(1)
                yield len(taken)
        finally:
            closed.set()

    async with aclosing(engine.stream(endless())) as stream:
        async for n in stream:
            if n == 3:
                break
    so_far = len(taken)
    assert await asyncio.to_thread(closed.wait, 5)
    assert len(taken) <= so_far + 1


async def test_a_call_raises_what_its_function_raises(engine: Engine) -> None:
    with pytest.raises(ZeroDivisionError):
        await engine.call(lambda: 1 / 0)
    assert await engine.call(lambda: 2) == 2


async def test_a_signal_is_heard_however_much_was_made_while_the_loop_was_busy(engine: Engine) -> None:
    loop, asked, made = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def burst() -> Iterator[int]:
        yield from range(2000)  # a pipe that wakes a loop holds some hundreds of calls
        made.set()

    loop.add_signal_handler(signal.SIGUSR1, asked.set)
    try:
        async with aclosing(engine.stream(burst())) as numbers:
            first = asyncio.ensure_future(anext(numbers))
            await asyncio.sleep(0)
            assert made.wait(30)  # the loop is busy
            os.kill(os.getpid(), signal.SIGUSR1)
            async with asyncio.timeout(5):
                await asked.wait()
            assert [await first, *[number async for number in numbers]] == list(range(2000))
    finally:
        loop.remove_signal_handler(signal.SIGUSR1)
