"""Split: rows at random into a training and a validation file, each tag in the same proportion."""

from __future__ import annotations

import json
import random
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import IO, Any

from pydantic import BaseModel, ConfigDict, Field

from luthier.control.datasets.archives import rows_in
from luthier.control.datasets.inspection import MOST_TAGS, format_of
from luthier.control.datasets.report import KEPT_TAGS
from luthier.core.errors import InvalidRequest
from luthier.formats.base import DatasetFormat
from luthier.images.packing import pack
from luthier.records.reader import Reader, Record
from luthier.records.source import BLOCK, Source

_OTHERS = ""
"""Rows without a tag, and those of tags beyond the first 10,000, are split together."""


class SplitOptions(BaseModel):
    """What a split is repeated by: the same options on the same file give the same rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ratio: float = Field(default=0.2, gt=0, lt=1, description="Share of the rows that go to validation.")
    seed: int = Field(default=0, ge=0, lt=2**31)
    by_tag: bool = Field(default=True, description="Whether each tag is split in the same proportion.")


def split(source: Source, options: SplitOptions, training: IO[bytes], validation: IO[bytes]) -> dict[str, Any]:
    """Write the two files and say how the rows were divided; rows keep their order and their bytes.

    The validation file gets `ratio` of all rows, rounded; among tags it is given out by largest remainder. An archive
    gives two archives, each with those of its images that its rows name; the files must be seekable then. Raises
    InvalidRequest when one of the files would be empty.
    """
    with rows_in(source) as (rows, archive):
        if archive is None:
            return _split(rows, options, training, validation)
        form = format_of(rows)[0]
        with tempfile.TemporaryFile() as trained, tempfile.TemporaryFile() as validated:
            division = _split(rows, options, trained, validated)
            for made, out in ((trained, training), (validated, validation)):
                pack(archive, made, out, images=set() if form is None else _named(made, form))
        return division


def _named(rows: IO[bytes], form: type[DatasetFormat]) -> set[str]:
    """The names of all images that rows name, as they stand in an archive."""
    rows.seek(0)
    names: set[str] = set()
    for found in Reader(iter(partial(rows.read, BLOCK), b"")):
        if isinstance(found, Record) and isinstance(found.value, dict):
            names.update(unicodedata.normalize("NFC", source) for _, source in form.images(found.value))
    return names


def _split(source: Source, options: SplitOptions, training: IO[bytes], validation: IO[bytes]) -> dict[str, Any]:
    sizes: Counter[str] = Counter()
    for tag, _ in _tagged(source, options):
        sizes[tag if tag in sizes or len(sizes) < MOST_TAGS else _OTHERS] += 1
    rows = sizes.total()
    wanted = round(rows * options.ratio)
    if not 0 < wanted < rows:
        raise InvalidRequest(
            f"A split of {rows} rows by {options.ratio:g} would leave one of the files empty.",
            hint="Use more rows or another ratio.",
        )
    shares = _shares(sizes, wanted, rows)
    draws = {tag: _Draw(options.seed, tag, sizes[tag], shares[tag]) for tag in sizes}
    for tag, text in _tagged(source, options):
        is_drawn = draws[tag if tag in draws else _OTHERS].next()
        (validation if is_drawn else training).write(text.encode() + b"\n")
    balance = {
        tag: {"rows": size, "training": size - shares[tag], "validation": shares[tag]}
        for tag, size in sorted(sizes.most_common(KEPT_TAGS))
    }
    return {
        "rows": rows,
        "training": rows - wanted,
        "validation": wanted,
        "tags": balance if set(sizes) != {""} else {},
    }


def _tagged(source: Source, options: SplitOptions) -> Iterator[tuple[str, str]]:
    """The tag and the line of every row; the tag is empty for one without, or where tags do not matter."""
    for found in Reader(source.blocks()):
        if isinstance(found, Record):
            tag = found.value.get("tag", "") if options.by_tag and isinstance(found.value, dict) else ""
            yield tag, found.text if "\n" not in found.text else json.dumps(found.value, ensure_ascii=False)


class _Draw:
    """Draws some of so many rows, one after the other, each choice as likely as any other: Knuth, The Art of Computer
    Programming, volume 2, algorithm S.
    """

    def __init__(self, seed: int, tag: str, rows: int, wanted: int) -> None:
        self._dice = random.Random(f"{seed}/{tag}")  # noqa: S311
        self._rows, self._wanted = rows, wanted

    def next(self) -> bool:
        """Whether the next row is drawn."""
        is_drawn = self._dice.random() * self._rows < self._wanted
        self._rows -= 1
        self._wanted -= is_drawn
        return is_drawn


def _shares(sizes: Mapping[str, int], wanted: int, rows: int) -> dict[str, int]:
    """How many rows of each tag go to validation: in proportion, the largest remainders rounded up."""
    exact = {tag: size * wanted / rows for tag, size in sizes.items()}
    shares = {tag: int(share) for tag, share in exact.items()}
    missing = wanted - sum(shares.values())
    for tag in sorted(exact, key=lambda tag: (shares[tag] - exact[tag], tag))[:missing]:
        shares[tag] += 1
    return shares
