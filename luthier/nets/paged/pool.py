"""Where keys and values are kept: one tensor of slots for all layers, handed out in blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from luthier.core.errors import InvalidRequest
from luthier.nets.paged.batch import BLOCK

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
        numbers = np.int16 if dtype.itemsize == 2 else np.float32
        keys, values = (torch.from_numpy(np.zeros(shape, numbers)) for _ in range(2))  # pages that nobody has touched
        return cls(keys.view(dtype), values.view(dtype))

    @classmethod
    def for_model(cls, model: PreTrainedModel, *, bytes_at_most: int) -> Pool:
        """As many blocks as so many bytes hold. Raises InvalidRequest for a model
        whose layers do not all keep keys and values of one shape.
        """
        shapes = _shapes(model)
        if len(set(shapes)) != 1:
            raise InvalidRequest(f"The layers of a model of type {model.config.model_type!r} are not all alike.")
        heads, width = shapes[0]
        block_bytes = 2 * len(shapes) * BLOCK * heads * width * model.dtype.itemsize
        blocks = max(bytes_at_most // block_bytes, 16)
        return cls.of(
            layers=len(shapes), heads=heads, width=width, blocks=blocks, dtype=model.dtype, device=model.device
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(L, K, D)"""
        layers, _, heads, width = self.keys_LPKD.shape
        return layers, heads, width

    def copy(self, source: int, target: int) -> None:
        """Write one block's keys and values over another's."""
        for kept_LPKD in (self.keys_LPKD, self.values_LPKD):
            kept_LPKD[:, target * BLOCK : (target + 1) * BLOCK] = kept_LPKD[:, source * BLOCK : (source + 1) * BLOCK]

    def write(self, blocks: Sequence[int], both_L2KPD: Tensor) -> None:
        """Write keys and values of as many positions as they have, from the first block's first slot on."""
        both_2LPKD = both_L2KPD.permute(1, 0, 3, 2, 4).to(self.keys_LPKD)
        slots = [block * BLOCK + place for block in blocks for place in range(BLOCK)][: both_2LPKD.shape[2]]
        self.keys_LPKD[:, slots], self.values_LPKD[:, slots] = both_2LPKD

    @property
    def blocks(self) -> int:
        return self.keys_LPKD.shape[1] // BLOCK


@torch.no_grad()
def _shapes(model: PreTrainedModel) -> list[tuple[int, int]]:
    """Key heads and their width, of every layer that keeps any, as the model itself makes them of a token."""
    untyped: Any = model
    cache = untyped(input_ids=torch.tensor([[0]], device=model.device), use_cache=True).past_key_values
    try:
        return [(layer.keys.shape[1], layer.keys.shape[3]) for layer in cache.layers]
    except AttributeError as other:
        raise InvalidRequest(f"A model of type {model.config.model_type!r} keeps more than keys and values.") from other
