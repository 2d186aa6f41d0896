"""Split: rows at random into a training and a validation file, each tag in the same proportion."""

from __future__ import annotations

import json
import random
import tempfile
import unicodedata
from array import array
from collections import defaultdict
from functools import partial
from typing import IO, Any

from pydantic import BaseModel, ConfigDict, Field

from luthier.control.datasets.archives import rows_in
from luthier.control.datasets.inspection import format_of
from luthier.core.errors import InvalidRequest
from luthier.formats.base import DatasetFormat
from luthier.images.packing import pack
from luthier.records.reader import Reader, Record
from luthier.records.source import BLOCK, Source


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
    tags: dict[str, array[int]] = defaultdict(lambda: array("Q"))
    rows = 0
    for found in Reader(source.blocks()):
        if isinstance(found, Record):
            tag = found.value.get("tag", "") if options.by_tag and isinstance(found.value, dict) else ""
            tags[tag].append(rows)
            rows += 1
    wanted = round(rows * options.ratio)
    if not 0 < wanted < rows:
        raise InvalidRequest(
            f"A split of {rows} rows by {options.ratio:g} would leave one of the files empty.",
            hint="Use more rows or another ratio.",
        )
    chosen = bytearray(rows)
    shares = _shares({tag: len(places) for tag, places in tags.items()}, wanted, rows)
    for tag in sorted(tags):
        draw = random.Random(f"{options.seed}/{tag}")  # noqa: S311
        for place in draw.sample(tags[tag], shares[tag]):
            chosen[place] = 1
    row = 0
    for found in Reader(source.blocks()):
        if isinstance(found, Record):
            text = found.text if "\n" not in found.text else json.dumps(found.value, ensure_ascii=False)
            (validation if chosen[row] else training).write(text.encode() + b"\n")
            row += 1
    balance = {
        tag: {"rows": len(places), "training": len(places) - shares[tag], "validation": shares[tag]}
        for tag, places in sorted(tags.items())
    }
    return {"rows": rows, "training": rows - wanted, "validation": wanted, "tags": balance if set(tags) != {""} else {}}


def _shares(sizes: dict[str, int], wanted: int, rows: int) -> dict[str, int]:
    """How many rows of each tag go to validation: in proportion, the largest remainders rounded up."""
    exact = {tag: size * wanted / rows for tag, size in sizes.items()}
    shares = {tag: int(share) for tag, share in exact.items()}
    missing = wanted - sum(shares.values())
    for tag in sorted(exact, key=lambda tag: (shares[tag] - exact[tag], tag))[:missing]:
        shares[tag] += 1
    return shares
