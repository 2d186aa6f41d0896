"""Continued pre-training: every token of a plain text is learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from luthier.training.objectives.base import Encoded, Losses, Objective
from luthier.training.objectives.sft import token_losses
from luthier.training.options import Options

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from luthier.nets.packing import Packed


class CptOptions(Options):
    """There is nothing to choose."""


class Cpt(Objective):
    Options = CptOptions
    wants = "text"

    def losses(self, model: PreTrainedModel, packed: Packed, rows: Sequence[Encoded]) -> Losses:
        return token_losses(model, packed)
