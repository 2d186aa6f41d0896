"""A stored file reads like one that lies here, block by block."""

from __future__ import annotations

import io
import random

import obstore
import pytest
from obstore.store import MemoryStore

from luthier.core.errors import StorageUnavailable
from luthier.images.ranges import StoredFile

DATA = random.Random(1).randbytes(10_007)


def stored(asked: list[tuple[int, int]] | None = None, **options: int) -> StoredFile:
    def read_range(start: int, end: int) -> bytes:
        if asked is not None:
            asked.append((start, end))
        return DATA[start:end]

    return StoredFile(read_range, len(DATA), **options)


@pytest.mark.parametrize("block_bytes", [1, 7, 1000, 10_007, 100_000])
def test_it_reads_like_a_file(block_bytes: int) -> None:
    ours, theirs = io.BufferedReader(stored(block_bytes=block_bytes), 64), io.BytesIO(DATA)
    chance = random.Random(2)
    for _ in range(300):
        whence = chance.choice([0, 0, 1, 2])
        offset = {0: chance.randrange(11_000), 1: chance.randrange(100), 2: -chance.randrange(10_007)}[whence]
        assert ours.seek(offset, whence) == theirs.seek(offset, whence)
        count = chance.choice([0, 1, 30, 3000])
        assert ours.read(count) == theirs.read(count)
        assert ours.tell() == theirs.tell()
    ours.seek(0)
    assert ours.read() == DATA


def test_every_block_is_asked_for_once_on_a_walk_and_few_are_kept() -> None:
    asked: list[tuple[int, int]] = []
    file = stored(asked, block_bytes=1000, blocks_kept=2)
    while file.read(100):
        pass
    assert asked == [(start, min(start + 1000, 10_007)) for start in range(0, 10_007, 1000)]
    file.seek(9999)
    file.read(1)
    assert len(asked) == 11  # it is one of the two that were kept
    file.seek(0)
    file.read(1)
    assert len(asked) == 12


def test_a_seek_before_the_start_is_refused_and_behind_the_end_is_empty() -> None:
    with pytest.raises(OSError, match="before the start"):
        stored().seek(-1)
    file = stored()
    file.seek(20_000)
    assert file.read(5) == b""


def test_a_store_that_gives_another_length_is_told() -> None:
    with pytest.raises(StorageUnavailable, match="replaced"):
        StoredFile(lambda start, end: b"x", 10).read(5)


def test_a_real_store_is_read_by_ranges() -> None:
    store = MemoryStore()
    obstore.put(store, "key", DATA)
    file = StoredFile(
        lambda start, end: bytes(obstore.get_range(store, "key", start=start, end=end)), len(DATA), block_bytes=999
    )
    assert io.BufferedReader(file).read() == DATA
