"""AdamW over what learns, the learning rate of each step, and optimizer state in and out of tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from luthier.core.errors import CheckpointUnreadable
from luthier.training.spec import TrainingSpec


def learning_rate(spec: TrainingSpec, step: int, total_steps: int) -> float:
    """The rate of an update, steps counted from 1.

    With W = floor(warmup_ratio * total_steps): in the first W steps peak * step / (W + 1). After them, with
    p = (step - W - 1) / (total_steps - W), which goes from 0 to just below 1: peak * (1 + cos(pi * p)) / 2 for cosine,
    peak * (1 - p) for linear, peak for constant. wsd (warm-up, stable, decay; Hu et al., MiniCPM, arXiv 2404.06395) stays
    at the peak until its last D = ceil(decay_ratio * total_steps) steps, in which it is peak * (total_steps - step + 1) /
    (D + 1). So the peak is met at step W + 1, and no step has a rate of 0.
    """
    warmup = int(spec.warmup_ratio * total_steps)
    if step <= warmup:
        return spec.learning_rate * step / (warmup + 1)
    p = (step - warmup - 1) / (total_steps - warmup)
    decay = math.ceil(spec.decay_ratio * total_steps)
    shares = {
        "cosine": (1 + math.cos(math.pi * p)) / 2,
        "linear": 1 - p,
        "constant": 1.0,
        "wsd": min(1.0, (total_steps - step + 1) / (decay + 1)),
    }
    return spec.learning_rate * shares[spec.schedule]


class Optimizer:
    """AdamW with fp32 states; weights decay in matrices only, never in vectors such as norms and biases."""

    def __init__(self, parameters: dict[str, nn.Parameter], *, weight_decay: float) -> None:
        self._parameters = parameters
        matrices = [p for p in parameters.values() if p.ndim >= 2]
        vectors = [p for p in parameters.values() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self._adamw = torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0)

    def step(self, rate: float) -> None:
        """One update from the gradients there are, which are gone afterwards."""
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.step()
        self.forget()

    def forget(self) -> None:
        """Drop gradients."""
        self._adamw.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """The whole state, as `<parameter>/<exp_avg | exp_avg_sq | step>`."""
        return {
            f"{name}/{kind}": tensor.detach().to("cpu")
            for name, parameter in self._parameters.items()
            for kind, tensor in self._adamw.state[parameter].items()
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take the state that `tensors` gave. Raises CheckpointUnreadable when it is of other parameters."""
        for name, state in tensors.items():
            parameter_name, _, kind = name.rpartition("/")
            parameter = self._parameters.get(parameter_name)
            if parameter is None or (kind != "step" and state.shape != parameter.shape):
                raise CheckpointUnreadable("The checkpoint's optimizer state is of other parameters than the run's.")
            device = "cpu" if kind == "step" else parameter.device  # AdamW counts on the CPU
            self._adamw.state[parameter][kind] = state.to(device, copy=True)
