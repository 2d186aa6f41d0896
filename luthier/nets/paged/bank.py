"""LoRA adapters of one model, side by side in places: every token may use another one.

Shapes: N tokens, I inputs, O outputs of a layer, P places, R the largest rank, r an adapter's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from luthier.core.errors import NoCapacity

_STEP = 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8
"""Ranks are filled up with zeros to whole vectors: the sums of one adapter are added alike whatever the others' ranks are."""
_LEAST_ROOM = 4 * 2**30  # bytes; larger models give their adapters as much as they take themselves


@dataclass(frozen=True, eq=False)
class Thin:
    """What an adapter adds to one layer: `b_Or @ a_rI`, its scale in `b_Or`; DoRA's factor of every output."""

    a_rI: Tensor
    b_Or: Tensor
    factor_O: Tensor | None = None


class Places:
    """The adapters of one linear layer, zeros where there is none; `factor_PO` is there once one of them is a DoRA."""

    def __init__(self, layer: nn.Linear, places: int) -> None:
        self.layer = layer
        weight = layer.weight
        self.a_PRI = _zeros(weight, places, 0, layer.in_features)
        self.b_POR = _zeros(weight, places, layer.out_features, 0)
        self.factor_PO: Tensor | None = None
        self._used: set[int] = set()

    @property
    def rank(self) -> int:
        return self.a_PRI.shape[1]

    def put(self, place: int, thin: Thin | None) -> None:
        """Write an adapter to a place, or zeros."""
        if place in self._used:
            self.a_PRI[place] = 0
            self.b_POR[place] = 0
        if self.factor_PO is not None:
            self.factor_PO[place] = 1
        self._used.discard(place)
        if thin is None:
            if not self._used:
                self._shrink()
            return
        rank = len(thin.a_rI)
        self._widen(rank)
        self._used.add(place)
        self.a_PRI[place, :rank] = thin.a_rI.to(self.a_PRI)
        self.b_POR[place, :, :rank] = thin.b_Or.to(self.b_POR)
        if thin.factor_O is not None:
            if self.factor_PO is None:
                self.factor_PO = torch.ones(self.b_POR.shape[:2], device=self.b_POR.device)
            self.factor_PO[place] = thin.factor_O.to(self.factor_PO)

    def _widen(self, rank: int) -> None:
        """Make room for adapters of that rank: the next multiple of a vector. Places that are empty take no memory on a CPU."""
        before, wide = self.rank, -(-rank // _STEP) * _STEP
        if wide <= before:
            return
        a_PRI, b_POR = self.a_PRI, self.b_POR
        self.a_PRI = _zeros(a_PRI, len(a_PRI), wide, a_PRI.shape[2])
        self.b_POR = _zeros(b_POR, *b_POR.shape[:2], wide)
        for place in self._used:
            self.a_PRI[place, :before] = a_PRI[place]
            self.b_POR[place, :, :before] = b_POR[place]

    def _shrink(self) -> None:
        """Nobody uses this layer: give its room back."""
        self.a_PRI, self.b_POR, self.factor_PO = self.a_PRI[:, :0].clone(), self.b_POR[:, :, :0].clone(), None


class Bank:
    """The places of all layers that adapters may change, by the layer's name in the model."""

    def __init__(self, model: nn.Module, places: int) -> None:
        self.places = places
        self.version = 0
        """Another one whenever an adapter came or went: who keeps copies makes them anew."""
        self._model = model
        self._layers: dict[str, Places] = {}
        self._most_bytes = max(_LEAST_ROOM, sum(weight.nbytes for weight in model.parameters()))

    @property
    def layers(self) -> Mapping[str, Places]:
        """Those that an adapter changes."""
        return {name: places for name, places in self._layers.items() if places.rank}

    def put(self, place: int, adapter: Mapping[str, Thin]) -> None:
        """Have an adapter in a place, by the names of the layers that it changes; {} clears the place.

        Every place has room for the largest rank: raises NoCapacity, and changes nothing, where that would be too much.
        """
        if (needed := self._bytes_with(adapter)) > self._most_bytes:
            rank = max(len(thin.a_rI) for thin in adapter.values())
            raise NoCapacity(
                f"An adapter of rank {rank} in each of {self.places} places would take {needed / 2**30:.1f} GiB.",
                hint="Set serving.adapters_per_replica lower.",
            )
        for name in adapter:
            if name not in self._layers:
                layer = self._model.get_submodule(name)
                assert isinstance(layer, nn.Linear)
                self._layers[name] = Places(layer, self.places)
        for name, places in self._layers.items():
            places.put(place, adapter.get(name))
        self.version += 1

    def _bytes_with(self, adapter: Mapping[str, Thin]) -> int:
        total = 0
        for name in {*self._layers, *adapter}:
            layer: Any = self._model.get_submodule(name)
            rank = max(
                self._layers[name].rank if name in self._layers else 0,
                len(adapter[name].a_rI) if name in adapter else 0,
            )
            total += rank * (layer.in_features + layer.out_features) * layer.weight.itemsize
        return total * self.places


def _zeros(like: Tensor, *shape: int) -> Tensor:
    """Zeros of the same kind; on a CPU in pages that take no memory until something is written."""
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    numbers = np.zeros(shape, np.int16 if like.itemsize == 2 else np.float32)
    return torch.from_numpy(numbers).view(like.dtype)
