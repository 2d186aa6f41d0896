"""Writes a zip of one text file and its images: the same content gives the same bytes; images are copied as they lie."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Collection
from typing import IO

from luthier.images.archives import Archive

_FIRST_DAY = (1980, 1, 1, 0, 0, 0)  # of zip's calendar: when something was packed is no part of what it is
_PIECE = 1024 * 1024


def pack(archive: Archive, rows: IO[bytes], out: IO[bytes], *, images: Collection[str]) -> None:
    """Write to `out`, which must be seekable, the rows under the name of the archive's own and those of its images.

    Raises ArchiveRefused for an image of which the header is damaged. Whether the rest of one is whole is not looked at:
    it is the same afterwards.
    """
    with zipfile.ZipFile(out, "w") as made:
        info = _info(archive.rows_name, archive.rows_method)
        info.file_size = rows.seek(0, io.SEEK_END)  # larger ones get another kind of header
        rows.seek(0)
        with made.open(info, "w") as entry:
            shutil.copyfileobj(rows, entry, _PIECE)
        for name in archive.images:
            if name in images:
                _copy(archive, name, made)


def _copy(archive: Archive, name: str, made: zipfile.ZipFile) -> None:
    """The library packs what it is given; so the packed bytes go beside it, and it is told where they are."""
    assert made.fp is not None
    packed = archive.packed(name)
    info = _info(name, packed.method)
    info.CRC, info.compress_size, info.file_size = packed.crc, packed.size, packed.expanded
    info.header_offset = made.fp.tell()
    made.fp.write(info.FileHeader())
    for piece in packed.pieces:
        made.fp.write(piece)
    made.start_dir = made.fp.tell()
    made.filelist.append(info)
    made.NameToInfo[name] = info


def _info(name: str, method: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _FIRST_DAY)
    info.compress_type = method
    info.create_system = 3  # wherever it is made
    info.external_attr = 0o100644 << 16
    return info
