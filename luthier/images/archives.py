"""Reads a zip of one text file and its images where it lies: nothing is extracted, nothing it says of itself is trusted.

The standard library reads the table of contents, behind a window that bounds what it may read; entries are inflated
here, so that every byte is counted. All that is wrong with an archive is found in one look and told together.
"""

from __future__ import annotations

import io
import itertools
import stat
import struct
import threading
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import BinaryIO, NamedTuple

from luthier.core.errors import InvalidRequest
from luthier.images.decoding import MOST_BYTES, ImageRefused

MOST_PROBLEMS = 1000
_MOST_CONTENTS_BYTES = 8 * 1024 * 1024  # the table of contents: 10,000 entries with names of 700 bytes
_SMALL = 1024 * 1024  # up to here a ratio says nothing: an empty-looking picture or a repeated row packs well
_PIECE = 64 * 1024
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_ENCRYPTED = 0x0001 | 0x0040 | 0x2000
_UTF8_NAME = 0x0800
_LONGEST_NAME = 255  # bytes
_IMAGES = (".jpg", ".jpeg", ".png", ".webp")
_OTHER_IMAGES = (".gif", ".bmp", ".tif", ".tiff", ".svg", ".heic", ".heif", ".avif", ".ico", ".jxl", ".jp2", ".psd")
_ROWS = (".jsonl", ".json")
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst", ".jar", ".lz4", ".cab", ".iso")
_JUNK = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})


class Problem(NamedTuple):
    """What is wrong with an archive, or with the entry of that name; `name` is "" for the whole of it."""

    code: str
    name: str
    message: str  # what is wrong and what to do
    found: str = ""  # of the whole: what it has
    expected: str = ""  # what it may have


class ArchiveRefused(InvalidRequest):
    """`problems` are at most 1,000, as they were found.

    Codes: archive_damaged, archive_too_large, archive_unpacks_large, archive_bomb, archive_too_many, archive_encrypted,
    archive_method, archive_link, archive_not_a_file, archive_in_archive, archive_other_file, archive_image_type,
    archive_image_too_large, archive_path, archive_name, archive_name_not_utf8, archive_duplicate, archive_no_rows,
    archive_two_row_files.
    """

    code = "archive_refused"

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems[:MOST_PROBLEMS])
        said = "; ".join(f"{one.name}: {one.message}" if one.name else one.message for one in self.problems[:3])
        more = f"; and {len(problems) - 3:,} more" if len(problems) > 3 else ""
        super().__init__(f"The archive cannot be used: {said}{more}.", hint="Mend it, pack it again and upload it.")


@dataclass(frozen=True)
class Limits:
    most_entries: int = 10_000
    most_packed_bytes: int = 1024**3  # the archive as it lies there
    most_expanded_bytes: int = 5 * 1024**3  # all entries
    most_image_bytes: int = MOST_BYTES  # one image, expanded
    most_ratio: int = 100  # expanded to packed, of an entry and of the whole, above 1 MiB


@dataclass(frozen=True)
class Packed:
    """An entry as it lies in an archive."""

    method: int  # as zipfile numbers them
    crc: int
    size: int
    expanded: int
    pieces: Iterator[bytes]


