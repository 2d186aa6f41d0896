"""Supervised fine-tuning: make what the assistant said more likely, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from luthier.chat.renderers.base import Rendered
from luthier.training.objectives.base import Encoded, Objective
from luthier.training.options import Options

if TYPE_CHECKING:
    import torch
    from torch import nn

    from luthier.nets.losses import TokenLosses


PADDED_TO = 16
"""Rows are padded to a multiple of this many tokens: processors and libraries prepare a kernel for every new shape."""


class SftOptions(Options):
    """There is nothing to choose."""


class Batch(NamedTuple):
    """Three tensors of B rows and T tokens."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    weights: torch.Tensor


class Sft(Objective):
    Options = SftOptions
    wants = "chat"

    def joined(self, row: tuple[Rendered, ...]) -> Encoded:
        [rendered] = row
        return Encoded(rendered.tokens, rendered.weights)

    def collate(self, rows: Sequence[Encoded], device: torch.device) -> Batch:
        import torch

        longest = -(-max(row.length for row in rows) // PADDED_TO) * PADDED_TO

        def padded(values: list[list[int]] | list[list[float]], dtype: torch.dtype) -> torch.Tensor:
            filled = [value + [0] * (longest - len(value)) for value in values]
            return torch.tensor(filled, dtype=dtype, device=device)

        return Batch(
            padded([row.tokens for row in rows], torch.long),  # id 0 as padding: it is masked and never learned
            padded([[1] * row.length for row in rows], torch.long),
            padded([row.weights for row in rows], torch.float32),
        )

    def loss(self, model: nn.Module, batch: Batch) -> TokenLosses:
        from luthier.nets.losses import token_losses

        return token_losses(model, *batch)
