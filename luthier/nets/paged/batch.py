"""What one forward pass computes: new tokens of several sequences, end to end, and where their keys and values lie.

Shapes: N new tokens of all sequences, S sequences, B blocks of the longest, R tokens whose logits are wanted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 16
"""Tokens whose keys and values lie in one block."""

Ints = NDArray[np.int64]


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
