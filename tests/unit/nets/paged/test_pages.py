"""Memory of a pool is ready before it is written to, and only while nobody waits."""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
import time
from collections.abc import Callable

import pytest
import torch

from luthier.nets.paged.batch import BLOCK
from luthier.nets.paged.pages import Pages
from luthier.nets.paged.pool import Pool

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no other system can be asked for it")
BLOCKS = 2048
BYTES = 2 * 4 * BLOCKS * BLOCK * 2 * 64 * 4  # of both, in all layers: 128 MiB


def _pool() -> Pool:
    """On pages of its own: what others in this process have freed is there already, and may be given out again."""
    given = Pool.of(layers=4, heads=2, width=64, blocks=BLOCKS, dtype=torch.float32, device=torch.device("cpu"))
    shape = given.keys_LPKD.shape
    return Pool(*(torch.frombuffer(mmap.mmap(-1, BYTES // 2), dtype=torch.float32).view(shape) for _ in range(2)))


def _ready(pool: Pool) -> int:
    """Bytes of the pool that memory is taken for, as the system tells it."""
    pages = 0
    for kept_LPKD in (pool.keys_LPKD, pool.values_LPKD):
        begin = kept_LPKD.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
        length = kept_LPKD.data_ptr() + kept_LPKD.nbytes - begin
        told = (ctypes.c_ubyte * -(-length // mmap.PAGESIZE))()
        assert ctypes.CDLL(None).mincore(ctypes.c_void_p(begin), ctypes.c_size_t(length), told) == 0
        pages += sum(page & 1 for page in told)
    return pages * mmap.PAGESIZE


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_half_is_ready_at_the_start_and_more_as_blocks_are_used_and_what_is_there_stays() -> None:
    pool = _pool()
    pool.keys_LPKD[:, :BLOCK] = 7
    pages = Pages(pool)
    try:
        _until(lambda: _ready(pool) >= BYTES // 2)
        assert _ready(pool) < BYTES * 3 // 4
        pages.pause()
        pages.resume(BLOCKS // 4)
        _until(lambda: _ready(pool) >= BYTES * 3 // 4)
        assert _ready(pool) < BYTES
        pages.resume(BLOCKS)
        _until(lambda: _ready(pool) >= BYTES)
    finally:
        pages.close()
        pages.close()
    assert bool((pool.keys_LPKD[:, :BLOCK] == 7).all())
    assert not pool.keys_LPKD[:, BLOCK:].any()
    assert not pool.values_LPKD.any()


def test_nothing_is_made_ready_while_somebody_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    began, asked = threading.Event(), threading.Semaphore(0)

    def advise(address: int, length: int, what: int) -> int:
        began.set()
        assert asked.acquire(timeout=30)
        pieces.append(length)
        return 0

    pieces: list[int] = []
    monkeypatch.setattr("luthier.nets.paged.pages._madvise", advise)
    pages = Pages(_pool())
    try:
        assert began.wait(30)
        pages.pause()
        asked.release(1000)
        time.sleep(0.2)
        assert len(pieces) <= 1  # that was begun
        pages.resume(0)
        _until(lambda: sum(pieces) >= BYTES // 2)
    finally:
        pages.close()