class Archive:
    """One text file and images beside it, in a zip.

    They lie at the top, or all in one folder, as many tools pack it; that folder's name is left off. Names are in
    Unicode's NFC. What systems leave behind (`__MACOSX/`, `.DS_Store`, `._*`, `Thumbs.db`, `desktop.ini`) is left out and said in
    `notes`. Threads may read from one archive; they take turns at the file.
    """

    def __init__(self, file: BinaryIO | io.RawIOBase, *, limits: Limits | None = None) -> None:
        """Look at the table of contents of `file`, which must be seekable and stay open; no entry is read yet.

        Raises ArchiveRefused with every problem found.
        """
        self._limits = limits or Limits()
        self._window = _Window(file)
        self._entries: dict[str, _Entry] = {}
        self._folded: dict[str, str] = {}  # names without regard to capitals, for hints
        self._rows: _Entry
        self.notes: list[tuple[str, str]] = []  # (name, why it was left out)
        self._problems: list[Problem] = []
        try:
            self._look()
            if self._problems:
                raise ArchiveRefused(self._problems)
        finally:
            self._problems = []

    @property
    def rows_name(self) -> str:
        """The text file's name: the one entry that ends in .jsonl or .json."""
        return self._rows.name

    @property
    def rows_bytes(self) -> int:
        """The bytes that the text file declares to have, which reading it holds it to."""
        return self._rows.expanded

    @property
    def rows_method(self) -> int:
        """How the text file is packed, as zipfile numbers it."""
        return self._rows.method

    @property
    def images(self) -> Mapping[str, int]:
        """The images' names, in the archive's order, with the bytes that each declares to have."""
        return MappingProxyType({name: entry.expanded for name, entry in self._entries.items()})

    def open_rows(self) -> io.BufferedReader:
        """The text file as a stream, inflated while it is read.

        Reading raises ArchiveRefused where the entry is damaged or is larger or smaller than it declares.
        """
        return io.BufferedReader(_Inflating(self._window, self._rows), _PIECE)

    def image(self, name: str) -> bytes:
        """The bytes of one image, not decoded: whether they are one is the decoder's to say.

        Raises ImageRefused: image_name_not_allowed for a path, image_missing for a name that is not in the archive,
        image_entry_damaged for an entry that is damaged or is not what it declares.
        """
        wanted = unicodedata.normalize("NFC", name)
        if (entry := self._entries.get(wanted)) is None:
            raise self._missing(wanted)
        try:
            with _Inflating(self._window, entry) as inflating:
                return b"".join(iter(lambda: inflating.read(_PIECE), b""))
        except ArchiveRefused as refused:
            raise ImageRefused(
                "image_entry_damaged",
                f"{_shown(name)} cannot be read from the archive: {refused.problems[0].message}.",
                hint="Pack the archive again.",
            ) from refused

    def packed(self, name: str) -> Packed:
        """One of the `images` as it lies here, to be copied. Raises ArchiveRefused where its header is damaged."""
        entry = self._entries[name]
        with _Inflating(self._window, entry) as inflating:
            start = inflating.start
        places = range(start, start + entry.packed, _PIECE)
        pieces = (self._window.read_at(place, min(_PIECE, start + entry.packed - place)) for place in places)
        return Packed(entry.method, entry.crc, entry.packed, entry.expanded, pieces)

    def _look(self) -> None:
        limits = self._limits
        if self._window.size > limits.most_packed_bytes:
            size, most = self._window.size, limits.most_packed_bytes
            said = f"it is {size:,} bytes; at most {most:,} are allowed"
            self._problem("archive_too_large", "", said, found=f"{size:,}", expected=f"{most:,}")
            return
        if (contents := self._contents()) is None:
            return
        if len(contents.infolist()) > limits.most_entries:
            self._too_many_entries()
            return
        entries = list(self._read_entries(contents))
        self._check_total(entries)
        self._check_overlap(entries, contents.start_dir)
        self._check_names([entry for entry in entries if not entry.is_folder])
        files = [entry for entry in entries if not entry.is_folder and not self._is_left_out(entry)]
        self._place(files, _shared_folder(files))

    def _contents(self) -> zipfile.ZipFile | None:
        try:
            with self._window.bounded(_MOST_CONTENTS_BYTES, self._limits.most_entries):
                return zipfile.ZipFile(self._window)
        except _TooManyEntries:
            self._too_many_entries()
        except zipfile.BadZipFile as wrong:
            said = f"it is no zip that can be read: {wrong}; send a whole .zip file"
            self._problem("archive_damaged", "", said, found="the table of contents")
        except (_BeforeStart, struct.error, ValueError, OverflowError, NotImplementedError, IndexError) as wrong:
            said = f"its table of contents is damaged: {wrong}"
            self._problem("archive_damaged", "", said, found="the table of contents")
        return None

    def _too_many_entries(self) -> None:
        most = self._limits.most_entries
        said = f"it has more than the {most:,} entries that are allowed, or names too long"
        self._problem("archive_too_many", "", said, expected=f"{most:,}")

    def _read_entries(self, contents: zipfile.ZipFile) -> Iterator[_Entry]:
        """Every entry with what is wrong with it alone."""
        for info in contents.infolist():
            raw = info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8_NAME else "cp437", "surrogateescape")
            try:
                name = raw.decode()
            except UnicodeDecodeError:
                name = info.orig_filename
                self._problem(
                    "archive_name_not_utf8", name, "its name is not in UTF-8; pack the archive with UTF-8 names"
                )
            entry = _Entry(
                name=unicodedata.normalize("NFC", name),
                raw_name=raw,
                start=info.header_offset,
                packed=info.compress_size,
                expanded=info.file_size,
                method=info.compress_type,
                crc=info.CRC,
                is_folder=name.endswith("/"),
            )
            self._check_entry(entry, info)
            yield entry

    def _check_entry(self, entry: _Entry, info: zipfile.ZipInfo) -> None:
        name = entry.name
        if (wrong := _name_problem(entry)) is not None:
            self._problem(wrong[0], name, wrong[1])
        if info.flag_bits & _ENCRYPTED:
            self._problem("archive_encrypted", name, "it is encrypted; pack it without a password")
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind == stat.S_IFLNK:
            self._problem("archive_link", name, "it is a link; put the file itself there")
        elif kind not in (0, stat.S_IFREG, stat.S_IFDIR) or (kind == stat.S_IFDIR and not entry.is_folder):
            self._problem("archive_not_a_file", name, "it is neither a file nor a folder")
        if entry.is_folder and entry.expanded:
            self._problem("archive_not_a_file", name, "it is a folder and has content")
        if entry.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            self._problem("archive_method", name, f"it is packed with method {entry.method}; use deflate")
        elif entry.method == zipfile.ZIP_STORED and entry.packed != entry.expanded:
            self._problem("archive_damaged", name, "it is stored as it is and declares two sizes")
        if entry.expanded > max(_SMALL, self._limits.most_ratio * entry.packed):
            most = self._limits.most_ratio
            self._problem("archive_bomb", name, _ratio(entry.expanded, entry.packed, most), expected=f"{most:,}")

    def _check_total(self, entries: list[_Entry]) -> None:
        expanded, limits = sum(entry.expanded for entry in entries), self._limits
        if expanded > limits.most_expanded_bytes:
            most = limits.most_expanded_bytes
            said = f"it expands to {expanded:,} bytes; at most {most:,} are allowed"
            self._problem("archive_unpacks_large", "", said, found=f"{expanded:,}", expected=f"{most:,}")
        if expanded > max(_SMALL, limits.most_ratio * self._window.size):
            said = _ratio(expanded, self._window.size, limits.most_ratio)
            self._problem("archive_bomb", "", said, found="all of it", expected=f"{limits.most_ratio:,}")

    def _check_overlap(self, entries: list[_Entry], contents_start: int) -> None:
        """Every entry lies between the start of its header and that of the next one, or of the table of contents."""
        in_order = sorted(entries, key=lambda entry: entry.start)
        for entry, following in itertools.zip_longest(in_order, in_order[1:]):
            entry.end = following.start if following else contents_start
            least = entry.start + _LOCAL_HEADER.size + len(entry.raw_name) + entry.packed
            if entry.start < 0 or least > entry.end:
                other = f"{_shown(following.name)}" if following else "the table of contents"
                self._problem("archive_damaged", entry.name, f"it overlaps {other}; each must have bytes of its own")

    def _check_names(self, files: list[_Entry]) -> None:
        names: set[str] = set()
        folded: dict[str, str] = {}
        for entry in files:
            same = folded.setdefault(_folded(entry.name), entry.name)
            if entry.name in names:
                self._problem("archive_duplicate", entry.name, "it is there more than once; keep one")
            elif same != entry.name:
                self._problem(
                    "archive_duplicate", entry.name, f"it differs from {_shown(same)} by capitals only; rename one"
                )
            names.add(entry.name)

    def _is_left_out(self, entry: _Entry) -> bool:
        folder, _, last = entry.name.rpartition("/")
        is_junk = folder.split("/")[0] == "__MACOSX" or last in _JUNK or last.startswith("._")
        if is_junk:
            self.notes.append((_shown(entry.name), "left out: written by a system, not by a person"))
        return is_junk

    def _place(self, files: list[_Entry], folder: str) -> None:
        """Tell rows from images, without the shared folder in front."""
        rows: list[_Entry] = []
        for entry in files:
            entry.name = entry.name.removeprefix(folder)
            ending = entry.name[entry.name.rfind(".") :].lower() if "." in entry.name else ""
            if "/" in entry.name:
                self._problem("archive_path", entry.name, "it lies in a folder; put all files beside the text file")
            elif ending in _ROWS:
                rows.append(entry)
            elif ending in _IMAGES:
                self._add_image(entry)
            elif ending in _ARCHIVES:
                self._problem("archive_in_archive", entry.name, "it is an archive in the archive; put its files here")
            elif ending in _OTHER_IMAGES:
                self._problem("archive_image_type", entry.name, "JPEG, PNG or WEBP is expected; convert it")
            else:
                expected = ", ".join((*_ROWS, *_IMAGES))
                self._problem("archive_other_file", entry.name, f"its name must end in one of {expected}; leave it out")
        if len(rows) == 1:
            self._rows = rows[0]
        elif rows:
            names = ", ".join(_shown(entry.name) for entry in rows[:5])
            said = f"it has {len(rows)} text files ({names}); one is expected"
            self._problem("archive_two_row_files", "", said, found=names)
        else:
            self._problem("archive_no_rows", "", "it has no text file; one that ends in .jsonl or .json is expected")

    def _add_image(self, entry: _Entry) -> None:
        most = self._limits.most_image_bytes
        if entry.expanded > most:
            said = f"it is {entry.expanded:,} bytes; at most {most:,} are allowed"
            self._problem("archive_image_too_large", entry.name, said, expected=f"{most:,}")
        self._entries[entry.name] = entry
        self._folded[_folded(entry.name)] = entry.name

    def _problem(self, code: str, name: str, message: str, *, found: str = "", expected: str = "") -> None:
        self._problems.append(Problem(code, _shown(name) if name else "", message, found, expected))

    def _missing(self, name: str) -> ImageRefused:
        if "/" in name or "\\" in name or name in ("", ".", ".."):
            return ImageRefused(
                "image_name_not_allowed",
                f"{_shown(name) or 'An empty name'} is a path; the name of an image in the archive is expected.",
                hint="Name the image alone, without folders.",
            )
        near = self._folded.get(_folded(name))
        return ImageRefused(
            "image_missing",
            f"{_shown(name)} is not in the archive, which has {len(self._entries):,} images.",
            hint=f"Did you mean {_shown(near)}?" if near else "Add it, or take out the row that names it.",
        )


