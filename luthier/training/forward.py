"""Rows through the model: laid end to end, in the run's precision, with its dropout, in each of its processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from luthier.nets.compiled.choice import ON_CPU, ROOMS, WITHOUT_MKL, choose
from luthier.nets.dropout import draw_of
from luthier.training import precision
from luthier.training.data import packed
from luthier.training.objectives.base import Encoded, Losses, Objective
from luthier.training.precision import Precision
from luthier.training.processes import Processes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from luthier.nets.packing import Packed


def computed(wish: Precision, device: torch.device) -> tuple[Precision, str | None]:
    """What a run on a device computes in where that was asked for, and where it is another, why.

    A processor without instructions for bf16 emulates it, slower than fp32; in fp16 only GPUs are fast.
    """
    if device.type == "cuda":
        if wish == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            return "fp16", "This GPU does not compute in bf16: the run computes in fp16, and scales its loss."
        return wish, None
    best: Precision = "bf16" if precision.computes_in_bf16() else "fp32"
    if wish == "fp16" or (wish == "bf16" and best == "fp32"):
        return best, f"This processor does not compute in {wish}: the run computes in {best}."
    return wish, None


def chosen_kernels(
    model: PreTrainedModel, dtype: torch.dtype, *, why_eager: str | None, why_plain: str | None, by_onednn: bool = True
) -> dict[str, str | None]:
    """The kernels that could stand in for our own operations on the model's device: None where one now does, else why not.

    `by_onednn` lets oneDNN multiply on a processor of which MKL takes half.
    """
    on_cpu = ON_CPU | (WITHOUT_MKL if by_onednn and precision.is_narrow_to_mkl() else {})
    rooms = on_cpu if model.device.type == "cpu" else ROOMS
    return choose(model, dtype, why_eager=why_eager, why_plain=why_plain, rooms=rooms)


class Forward:
    """What an objective says of micro-batches; `mixed` is what operations compute in where weights are kept in another type."""

    def __init__(
        self,
        model: PreTrainedModel,
        objective: Objective,
        processes: Processes,
        *,
        seed: int,
        shared: int | None = None,
        mixed: torch.dtype | None = None,
    ) -> None:
        """`shared` is how many tokens sequences must have in common to go through the model once; absent, all go for each."""
        self.model = model
        self.objective = objective
        self.processes = processes
        self.device = next(model.parameters()).device
        self.shared = shared
        self._seed = seed
        self._mixed = mixed
        self._draw = draw_of(model)

    def losses(self, batch: Sequence[Encoded], step: int) -> Losses:
        """The losses of a micro-batch of a step, with what is dropped in that step where the model trains."""
        laid_out = packed(batch, self.device, self.shared)
        self._begin(batch, laid_out, step)
        with self.precision():
            return self.processes.through(self.model, self.objective.losses, laid_out, batch)

    def references(self, batch: Sequence[Encoded]) -> list[tuple[float, ...]]:
        """What is to be remembered of each row of the model as it is."""
        with torch.no_grad(), self.precision():
            laid_out = packed(batch, self.device, self.shared)
            return self.processes.through(self.model, self.objective.references, laid_out, batch)

    def precision(self) -> torch.autocast:
        """A context in which operations compute as they do here."""
        return torch.autocast(self.device.type, self._mixed, enabled=self._mixed is not None)

    def _begin(self, batch: Sequence[Encoded], laid_out: Packed, step: int) -> None:
        if self._draw is None:
            return
        rows = torch.tensor([2 * row.row + place for row in batch for place in range(len(row.sequences))])
        self._draw.begin(self._seed, step, rows.to(self.device)[laid_out.owner_T], laid_out.positions_T)
