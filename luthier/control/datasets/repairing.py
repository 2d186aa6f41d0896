"""A file with every fault removed that has one right answer, and what was changed for it."""

from __future__ import annotations

import codecs
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from luthier.control.datasets.archives import rows_in
from luthier.control.datasets.inspection import format_of, is_utf16
from luthier.core.errors import InvalidRequest
from luthier.formats.base import DatasetFormat, form_of_row, problems_of, recognised, taken_over
from luthier.formats.base import known as known_formats
from luthier.images.packing import pack
from luthier.records.foreign import foreign, unread
from luthier.records.problems import MEANINGS, Problem
from luthier.records.reader import Blank, Reader, Record
from luthier.records.source import Source

_LISTED = 200
_SHOWN = 500  # characters


@dataclass
class Changes:
    """What a repair did: `counts` by code over the whole file, `rows` the first changed ones with before and after."""

    rows_changed: int = 0
    rows_left: int = 0
    """Rows that still have a problem, because only a person can know what is right."""
    images: int = 0
    """Images of the other rows. The repair looks at none: that one is missing or damaged is told by the check alone."""
    counts: Counter[str] = field(default_factory=Counter)
    rows: list[dict[str, Any]] = field(default_factory=list)


def repair(source: Source, out: IO[bytes]) -> Changes:
    """Write the repaired file. Rows without a fault, and those that cannot be repaired, are copied byte by byte; blank lines
    are left out. Of an archive the rows are repaired and packed again, beside all of its images as they are; `out` must
    be seekable then.

    Raises InvalidRequest where there is nothing that a repair could do, or something that it could not copy.
    """
    with rows_in(source) as (rows, archive):
        if archive is None:
            return _repair(rows, out)
        with tempfile.TemporaryFile() as made:
            changes = _repair(rows, made)
            pack(archive, made, out, images=archive.images)
        return changes


def _repair(source: Source, out: IO[bytes]) -> Changes:
    head = next(source.blocks(0, 4096), b"")
    changes = Changes()
    utf16 = is_utf16(head)

    def blocks() -> Iterator[bytes]:
        return _from_utf16(source, head) if utf16 else source.blocks()

    if utf16:
        changes.counts["utf16"] += 1
    form = format_of(_Again(blocks) if utf16 else source)[0] or known_formats()["messages"]
    behind = _Behind(blocks())
    is_begun = False
    for found in Reader(blocks()):
        if isinstance(found, Blank):
            continue
        if isinstance(found, Problem):
            if MEANINGS[found.code].repairable:
                changes.counts[found.code] += 1
            elif found.code != "unclosed":  # an array without its end: all rows of it are there
                raise InvalidRequest(
                    f"The file cannot be repaired before this is put right by hand: {found.text.en}",
                    hint="What stands there could not be copied whole.",
                )
            continue
        line = _repaired(found, form, changes)
        if any(problem.code == "text_after_record" for problem in found.problems):
            line += behind(*found.at(len(found.text)))
        if not is_begun:  # a mark that follows a mark would be one again
            line = line.lstrip("\ufeff")
        if line:
            out.write(line.encode("utf-8", "surrogateescape") + b"\n")
            is_begun = True
    if not changes.counts:
        raise InvalidRequest(
            "There is nothing in this file that the repair could do.", hint="See the report for what is wrong."
        )
    return changes


def _repaired(record: Record, form: type[DatasetFormat], changes: Changes) -> str:
    """The line of a record; its own text where nothing can be done."""
    own = record.text
    is_line = "\n" not in own
    if not record.problems and isinstance(record.value, dict) and recognised(record.value) and is_line:
        form = form_of_row(record.value, form) or form
        if not problems_of(record, form):
            changes.images += len(form.images(record.value))
            return own
    if not isinstance(record.value, dict) or any(not MEANINGS[one.code].repairable for one in record.problems):
        changes.rows_left += 1
        return own
    before = Counter(problem.code for problem in record.problems)
    theirs = None if recognised(record.value) else foreign(record.value)
    if theirs is not None and unread(record.value):  # nothing of it may be lost without a word
        changes.rows_left += 1
        return own
    value = record.value
    of = form_of_row(value if theirs is None else theirs[1], form)
    if theirs is not None:
        before["other_rows"] += 1
        value, wrong = taken_over(theirs[1], form)
        if wrong:  # half a translation helps nobody
            changes.rows_left += 1
            return own
    elif of is not None:
        before = Counter(problem.code for problem in problems_of(record, of))
        value = of.repaired(value)
    text = _dumped(value)
    after = Counter(problem.code for problem in problems_of(Record(record.row, record.line, text, value), of or form))
    fixed = Counter({code: n for code, n in before.items() if MEANINGS[code].repairable and not after[code]})
    if after or of is None:
        changes.rows_left += 1
    else:
        changes.images += len(of.images(value))
    if not before and not is_line:  # an element of an array, on several lines
        return text
    if not fixed:
        return own
    changes.counts.update(fixed)
    changes.rows_changed += 1
    if len(changes.rows) < _LISTED:
        changes.rows.append(
            {
                "row": record.row,
                "line": record.line,
                "codes": sorted(fixed),
                "before": _shown(own),
                "after": _shown(text),
            }
        )
    return text


def _shown(text: str) -> str:
    return text[:_SHOWN].encode("utf-8", "replace").decode()  # bytes that are no characters can be kept nowhere else


class _Again(Source):
    """Blocks that can be had again, as a source that is only read from its beginning."""

    def __init__(self, begin: Callable[[], Iterator[bytes]]) -> None:
        self._begin = begin

    @property
    def size(self) -> int:
        raise NotImplementedError

    def blocks(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        return self._begin()


class _Behind:
    """What stands behind a place on its line; asked for places in the order of the file."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._lines = _lines(blocks)
        self._line = ""
        self._number = 0

    def __call__(self, line: int, column: int) -> str:
        while self._number < line:
            self._line = next(self._lines, b"").decode("utf-8", "surrogateescape")
            self._number += 1
        return self._line.removeprefix("\ufeff")[column - 1 :]


def _lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    rest: list[bytes] = []
    for block in blocks:
        *whole, last = block.split(b"\n")
        for line in whole:
            yield b"".join([*rest, line])
            rest = []
        rest.append(last)
    yield b"".join(rest)


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _from_utf16(source: Source, head: bytes) -> Iterator[bytes]:
    name = "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else None
    name = name or ("utf-16-be" if head[:1] == b"\0" else "utf-16-le")
    decoder = codecs.getincrementaldecoder(name)("replace")
    for block in source.blocks():
        yield decoder.decode(block).encode("utf-8", "replace")
    yield decoder.decode(b"", final=True).encode()