@dataclass
class _Entry:
    name: str
    raw_name: bytes
    start: int  # of its header in the file
    packed: int
    expanded: int
    method: int
    crc: int
    is_folder: bool
    end: int = 0  # where the next entry starts


class _Inflating(io.RawIOBase):
    """One entry, inflated piece by piece, its bytes counted and summed up."""

    def __init__(self, window: _Window, entry: _Entry) -> None:
        self._window = window
        self._entry = entry
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS) if entry.method == zipfile.ZIP_DEFLATED else None
        self.start = self._data_start()
        self._position = self.start
        self._packed_left = entry.packed
        self._given = 0
        self._crc = 0
        self._is_done = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        if self._is_done or not len(buffer):
            return 0
        piece = self._next(len(buffer))
        self._given += len(piece)
        self._crc = zlib.crc32(piece, self._crc)
        if self._given > self._entry.expanded:
            raise self._refused("it holds more bytes than it declares")
        if not piece:
            self._is_done = True
            if self._given != self._entry.expanded:
                raise self._refused("it holds fewer bytes than it declares")
            if self._crc != self._entry.crc:
                raise self._refused("its checksum is wrong")
        buffer[: len(piece)] = piece
        return len(piece)

    def _next(self, count: int) -> bytes:
        """At least one byte and at most `count`; none at the end."""
        if self._inflate is None:
            return self._packed(count)
        try:
            while not self._inflate.eof:
                packed = self._inflate.unconsumed_tail or self._packed(_PIECE)
                if piece := self._inflate.decompress(packed, count):
                    return piece
                if not packed:
                    raise self._refused("it is cut off")
        except zlib.error as wrong:
            raise self._refused("it is damaged") from wrong
        if self._packed_left or self._inflate.unused_data:
            raise self._refused("it holds bytes that belong to no file")
        return b""

    def _packed(self, count: int) -> bytes:
        piece = self._window.read_at(self._position, min(count, self._packed_left))
        self._position += len(piece)
        self._packed_left -= len(piece)
        return piece

    def _data_start(self) -> int:
        """Where the data begins: the header in front of it must tell the same as the table of contents."""
        entry = self._entry
        header = self._window.read_at(entry.start, _LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size:
            raise self._refused("its header is cut off")
        mark, _, flags, method, *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        name = self._window.read_at(entry.start + _LOCAL_HEADER.size, name_length)
        if mark != b"PK\3\4" or method != entry.method or flags & _ENCRYPTED or name != entry.raw_name:
            raise self._refused("its header does not fit the table of contents")
        start = entry.start + _LOCAL_HEADER.size + name_length + extra_length
        if start + entry.packed > entry.end:
            raise self._refused("it overlaps what follows it")
        return start

    def _refused(self, message: str) -> ArchiveRefused:
        return ArchiveRefused([Problem("archive_damaged", _shown(self._entry.name), message)])


class _TooManyEntries(Exception):
    pass


class _BeforeStart(OSError):
    """Where the library expects a file's own error."""


class _Window:
    """A seekable file with reads that are whole and, while the table of contents is read, bounded."""

    def __init__(self, file: BinaryIO | io.RawIOBase) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._bounds: tuple[int, int] | None = None
        self.size = file.seek(0, io.SEEK_END)
        self._position = 0

    @contextmanager
    def bounded(self, most_bytes: int, most_entries: int) -> Iterator[None]:
        self._bounds = (most_bytes, most_entries)
        try:
            yield
        finally:
            self._bounds = None

    def read_at(self, position: int, count: int) -> bytes:
        """So many bytes from there, fewer only at the end."""
        pieces = []
        with self._lock:
            self._file.seek(position)
            while count > 0 and (piece := self._file.read(count)):
                pieces.append(piece)
                count -= len(piece)
        return b"".join(pieces)

    def read(self, count: int = -1) -> bytes:
        if count < 0:
            count = max(0, self.size - self._position)
        if self._bounds and count > self._bounds[0]:
            raise _TooManyEntries
        data = self.read_at(self._position, count)
        if self._bounds and data.count(b"PK\1\2") > self._bounds[1]:  # before an object is made of each
            raise _TooManyEntries
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence] + offset
        if position < 0:
            raise _BeforeStart(f"an offset of {position:,}")
        self._position = position
        return position

    def tell(self) -> int:
        return self._position

    def seekable(self) -> bool:
        return True


