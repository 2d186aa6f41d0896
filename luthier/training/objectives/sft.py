"""Supervised fine-tuning: make what the assistant said more likely, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from luthier.training.objectives.base import Encoded, Losses, Objective
from luthier.training.options import Options

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from luthier.nets.packing import Packed


class SftOptions(Options):
    """There is nothing to choose."""


class Sft(Objective):
    Options = SftOptions
    wants = "chat"

    def losses(self, model: PreTrainedModel, packed: Packed, rows: Sequence[Encoded]) -> Losses:
        return token_losses(model, packed)


def token_losses(model: PreTrainedModel, packed: Packed) -> Losses:
    """Cross entropy of every learned token times its weight."""
    from luthier.nets.losses import learned_tokens

    said = learned_tokens(model, packed)
    total = -(said.logprobs_N * packed.weights_N).sum()
    return Losses(total, {"token_accuracy": (said.correct_N.sum(), len(packed.chosen_N))})
