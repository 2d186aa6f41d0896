"""Small data sets to measure learning with: made on the spot from what every Python has, the same for the same seed.

Training rows and held-out rows share no subject: what falls on the held-out rows was learned, not remembered.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

Row = dict[str, Any]

FITTING = {"sft": ("facts", "docstrings", "characters", "extraction"), "dpo": ("preferences",), "cpt": ("reference",)}
"""The sets that an objective can learn from, by its name."""
NAMES = (*(name for names in FITTING.values() for name in names), "general")


@dataclass(frozen=True)
class DataSet:
    """Rows of one of the product's formats."""

    format: str
    training: list[Row]
    held_out: list[Row]


def make(name: str, seed: int = 0) -> DataSet:
    """The set of that name, one of `NAMES`. Some hold what this Python says of itself, which differs between versions."""
    return import_module(f"benchmarks.data_sets.{name}").make(seed)


def cut(data: DataSet, rows: int | None) -> DataSet:
    """The first rows of both parts of a set; None: all."""
    return replace(data, training=data.training[:rows], held_out=data.held_out[:rows])


def asked(question: str, answer: str) -> Row:
    """A row of the format `messages`: one question and its answer."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
