"""Blocks are nobody's twice, and a known beginning is found only where nothing before it differs."""

from __future__ import annotations

import random

from luthier.nets.paged.batch import BLOCK
from luthier.nets.paged.blocks import Blocks, keys_of

TEXT = list(range(3 * BLOCK + 5))


def test_only_whole_blocks_have_keys_and_each_tells_all_before_it() -> None:
    keys = keys_of(b"root", TEXT)
    assert len(keys) == 3
    assert keys_of(b"root", TEXT[: 2 * BLOCK]) == keys[:2]
    assert keys_of(b"root", TEXT, known=keys[:1]) == keys
    changed = keys_of(b"root", [99, *TEXT[1:]])
    others = keys_of(b"other", TEXT)
    assert not {*keys} & {*changed}
    assert not {*keys} & {*others}


def test_what_is_known_is_found_up_to_the_first_block_that_is_not() -> None:
    blocks, keys = Blocks(8), keys_of(b"", TEXT)
    taken = blocks.take(3)
    assert taken is not None
    for block, key in zip(taken, keys, strict=True):
        blocks.keep(block, key)
    blocks.release(taken)
    assert blocks.free == 8
    assert blocks.find([*keys[:2], b"another", keys[2]]) == taken[:2]
    assert blocks.free == 6


def test_the_coldest_content_goes_first_and_the_end_of_a_sequence_before_its_beginning() -> None:
    blocks, keys = Blocks(4), keys_of(b"", TEXT)
    first = blocks.take(3)
    assert first is not None
    for block, key in zip(first, keys, strict=True):
        blocks.keep(block, key)
    blocks.release(first)
    assert blocks.take(2) is not None  # the block that was never used, and the last of the sequence
    assert [blocks.is_known(key) for key in keys] == [True, True, False]


def test_too_many_are_refused_and_nothing_is_taken() -> None:
    blocks = Blocks(2)
    assert blocks.take(3) is None
    assert blocks.free == 2


def test_no_block_is_handed_out_twice_whatever_is_asked() -> None:
    dice, blocks = random.Random(3), Blocks(20)
    held: list[list[int]] = []
    for _ in range(3000):
        if held and dice.random() < 0.5:
            blocks.release(held.pop(dice.randrange(len(held))))
            continue
        keys = keys_of(b"", [dice.randrange(2) for _ in range(4) for _ in range(BLOCK // 8)] * 8)
        found = blocks.find(keys)
        taken = blocks.take(dice.randrange(4))
        if taken is None:
            blocks.release(found)
            continue
        everyone = {block for one in held for block in one} | {*found}
        assert not everyone & {*taken}
        for block, key in zip(taken, keys[len(found) :], strict=False):
            blocks.keep(block, key)
        held.append([*found, *taken])
        assert blocks.free == 20 - len({block for one in held for block in one})
