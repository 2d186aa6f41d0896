"""Split: rows at random into a training and a validation file, each tag in the same proportion."""

from __future__ import annotations

import json
import random
from array import array
from collections import defaultdict
from typing import IO, Any

from pydantic import BaseModel, ConfigDict, Field

from luthier.core.errors import InvalidRequest
from luthier.records.reader import Reader, Record
from luthier.records.source import Source


class SplitOptions(BaseModel):
    """What a split is repeated by: the same options on the same file give the same rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ratio: float = Field(default=0.2, gt=0, lt=1, description="Share of the rows that go to validation.")
    seed: int = Field(default=0, ge=0, lt=2**31)
    by_tag: bool = Field(default=True, description="Whether each tag is split in the same proportion.")


def split(source: Source, options: SplitOptions, training: IO[bytes], validation: IO[bytes]) -> dict[str, Any]:
    """Write the two files and say how the rows were divided; rows keep their order and their bytes.

    The validation file gets `ratio` of all rows, rounded; among tags it is given out by largest remainder. Raises
    InvalidRequest when one of the files would be empty.
    """
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
