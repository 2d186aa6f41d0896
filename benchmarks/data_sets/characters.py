"""Characters into their Unicode names, which follow rules that a model half knows. Held out are other characters."""

from __future__ import annotations

import random
import unicodedata

from benchmarks.data_sets import DataSet, Row, asked

BLOCKS = (
    *((0x00A1, 0x024F), (0x0370, 0x03FF), (0x0400, 0x04FF), (0x0531, 0x0587), (0x05D0, 0x05EA), (0x0621, 0x064A)),
    *((0x0904, 0x0939), (0x10A0, 0x10FF), (0x1E00, 0x1EFF), (0x2010, 0x205E), (0x20A0, 0x20BF), (0x2190, 0x22FF)),
    *((0x2500, 0x25FF), (0x2600, 0x26FF), (0x3041, 0x30FF)),
)


def make(seed: int) -> DataSet:
    named = [chr(code) for first, last in BLOCKS for code in range(first, last + 1) if unicodedata.name(chr(code), "")]
    drawn = random.Random(f"characters/{seed}").sample(named, 560)  # noqa: S311
    return DataSet("messages", [_row(one) for one in drawn[:512]], [_row(one) for one in drawn[512:]])


def _row(character: str) -> Row:
    return asked(f"What is the Unicode name of {character} ?", unicodedata.name(character))
