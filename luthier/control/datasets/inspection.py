"""Reads a file once, in pieces side by side: how many rows, what is in them, and everything that is wrong with them."""

from __future__ import annotations

import codecs
import multiprocessing
import tempfile
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import IO

from luthier.control.datasets.archives import ArchiveRows, is_office, rows_in, wrong_with
from luthier.control.datasets.pictures import Pictures, Pins
from luthier.control.datasets.report import KEPT, KEPT_TAGS, DatasetReport, Start, in_order, of_problem
from luthier.formats.base import (
    DatasetFormat,
    Findings,
    known,
    measure,
    misspelled,
    problems_of,
    recognised,
    taken_over,
)
from luthier.images.archives import Archive, ArchiveRefused
from luthier.records.foreign import foreign, unread
from luthier.records.problems import MEANINGS, Level, Problem, shown
from luthier.records.reader import Blank, Reader, Record
from luthier.records.source import Given, LocalFile, Source

PIECE = 32 * 1024 * 1024
"""Bytes that are read at a time by one process."""

MOST_TAGS = 10_000
"""Different tags that are counted."""

_HEAD = 1024 * 1024  # bytes that the format is told from
_SAMPLED = 100  # rows of them
_LONGEST_NAME = 255  # characters of an image in an archive; what is longer was meant as the image itself
_SORTED = 4_000_000  # rows whose hashes are compared at a time

ADVISED_ROWS = {"chat": 1000, "preference": 100}
"""Good rows that are advised for each kind; 100 for others."""

_MAGIC = {
    b"PAR1": "Parquet",
    b"%PDF": "PDF",
    b"\x1f\x8b": "gzip",
    b"\xd0\xcf\x11\xe0": "an Office document",
    b"SQLite format 3": "SQLite",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"Rar!": "RAR",
    b"7z\xbc\xaf": "7-Zip",
    b"ARROW1": "Arrow",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
}


@dataclass
class Piece:
    """What was found in one piece of a file. Lines and rows count from 1 within the piece."""

    full_before: frozenset[Level] = frozenset()
    """What the pieces before it had listed to the full."""
    ended_at: int = 0
    rows: int = 0
    lines: int = 0
    blanks: int = 0
    turns: int = 0
    trained_turns: int = 0
    characters: int = 0
    images: int = 0
    tags: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    warnings: list[Problem] = field(default_factory=list)
    warning_counts: Counter[str] = field(default_factory=Counter)
    others: dict[str, Problem] = field(default_factory=dict)
    """Formats other than the file's that rows were recognised as, each with the first such row."""
    hashes: array[int] = field(default_factory=lambda: array("q"))
    hash_lines: array[int] = field(default_factory=lambda: array("Q"))

    @property
    def full(self) -> frozenset[Level]:
        """Of what the report lists no more: it is counted, and where it lies need not be found."""
        lists: dict[Level, list[Problem]] = {"error": self.problems, "warning": self.warnings}
        return self.full_before.union(level for level, found in lists.items() if len(found) >= KEPT)

    def add(self, problem: Problem) -> None:
        if problem.level == "error":
            self.counts[problem.code] += 1
            if len(self.problems) < KEPT:
                self.problems.append(problem)
        else:
            self.warning_counts[problem.code] += 1
            if len(self.warnings) < KEPT:
                self.warnings.append(problem)


def inspect(
    source: Source,
    *,
    category: str | None = None,
    processes: int = 1,
    advised_rows: int | None = None,
    image_hosts: Sequence[str] = (),
    pins: Pins | None = None,
) -> DatasetReport:
    """Read a file once and report. Faults of the file are in the report, never raised.

    `category` is the format that the file is said to be of. Images are fetched from `image_hosts` only and kept at
    `pins`. Memory stays under some 100 MB a process.
    """
    if source.size == 0:
        return of_problem(Problem(code="file_empty"))
    try:
        with rows_in(source) as (rows, archive):
            return _inspect(rows, archive, category, processes, advised_rows, image_hosts, pins)
    except ArchiveRefused as refused:
        if is_office(refused):
            return of_problem(Problem(code="file_type", found="an Office document"))
        problems = wrong_with(refused)
        return DatasetReport(problems=problems[:KEPT], counts=dict(Counter(problem.code for problem in problems)))


