"""Where the bytes of a file are: on this machine or in the storage, read from any place on, a block at a time."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from luthier.images import ranges
from luthier.storage import Storage

BLOCK = 64 * 1024
"""Bytes that are looked at together. What is made of them still lies in a processor's cache, and no piece of memory is so
large that the allocator gives it back to the system and asks for it again with every block."""

_REQUEST = 4 * 1024 * 1024  # bytes that are asked of a storage at a time: a request has its price


class Source(ABC):
    """A file that does not change while it is read. May be used from several processes unless it `is_whole`."""

    is_whole = False
    """Whether it is quickly read from its beginning only."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes."""

    @abstractmethod
    def blocks(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes from `start` to before `end`, in blocks."""

    def opened(self) -> BinaryIO | io.RawIOBase:
        """The file for reading at any place, as libraries want it; the caller closes it."""
        raise io.UnsupportedOperation("this source is read from start to end")

    def after_line(self, place: int) -> int:
        """Where the line after the one that holds byte `place` begins; the size where there is none."""
        if place <= 0:
            return 0
        for block in self.blocks(place - 1):
            feed = block.find(b"\n")
            if feed >= 0:
                return place + feed
            place += len(block)
        return self.size


class LocalFile(Source):
    def __init__(self, path: Path) -> None:
        self.path = path
        self._size = path.stat().st_size

    @property
    def size(self) -> int:
        return self._size

    def blocks(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        end = self.size if end is None else end
        with self.path.open("rb", buffering=0) as file:
            file.seek(start)
            while start < end and (block := file.read(min(BLOCK, end - start))):
                start += len(block)
                yield block

    def opened(self) -> BinaryIO:
        return self.path.open("rb")


class StoredFile(Source):
    def __init__(self, storage: Storage, key: str, size: int) -> None:
        self.storage = storage
        self.key = key
        self._size = size

    @property
    def size(self) -> int:
        return self._size

    def blocks(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        end = self._size if end is None else end
        while start < end:
            found = self.storage.read_range(self.key, start, min(start + _REQUEST, end))
            start += len(found)
            for place in range(0, len(found), BLOCK):
                yield found[place : place + BLOCK]

    def opened(self) -> io.RawIOBase:
        return ranges.StoredFile(lambda start, end: self.storage.read_range(self.key, start, end), self.size)


def stored(storage: Storage, key: str, size: int) -> Source:
    """A stored file, read without the storage's client where it lies on this machine."""
    path = storage.local_path(key)
    return LocalFile(path) if path is not None else StoredFile(storage, key, size)


class Given(Source):
    """Bytes that are at hand."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    @property
    def size(self) -> int:
        return len(self.data)

    def blocks(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        end = self.size if end is None else end
        for place in range(start, end, BLOCK):
            yield self.data[place : min(place + BLOCK, end)]

    def opened(self) -> BinaryIO:
        return io.BytesIO(self.data)
