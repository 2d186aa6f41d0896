"""Where keys and values are kept: one tensor of slots for all layers, handed out in blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from luthier.nets.paged.batch import BLOCK


@dataclass(frozen=True, eq=False)
class Pool:
    """Keys and values of all layers, by slot; a block is BLOCK slots that follow each other.

    Shapes: L layers, P slots, K key heads, D width of a head.
    """

    keys_LPKD: Tensor
    values_LPKD: Tensor

    @classmethod
    def of(cls, *, layers: int, heads: int, width: int, blocks: int, dtype: torch.dtype, device: torch.device) -> Pool:
        """A pool of so many blocks. On a CPU memory is taken only where something has been written."""
        shape = (layers, blocks * BLOCK, heads, width)
        if device.type != "cpu":
            return cls(*(torch.zeros(shape, dtype=dtype, device=device) for _ in range(2)))
        raw = torch.int16 if dtype.itemsize == 2 else torch.float32
        numbers = np.int16 if dtype.itemsize == 2 else np.float32
        keys, values = (torch.from_numpy(np.zeros(shape, numbers)) for _ in range(2))  # pages that nobody has touched
        assert keys.dtype == raw
        return cls(keys.view(dtype), values.view(dtype))

    @property
    def blocks(self) -> int:
        return self.keys_LPKD.shape[1] // BLOCK