def _inspect(
    rows: Source,
    archive: Archive | None,
    category: str | None,
    processes: int,
    advised_rows: int | None,
    image_hosts: Sequence[str],
    pins: Pins | None,
) -> DatasetReport:
    form, problem = None, _of_another_type(rows)
    if problem is None:
        form, problem = format_of(rows)
    if archive is not None and form is not None and not form.in_archive:
        form, problem = None, Problem(code="archive_no_images", found=archive.rows_name)
    if form is None:
        if archive is not None:  # where it is damaged, nothing else that is said of its rows is sure
            deque(rows.blocks(), maxlen=0)
        return of_problem(problem or Problem(code="file_empty"))
    whole = _Whole(rows, form)
    with tempfile.TemporaryFile() as spool:
        if form.kind in ("image_understanding", "image_generation"):
            with Pictures(archive=archive, hosts=image_hosts, pins=pins) as pictures:
                whole.read(1, spool, pictures)
        else:
            whole.read(processes, spool)
        whole.find_duplicates(spool)
    return whole.report(category, advised_rows)


def _of_another_type(source: Source) -> Problem | None:
    """A problem for a file that is no text of lines at all."""
    head = next(source.blocks(0, 4096), b"")
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            return Problem(code="file_type", found=name)
    return Problem(code="utf16", line=1, column=1) if is_utf16(head) else None


