"""Which blocks of a pool are free, who holds them, and what beginnings of sequences lie in them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np

from luthier.nets.paged.batch import BLOCK


def keys_of(root: bytes, tokens: Sequence[int], *, known: Sequence[bytes] = ()) -> list[bytes]:
    """What each whole block of a sequence is known by: a digest of all that stands up to its end, and of the root.

    Two sequences share a block's key only where nothing before it differs; `known` are the keys of the first blocks.
    """
    keys = list(known)
    for begin in range(len(keys) * BLOCK, len(tokens) - BLOCK + 1, BLOCK):
        block = np.asarray(tokens[begin : begin + BLOCK], np.int64).tobytes()
        keys.append(hashlib.sha256((keys[-1] if keys else root) + block).digest())
    return keys


class Blocks:
    """Hands out numbers of blocks. One that nobody holds, but whose content is known, is free last, the coldest first."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.reached = 0
        """Blocks from the first, of which each has been held before."""
        self._free = list(range(count - 1, -1, -1))
        self._holds = [0] * count
        self._key: dict[int, bytes] = {}
        self._known: dict[bytes, int] = {}
        self._cold: OrderedDict[int, None] = OrderedDict()  # known, held by nobody

    @property
    def free(self) -> int:
        """How many can be taken."""
        return len(self._free) + len(self._cold)

    def take(self, count: int) -> list[int] | None:
        """Hold so many blocks of no content; None, and nothing is taken, where there are not so many."""
        if count > self.free:
            return None
        taken: list[int] = []
        for _ in range(count):
            if self._free:
                block = self._free.pop()
            else:
                block, _ = self._cold.popitem(last=False)
                del self._known[self._key.pop(block)]
            self._holds[block] = 1
            self.reached = max(self.reached, block + 1)
            taken.append(block)
        return taken

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """Hold the blocks known by the first of these keys, up to the first that is not known."""
        found: list[int] = []
        for key in keys:
            if (block := self._known.get(key)) is None:
                break
            self._cold.pop(block, None)
            self._holds[block] += 1
            found.append(block)
        return found

    def hold(self, blocks: Iterable[int]) -> None:
        """One hold more on each of blocks that somebody holds."""
        for block in blocks:
            self._holds[block] += 1

    def is_known(self, key: bytes) -> bool:
        return key in self._known

    def keep(self, block: int, key: bytes) -> None:
        """A held block's content is complete and known by this key from now on; where another has it, that one stays."""
        if key not in self._known and block not in self._key:
            self._known[key] = block
            self._key[block] = key

    def release(self, blocks: Iterable[int]) -> None:
        """Give back holds; the last blocks of a sequence become cold before its first."""
        for block in reversed(list(blocks)):
            self._holds[block] -= 1
            assert self._holds[block] >= 0
            if self._holds[block]:
                continue
            if block in self._key:
                self._cold[block] = None
            else:
                self._free.append(block)
