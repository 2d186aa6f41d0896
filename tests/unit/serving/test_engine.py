"""Answers are made beside each other in one thread, and do not disturb each other."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from luthier.nets.tokens import Token
from luthier.serving.backends.base import Asked
from luthier.serving.engine import Engine
from luthier.serving.one_by_one import OneByOne
from luthier.serving.protocol import AdapterRef, Sampling


class Counting(OneByOne):
    """Counts up to the first number of the prompt; the second is the number at which it breaks."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[int] = []
        self.closed = threading.Event()
        self.pause = 0.0

    @classmethod
    def open(cls, spec: object, storage: object) -> Counting:
        return cls()

    def read_adapter(self, folder: Path, ref: AdapterRef) -> Callable[[], None]:
        return lambda: None

    def unload_adapter(self, adapter: str) -> None: ...

    def generate(self, asked: Asked) -> Iterator[Token]:
        end, breaks = asked.prompt
        try:
            for n in range(end):
                if n == breaks:
                    raise ValueError("broken")
                time.sleep(self.pause)
                self.made.append(end)
                yield Token(n)
        finally:
            self.closed.set()


def asking(end: int, breaks: int = -1) -> Asked:
    return Asked([end, breaks], Sampling(), ())


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    engine = Engine()
    yield engine
    engine.close()


@pytest.fixture
def backend(engine: Engine) -> Counting:
    backend = Counting()
    engine.serve(backend)
    return backend


async def read(engine: Engine, asked: Asked) -> list[int]:
    return [token.id async for tokens in engine.answer(asked) for token in tokens]


async def test_answers_advance_together(engine: Engine, backend: Counting) -> None:
    backend.pause = 0.01
    assert await asyncio.gather(read(engine, asking(4)), read(engine, asking(5))) == [[*range(4)], [*range(5)]]
    assert backend.made in ([4, 5] * 4 + [5], [4, 4, 5, 4, 5, 4, 5, 5, 5])  # the first may have been a step ahead


async def test_all_is_called_in_the_engines_thread(engine: Engine) -> None:
    assert await engine.call(lambda: threading.current_thread().name) == "engine"


async def test_an_exception_is_that_of_its_own_answer(engine: Engine, backend: Counting) -> None:
    failed, well = await asyncio.gather(
        read(engine, asking(5, breaks=1)), read(engine, asking(50)), return_exceptions=True
    )
    assert isinstance(failed, ValueError)
    assert well == list(range(50))


async def test_a_step_that_fails_ends_all_answers_and_the_next_is_answered(engine: Engine, backend: Counting) -> None:
    step, left = backend.step, [3]

    def broken() -> object:
        left[0] -= 1
        if not left[0]:
            raise MemoryError("full")
        return step()

    backend.step = broken  # type: ignore[method-assign]
    found = await asyncio.gather(read(engine, asking(90)), read(engine, asking(91)), return_exceptions=True)
    assert [type(one) for one in found] == [MemoryError, MemoryError]
    assert await read(engine, asking(3)) == [0, 1, 2]


async def test_a_closed_answer_takes_no_further_step(engine: Engine, backend: Counting) -> None:
    backend.pause = 0.005
    async with aclosing(engine.answer(asking(10**9))) as answer:
        async for tokens in answer:
            if tokens[-1].id >= 3:
                break
    assert await asyncio.to_thread(backend.closed.wait, 5)
    so_far = len(backend.made)
    assert await read(engine, asking(1)) == [0]
    assert len(backend.made) == so_far + 1


async def test_a_call_raises_what_its_function_raises(engine: Engine) -> None:
    with pytest.raises(ZeroDivisionError):
        await engine.call(lambda: 1 / 0)
    assert await engine.call(lambda: 2) == 2


async def test_a_signal_is_heard_however_much_was_made_while_the_loop_was_busy(
    engine: Engine, backend: Counting
) -> None:
    loop, asked = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, asked.set)
    try:
        answers = [asyncio.ensure_future(read(engine, asking(2000))) for _ in range(2)]
        await asyncio.sleep(0)
        assert backend.closed.wait(30)  # the loop is busy; a pipe that wakes it holds some hundreds of calls
        os.kill(os.getpid(), signal.SIGUSR1)
        async with asyncio.timeout(5):
            await asked.wait()
        assert await asyncio.gather(*answers) == [list(range(2000))] * 2
    finally:
        loop.remove_signal_handler(signal.SIGUSR1)