def _name_problem(entry: _Entry) -> tuple[str, str] | None:
    """A code and what is wrong with a name."""
    name = entry.name
    if len(entry.raw_name) > _LONGEST_NAME:
        return "archive_name", f"its name is {len(entry.raw_name)} bytes long; at most {_LONGEST_NAME} are allowed"
    if not name.isprintable():  # control characters, NUL, marks that turn text around
        return "archive_name", "its name holds characters that cannot be seen; rename it"
    if "\\" in name:
        return "archive_path", "its name holds a backslash; use plain names"
    if name.startswith("/") or name[1:2] == ":":
        return "archive_path", "its name is an absolute path; use plain names"
    if any(part in ("", ".", "..") for part in name.removesuffix("/").split("/")):
        return "archive_path", "its name leads to another folder; use plain names"
    return None


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())


def _shared_folder(files: list[_Entry]) -> str:
    """The folder that all files lie in, with its slash; "" when they do not."""
    tops = {entry.name.partition("/")[0] for entry in files if "/" in entry.name}
    return f"{tops.pop()}/" if len(tops) == 1 and all("/" in entry.name for entry in files) else ""


def _ratio(expanded: int, packed: int, most: int) -> str:
    return f"it expands {expanded // max(1, packed):,} times, to {expanded:,} bytes; at most {most} times is allowed"


def _shown(name: str) -> str:
    """A name for messages: on one line, and short."""
    cut = name if len(name) <= 120 else name[:117] + "..."
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in cut)
