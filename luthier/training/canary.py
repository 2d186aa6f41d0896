"""What the model in training, and its base, say of the canary: recorded with every artifact, looked at wherever it is loaded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from luthier.chat.renderers.base import Renderer
from luthier.core import logs
from luthier.nets.canary import Canary, canary_tokens
from luthier.nets.loading import Precision
from luthier.nets.losses import learned_tokens
from luthier.nets.packing import pack
from luthier.nets.quantised import unquantised
from luthier.training.processes import Processes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_DIGITS = 6  # after the point: the sums of equal numbers, in another order, say the same
_log = logs.get("training")


class CanaryRecorder:
    """Asks the base model when it is made, and what it has become at every checkpoint."""

    def __init__(self, base: PreTrainedModel, renderer: Renderer, weights: Path, precision: Precision) -> None:
        """`base` lies in `precision` or in 4 bits; it went through `prepare` and has learned nothing yet.

        `weights` is the folder of its files.
        """
        self._tokens = canary_tokens(renderer)
        self._weights = weights
        self._precision: Precision = precision
        self._base = self._logprobs(base)

    def record(self, model: PreTrainedModel, processes: Processes) -> Canary | None:
        """What the model says now; it is in evaluation mode afterwards. Every process that has a part of it calls this.

        None where that cannot be told: numbers that are not finite, or weights in 4 bits whose originals are not found.
        """
        model.eval()
        said = processes.through(model, self._logprobs)
        if self._base is None or said is None or not all(map(math.isfinite, [*self._base, *said])):
            return None
        return Canary(tokens=self._tokens, tuned=said, base=self._base, precision=self._precision)

    def _logprobs(self, model: PreTrainedModel) -> list[float] | None:
        packed = pack([(self._tokens, [1.0] * len(self._tokens))], model.device)
        try:
            with torch.no_grad(), unquantised(model, self._weights):
                logprobs_N = learned_tokens(model, packed).logprobs_N
        except KeyError as unknown:
            _log.warning("no canary: weights in 4 bits have other names than in their files", name=str(unknown))
            return None
        return [round(one, _DIGITS) for one in logprobs_N.tolist()]
