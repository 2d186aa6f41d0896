"""The rows of a file: the file itself, or the text file in a zip archive, beside the archive with its images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from luthier.images.archives import Archive, ArchiveRefused
from luthier.records.problems import Problem
from luthier.records.source import BLOCK, Source

_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")  # one with entries, and an empty one


class ArchiveRows(Source):
    """The text file in an archive. It unfolds from its beginning only, so it is read in one piece."""

    is_whole = True

    def __init__(self, archive: Archive, size: int) -> None:
        self.archive = archive
        self._size = size

    @property
    def size(self) -> int:
        return self._size

    def blocks(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        end = self._size if end is None else end
        with self.archive.open_rows() as rows:
            place = 0
            while place < end and (block := rows.read(min(BLOCK, end - place))):
                if place + len(block) > start:
                    yield block[max(start - place, 0) :]
                place += len(block)
            if place == self._size:
                rows.read(1)  # its checksum is looked at where it ends


def is_archive(source: Source) -> bool:
    """Whether a file begins like a zip archive, Office documents among them."""
    return next(source.blocks(0, 4), b"").startswith(_MAGIC)


def suffix_of(source: Source) -> str:
    """How the name ends of a file that is made from this one: an archive gives an archive."""
    return ".zip" if is_archive(source) else ".jsonl"


@contextmanager
def rows_in(source: Source) -> Iterator[tuple[Source, Archive | None]]:
    """Where the rows of a file are, and the archive that they lie in, if any. Raises ArchiveRefused with all its problems."""
    if not is_archive(source):
        yield source, None
        return
    with source.opened() as file:
        archive = Archive(file)
        yield ArchiveRows(archive, archive.rows_bytes), archive


def is_office(refused: ArchiveRefused) -> bool:
    """Whether what was refused is no archive of rows at all, but a document that happens to be packed as one."""
    return any(
        one.name == "[Content_Types].xml" or one.name.startswith(("word/", "xl/", "ppt/")) for one in refused.problems
    )


def wrong_with(refused: ArchiveRefused) -> list[Problem]:
    """What is wrong with an archive, as problems of the file; what was found twice with one entry is told once."""
    told = (
        Problem(code=one.code, found=f'"{one.name}"' if one.name else one.found, expected=one.expected)
        for one in refused.problems
    )
    return list(dict.fromkeys(told))