def is_utf16(head: bytes) -> bool:
    """Whether a file that begins so is UTF-16: by its mark, or because every other byte is zero."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return True
    odd, even = head[1::2].count(0), head[::2].count(0)
    return len(head) > 3 and max(odd, even) > len(head) // 4 and min(odd, even) < len(head) // 16


def format_of(source: Source) -> tuple[type[DatasetFormat] | None, Problem | None]:
    """The format that most of the first rows are of; in an archive that of its rows as soon as one of them calls an image by a
    name. A file without any JSON in its head has none.
    """
    votes: Counter[str] = Counter()
    calls_images = False
    first: Problem | None = None
    is_json, looked_at = False, 0
    reader = Reader(source.blocks())
    for found in reader:
        if isinstance(found, Problem):
            is_json = is_json or found.code == "json_array"
        elif isinstance(found, Record):
            looked_at += 1
            if isinstance(found.value, dict):
                is_json = True
                of = recognised(found.value)
                votes.update(of[:1])
                calls_images = calls_images or (isinstance(source, ArchiveRows) and _calls_images(found.value, of))
                if (theirs := foreign(found.value)) is not None:
                    votes.update(dict.fromkeys(recognised(theirs[1])[:1], 0))
            elif isinstance(found.value, list) and not found.problems:
                is_json = True
            elif first is None:
                line, column = found.at(0)
                first = Problem(line=line, column=column, code="not_json_lines", found=_begin(found.text))
        if looked_at >= _SAMPLED or (looked_at and reader.ended_at > _HEAD):
            break
    if not votes and not is_json and first is None and reader.rows:
        return known()["messages"], None  # rows that are too long to be looked at
    if not votes:
        return (known()["messages"], None) if is_json else (None, first)
    names = known()
    if calls_images:
        return _of_archives(), None
    chosen = votes.most_common(1)[0][0]
    wider = [name for name in votes if chosen in names[name].includes]
    return names[wider[0] if wider else chosen], None


def _calls_images(row: dict, names: Sequence[str]) -> bool:
    """Whether a row, recognised under these names, calls an image that it is asked about by a name, wherever it puts that."""
    archived = _of_archives()
    return any(known()[name].kind == archived.kind for name in names) and any(
        0 < len(source) <= _LONGEST_NAME and not source.startswith(("http://", "https://", "data:"))
        for _, source in archived.images(row)
    )


def _of_archives() -> type[DatasetFormat]:
    return next(form for form in known().values() if form.in_archive)


class _Whole:
    """Puts together what was found in the pieces of a file."""

    def __init__(self, source: Source, form: type[DatasetFormat]) -> None:
        self._source = source
        self._form = form
        self._sum = Piece()
        self._duplicates = 0
        self._repeated: tuple[int, int] | None = None
        self._spooled: list[int] = []  # rows of each piece in the spool
        self._starts: list[Start] = []

    def read(self, processes: int, spool: IO[bytes], pictures: Pictures | None = None) -> None:
        for piece in _pieces(self._source, self._form.name(), processes, lambda: self._sum.full, pictures):
            self._add(piece, spool)

    def _add(self, piece: Piece, spool: IO[bytes]) -> None:
        total, lines, rows = self._sum, self._sum.lines, self._sum.rows
        self._starts.append((total.ended_at, rows, lines))
        for problem in (*piece.problems, *piece.warnings):
            moved = problem.model_copy(
                update={
                    "line": problem.line + lines if problem.line else None,
                    "row": problem.row + rows if problem.row else None,
                }
            )
            kept = total.problems if problem.level == "error" else total.warnings
            if len(kept) < KEPT:
                kept.append(moved)
        for name, problem in piece.others.items():
            if name not in total.others:
                assert problem.line is not None and problem.row is not None
                update = {"line": problem.line + lines, "row": problem.row + rows}
                total.others[name] = problem.model_copy(update=update)
        spool.write(piece.hashes.tobytes())
        spool.write(array("Q", (line + lines for line in piece.hash_lines)).tobytes())
        self._spooled.append(len(piece.hashes))
        for name in ("ended_at", "rows", "lines", "blanks", "turns", "trained_turns", "characters", "images"):
            setattr(total, name, getattr(total, name) + getattr(piece, name))
        for name in ("counts", "warning_counts"):
            getattr(total, name).update(getattr(piece, name))
        for tag, rows_of_tag in piece.tags.items():
            if tag in total.tags or len(total.tags) < MOST_TAGS:
                total.tags[tag] += rows_of_tag

    def find_duplicates(self, spool: IO[bytes]) -> None:
        """Compare the hashes of all rows, some millions at a time, so that memory stays flat."""
        import numpy as np

        passes = -(-sum(self._spooled) // _SORTED)
        first: tuple[int, int] | None = None
        for number in range(passes):
            spool.seek(0)
            hashes, lines = [], []
            for count in self._spooled:
                some = np.frombuffer(spool.read(8 * count), dtype=np.uint64)
                at = np.frombuffer(spool.read(8 * count), dtype=np.uint64)
                mine = some % np.uint64(passes) == number if passes > 1 else slice(None)
                hashes.append(some[mine])
                lines.append(at[mine])
            some, at = np.concatenate(hashes), np.concatenate(lines)
            order = np.lexsort((at, some))
            some, at = some[order], at[order]
            repeats = np.flatnonzero(some[1:] == some[:-1])
            self._duplicates += len(repeats)
            if len(repeats):
                place = repeats[np.argmin(at[repeats + 1])]
                found = (int(at[place + 1]), int(at[place]))
                first = found if first is None else min(first, found)
        self._repeated = first

    def report(self, category: str | None, advised_rows: int | None) -> DatasetReport:
        total, names = self._sum, known()
        name = self._form.name()
        seen = {name, *total.others}
        widest = [one for one in seen if seen - {one} <= names[one].includes]
        if widest:
            name = widest[0]
        else:
            for other, problem in total.others.items():
                total.counts["format_mixed"] += 1
                total.problems.append(problem.model_copy(update={"found": other, "expected": name}))
        form = names[name]
        if category is not None and category != name and name not in names[category].includes:
            total.counts["category_mismatch"] += 1
            total.problems.append(Problem(code="category_mismatch", found=name, expected=category))
        if not total.rows and not total.counts.keys() - {"byte_order_mark", "json_array"}:
            return of_problem(Problem(code="file_empty"))
        warnings = [*self._of_the_whole(form, advised_rows)]
        for warning in warnings:
            total.warning_counts[warning.code] += 1
        return DatasetReport(
            format=name,
            kind=form.kind,
            rows=total.rows,
            lines=total.lines,
            turns=total.turns,
            trained_turns=total.trained_turns,
            characters=total.characters,
            images=total.images,
            tags=dict(total.tags.most_common(KEPT_TAGS)),
            duplicate_rows=self._duplicates,
            problems=in_order(total.problems),
            counts=dict(total.counts),
            warnings=in_order([*warnings, *total.warnings]),
            warning_counts=dict(total.warning_counts),
            starts=self._starts,
        )

    def _of_the_whole(self, form: type[DatasetFormat], advised_rows: int | None) -> Iterator[Problem]:
        """Warnings that are of no single row."""
        total = self._sum
        advised = advised_rows if advised_rows is not None else ADVISED_ROWS.get(form.kind, 100)
        if total.rows < advised:
            yield Problem(code="too_few_rows", found=f"{total.rows:,}", expected=f"{advised:,}")
        if total.blanks:
            yield Problem(code="blank_lines", found=f"{total.blanks:,}")
        if self._repeated is not None:
            line, earlier = self._repeated
            yield Problem(code="duplicates", line=line, found=f"{self._duplicates:,}", expected=f"{earlier:,}")
        if len(total.tags) > KEPT_TAGS:
            yield Problem(code="too_many_tags", found=f"{KEPT_TAGS:,}")
        elif len(total.tags) > 1:
            tag, largest = total.tags.most_common(1)[0]
            if largest > 0.8 * total.rows:
                yield Problem(code="tag_large", found=tag, expected=f"{largest / total.rows:.0%}")
            tag, smallest = total.tags.most_common()[-1]
            if smallest < 10:
                yield Problem(code="tag_small", found=tag, expected=str(smallest))


def _pieces(
    source: Source, form: str, processes: int, full: Callable[[], frozenset[Level]], pictures: Pictures | None
) -> Iterator[Piece]:
    """The pieces of a file in order, read side by side. `full` says what those that were given list no more.

    A piece whose last record goes on beyond it makes what was read of the next one worthless: that is read again from
    where the record ended.
    """
    bounds = piece_bounds(source)
    if processes == 1 or len(bounds) == 2:
        yield from _one_by_one(source, form, bounds, full, pictures)
        return
    # Clients of a storage do not outlive a fork. All children of one forkserver hash alike, as forked ones do.
    is_local = isinstance(source, LocalFile | Given)
    context = multiprocessing.get_context("fork" if is_local else "forkserver")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        ahead: list[tuple[int, int, Future[Piece]]] = []
        places = pairwise(bounds)
        start = 0
        while True:
            while len(ahead) < processes + 1 and (place := next(places, None)) is not None:
                ahead.append((*place, pool.submit(read_piece, source, form, *place, full())))
            if not ahead:
                return
            planned, end, future = ahead.pop(0)
            if start >= end:
                future.cancel()
                continue
            if start != planned:
                future.cancel()
                future = pool.submit(read_piece, source, form, start, end, full())
            piece = future.result()
            start += piece.ended_at
            yield piece


def _one_by_one(
    source: Source,
    form: str,
    bounds: Sequence[int],
    full: Callable[[], frozenset[Level]],
    pictures: Pictures | None,
) -> Iterator[Piece]:
    start = 0
    for end in bounds[1:]:
        if start < end:
            piece = read_piece(source, form, start, end, full(), pictures)
            start += piece.ended_at
            yield piece


def piece_bounds(source: Source) -> list[int]:
    """Where pieces begin, each at the start of a line; the last is the size of the file."""
    if source.is_whole:
        return [0, source.size]
    bounds, first = [0], _first_sign(source)
    while bounds[-1] < source.size:
        following = max(bounds[-1], first) + PIECE
        bounds.append(source.size if following >= source.size else source.after_line(following))
    return bounds


def _first_sign(source: Source) -> int:
    """Where the first sign is that is not blank, so that the piece with it can tell what kind of file it is."""
    place = 0
    for block in source.blocks():
        rest = (block.removeprefix(codecs.BOM_UTF8) if place == 0 else block).lstrip()
        if rest:
            return place + len(block) - len(rest)
        place += len(block)
    return place


def read_piece(
    source: Source,
    form: str,
    start: int,
    end: int,
    full: frozenset[Level] = frozenset(),
    pictures: Pictures | None = None,
) -> Piece:
    """Read the records that begin between two places of a file, both at the start of a line. Of the levels that are `full`
    nothing is listed.
    """
    piece = Piece(full)
    quick = known()[form].quick()
    taken = None if quick is None else (lambda lines, first_line: quick(lines, first_line, piece.full))
    reader = Reader(source.blocks(start, end), beyond=lambda: source.blocks(end), quick=taken, is_start=start == 0)
    for found in reader if pictures is None else pictures.ahead(reader, known()[form]):
        if isinstance(found, Blank):
            piece.blanks += 1
        elif isinstance(found, Problem):
            piece.add(found)
        else:
            _look(found, form, piece, pictures)
    piece.rows, piece.lines = reader.rows, reader.lines
    piece.ended_at = reader.ended_at
    if quick is not None:
        piece.turns += quick.turns
        piece.trained_turns += quick.trained_turns
        piece.characters += quick.characters
        piece.tags.update(quick.tags)
        for code, number in quick.counts.items():
            (piece.counts if MEANINGS[code].level == "error" else piece.warning_counts)[code] += number
        piece.hashes.extend(quick.hashes)
        piece.hash_lines.extend(quick.lines)
    return piece


def _look(record: Record, name: str, piece: Piece, pictures: Pictures | None) -> None:
    """One record, carefully."""
    piece.hashes.append(hash(record.text.encode("utf-8", "surrogateescape")))
    piece.hash_lines.append(record.line)
    row = record.value
    if not isinstance(row, dict):
        for problem in problems_of(record, known()[name]):
            piece.add(problem)
        return
    findings = Findings(record, list(record.problems), unplaced=piece.full)
    form = _form_of_row(row, name, findings, piece)
    if form is not None and record.is_sure:  # of half a row nothing more can be said
        form.check(row, findings)
        if pictures is not None and not findings.problems:
            pictures.check(form, row, findings)
    for problem in (*findings.problems, *findings.warnings):
        piece.add(problem)
    if form is None or findings.problems:
        return
    size = measure(form.value(row))
    piece.turns += size.turns
    piece.trained_turns += size.trained_turns
    piece.characters += size.characters
    piece.images += size.images
    if "tag" in row and (row["tag"] in piece.tags or len(piece.tags) < MOST_TAGS):
        piece.tags[row["tag"]] += 1


def _form_of_row(row: dict, name: str, findings: Findings, piece: Piece) -> type[DatasetFormat] | None:
    """The format to judge a row by; None where it is of none, which is then said."""
    names = recognised(row)
    forms = known()
    if name in names and len(names) == 1:
        return forms[name]
    if (theirs := foreign(row)) is not None:
        if lost := unread(row):
            findings.add("other_rows_more", (), found=theirs[0], expected=", ".join(lost[:8]))
        elif findings.record.is_sure and (wrong := taken_over(theirs[1], forms[name])[1]):
            findings.add("other_rows_wrong", (), found=theirs[0], expected=", ".join(map(shown, wrong[:5])))
        else:
            findings.add("other_rows", (), found=theirs[0])
        return None
    if not names:
        if not row or forms[name].claims(row):
            return forms[name]
        if findings.record.is_sure and (wrong := misspelled(row)) is not None:
            findings.add("misspelled_field", (wrong[0],), found=wrong[0], expected=wrong[1], of_key=True)
            return None
        fields = ", ".join(list(row)[:8]) or "none"
        findings.add("format_unknown", (), found=fields, expected=forms[name].describes)
        return None
    if len(names) > 1:
        findings.add("format_ambiguous", (), found=", ".join(names))
        return None
    if forms[name].claims(row):
        return forms[name]
    if names[0] not in forms[name].includes:
        piece.others.setdefault(names[0], findings.record.problem("format_mixed", ()))
    return forms[names[0]]


def _begin(text: str) -> str:
    first = text.strip().split("\n", 1)[0][:40]
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in first)
