"""A file that lies in a store, read and sought as if it were here: blocks by range requests, a few of them kept."""

from __future__ import annotations

import errno
import io
from collections import OrderedDict
from collections.abc import Callable

from luthier.core.errors import StorageUnavailable


class StoredFile(io.RawIOBase):
    """Read only and seekable. One reader at a time.

    It keeps at most `block_bytes * blocks_kept` bytes, so that walking through an object of any size asks for every
    block once and stays small.
    """

    def __init__(
        self,
        read_range: Callable[[int, int], bytes],
        size: int,
        *,
        block_bytes: int = 4 * 1024 * 1024,
        blocks_kept: int = 8,
    ) -> None:
        """`read_range(start, end)` gives the bytes from `start` up to but without `end`; `size` is the object's, in bytes.

        What `read_range` raises goes to the reader.
        """
        self._read_range = read_range
        self._size = size
        self._block_bytes = block_bytes
        self._blocks_kept = blocks_kept
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        position = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence] + offset
        if position < 0:
            raise OSError(errno.EINVAL, f"cannot seek to {position}, before the start")
        self._position = position
        return position

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        """At most up to the end of a block, so it may be less than was asked for; 0 at the end.

        Raises StorageUnavailable when the store gives fewer or more bytes than the object has there.
        """
        if self._position >= self._size:
            return 0
        number, start = divmod(self._position, self._block_bytes)
        piece = memoryview(self._block(number))[start : start + len(buffer)]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def _block(self, number: int) -> bytes:
        if number in self._blocks:
            self._blocks.move_to_end(number)
            return self._blocks[number]
        start = number * self._block_bytes
        end = min(start + self._block_bytes, self._size)
        block = self._read_range(start, end)
        if len(block) != end - start:
            raise StorageUnavailable(
                f"The storage gave {len(block):,} bytes for the range {start:,} to {end:,}; was the object replaced?"
            )
        self._blocks[number] = block
        if len(self._blocks) > self._blocks_kept:
            self._blocks.popitem(last=False)
        return block
