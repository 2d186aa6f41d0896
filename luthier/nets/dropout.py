"""Dropout whose mask is a function of what is dropped, not of when: the same in every micro-batch, order and process.

Shapes: T tokens laid end to end, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_NAME = "luthier_draw"
_MIX_1, _MIX_2, _STEP = (
    -0x40A7B892E31B1A47,
    -0x6B2FB644ECCEEE15,
    -0x61C8864680B583EB,
)  # of splitmix64, as signed numbers


class Draw:
    """What the masks of a micro-batch are drawn by: seed, step, and for each token its row and its position there."""

    def __init__(self) -> None:
        self._tokens_T: Tensor | None = None

    def begin(self, seed: int, step: int, row_T: Tensor, position_T: Tensor) -> None:
        """Set what the masks of the next passes are drawn by; a backward pass that computes again draws the same."""
        start = _mixed(_mixed(torch.tensor(seed) + _STEP) + torch.tensor(step) * _STEP)
        self._tokens_T = _mixed(_mixed(start.to(row_T.device) ^ row_T) + position_T * _STEP)

    def uniform(self, layer: int, features: int) -> Tensor:
        """Numbers from 0 to below 1, (T, D)."""
        assert self._tokens_T is not None, "nothing was said of the tokens"
        device = self._tokens_T.device
        feature_D = _mixed(torch.arange(features, device=device) + layer * 1_000_003)
        return (_mixed(self._tokens_T[:, None] ^ feature_D) >> 40 & 0xFFFFFF).float() / 2**24


class Dropout(nn.Module):
    """Dropout of one layer, numbered, over what a `Draw` tells of."""

    def __init__(self, share: float, layer: int, draw: Draw) -> None:
        super().__init__()
        self.share, self.layer, self._draw = share, layer, draw

    def forward(self, x_1TD: Tensor) -> Tensor:
        if not self.training or not self.share:
            return x_1TD
        kept_TD = self._draw.uniform(self.layer, x_1TD.shape[-1]) >= self.share
        return x_1TD * kept_TD / (1 - self.share)


def draw_of(model: nn.Module) -> Draw | None:
    """What a model's dropout is drawn by, if it has any."""
    return getattr(model, _NAME, None)


def put_draw(model: nn.Module, draw: Draw) -> None:
    object.__setattr__(model, _NAME, draw)


def _mixed(number: Tensor) -> Tensor:
    """splitmix64's finalizer (Steele, Lea and Flood, Fast splittable pseudorandom number generators, 2014)."""
    number = (number ^ _shifted(number, 30)) * _MIX_1
    number = (number ^ _shifted(number, 27)) * _MIX_2
    return number ^ _shifted(number, 31)


def _shifted(number: Tensor, bits: int) -> Tensor:
    """To the right, filled with zeros as an unsigned number is."""
    return number >> bits & (1 << 64 - bits) - 1
