"""What one forward pass computes: new tokens of several sequences, end to end, and where their keys and values lie.

Shapes: N new tokens of all sequences, S sequences, B blocks of the longest, R tokens whose logits are wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BLOCK = 16
"""Tokens whose keys and values lie in one block."""

Ints = NDArray[np.int64]


class Part(NamedTuple):
    """New tokens of one sequence, which is `length` keys long with them; what lies before is in its blocks."""

    ids: Sequence[int]
    length: int
    blocks: Sequence[int]
    adapter: int = -1
    is_last_wanted: bool = True


@dataclass(frozen=True, eq=False)
class PagedBatch:
    """Sequence s has the tokens from `bounds[s]` up to `bounds[s + 1]`; with them it is `lengths_S[s]` keys long.

    Its key at place i lies in slot `tables_SB[s, i // BLOCK] * BLOCK + i % BLOCK` of the pool; the last of them are those
    of its new tokens, which a pass writes to `slots_N` before it reads. A token sees the keys up to its own. Rows of
    `tables_SB` are as long as the longest; what lies beyond a sequence's own blocks is not looked at. `adapters_S` are
    places of the bank, -1 for the model itself.
    """

    ids_N: Ints
    positions_N: Ints
    slots_N: Ints
    bounds: Ints  # (S + 1)
    lengths_S: Ints
    tables_SB: Ints
    adapters_S: Ints
    rows_R: Ints

    @property
    def sequences(self) -> int:
        return len(self.lengths_S)

    @classmethod
    def of(cls, parts: Sequence[Part]) -> PagedBatch:
        """One pass over all of these; wanted are the logits after the last token of each, where `is_last_wanted`."""
        tables_SB = np.zeros((len(parts), max(len(part.blocks) for part in parts)), np.int64)
        for row, part in zip(tables_SB, parts, strict=True):
            row[: len(part.blocks)] = part.blocks
        counts_S = np.array([len(part.ids) for part in parts])
        lengths_S = np.array([part.length for part in parts])
        bounds = np.concatenate(([0], np.cumsum(counts_S)))
        owners_N = np.repeat(np.arange(len(parts)), counts_S)
        positions_N = np.arange(bounds[-1]) - np.repeat(bounds[1:] - lengths_S, counts_S)
        return cls(
            ids_N=np.array([token for part in parts for token in part.ids]),
            positions_N=positions_N,
            slots_N=tables_SB[owners_N, positions_N // BLOCK] * BLOCK + positions_N % BLOCK,
            bounds=bounds,
            lengths_S=lengths_S,
            tables_SB=tables_SB,
            adapters_S=np.array([part.adapter for part in parts]),
            rows_R=(bounds[1:] - 1)[[part.is_last_wanted for part in parts]],
        )
