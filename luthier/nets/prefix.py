"""A prefix of learned keys and values in every layer, as attention reads it.

Shapes: L layers, K key heads, P prefix positions, D width of a head, W width of the embeddings, M width of the projection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAME = "luthier_prefix"


class Prefix(nn.Module):
    """P-tuning v2, Liu et al. (arXiv 2110.07602), with the projection of prefix-tuning, Li and Liang (2101.00190).

    What the layers read is `start_PF` plus a projection of the embeddings, whose last layer begins with zeros: training
    begins at keys and values that the model has seen, not far from all of them.
    """

    start_PF: Tensor

    def __init__(self, start_PF: Tensor, shape: tuple[int, int, int], *, width: int) -> None:
        """`start_PF` are keys and values of P positions, laid out as PEFT does: (P, layers · 2 · heads · head width);
        `shape` is (L, K, D).
        """
        super().__init__()
        self.shape = shape
        self.register_buffer("start_PF", start_PF.float())
        positions, flat = start_PF.shape
        self.embedding_PW = nn.Parameter(torch.randn(positions, width, device=start_PF.device))
        self.inner = nn.Linear(width, width, device=start_PF.device)
        self.outer = nn.Linear(width, flat, device=start_PF.device)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    @property
    def positions(self) -> int:
        return len(self.start_PF)

    def flat(self) -> Tensor:
        """Keys and values of all layers, (P, L · 2 · K · D), as PEFT keeps them."""
        return self.start_PF + self.outer(torch.tanh(self.inner(self.embedding_PW)))

    def forward(self) -> Tensor:
        """Keys and values of all layers, (L, 2, K, P, D)."""
        layers, heads, width = self.shape
        return self.flat().view(self.positions, layers, 2, heads, width).permute(1, 2, 3, 0, 4)


def prefix_of(model: nn.Module) -> Prefix | None:
    """The prefix that a model reads before its tokens, if it has one."""
    return getattr(model, _NAME, None)


def put_prefix(model: PreTrainedModel, prefix: Prefix) -> None:
    model.add_module(_NAME, prefix)


def seen(model: PreTrainedModel, ids: list[int]) -> tuple[Tensor, tuple[int, int, int]]:
    """The keys and values that a model makes of tokens, (P, L · 2 · K · D), and their shape (L, K, D)."""
    untyped: Any = model
    with torch.no_grad():
        cache = untyped(input_ids=torch.tensor([ids], device=model.device), use_cache=True).past_key_values
    both_L2KPD = torch.stack([torch.stack((layer.keys[0], layer.values[0])) for layer in cache.layers])
    layers, _, heads, positions, width = both_L2KPD.shape
    return both_L2KPD.permute(3, 0, 1, 2, 4).reshape(positions, -1), (layers, heads, width)
