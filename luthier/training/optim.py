"""AdamW over what learns, the learning rate of each step, and optimizer state in and out of tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from luthier.core.errors import CheckpointUnreadable
from luthier.training.processes import like, whole
from luthier.training.spec import TrainingSpec
from luthier.training.watch import refuse_unless_finite


def learning_rate(spec: TrainingSpec, step: int, total_steps: int) -> float:
    """The rate of an update, steps counted from 1.

    With W = floor(warmup_ratio * total_steps): in the first W steps peak * step / (W + 1). After them, with
    p = (step - W - 1) / (total_steps - W), which goes from 0 to just below 1: peak * (1 + cos(pi * p)) / 2 for cosine,
    peak * (1 - p) for linear, peak for constant. wsd (warm-up, stable, decay; Hu et al., MiniCPM, arXiv 2404.06395) stays
    at the peak until its last D = ceil(decay_ratio * total_steps) steps, in which it is peak * (total_steps - step + 1) /
    (D + 1). So the peak is met at step W + 1, unless wsd falls already there, and no step has a rate of 0.
    """
    warmup = math.floor(round(spec.warmup_ratio * total_steps, 9))
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


_LEAST_SCALE = 2.0**-14


class Optimizer:
    """AdamW with fp32 states; weights decay in matrices only, never in vectors such as norms and biases."""

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        *,
        weight_decay: float,
        clip_norm: float = math.inf,
        is_scaled: bool = False,
        is_fused: bool = False,
    ) -> None:
        """`is_scaled` multiplies losses so that gradients in fp16 do not vanish (Micikevicius et al., arXiv 1710.03740).

        `is_fused` lets a processor update each tensor in one pass, which rounds otherwise than operation after operation.
        """
        self._named = parameters
        self._clip_norm = clip_norm
        device = next(iter(parameters.values())).device.type
        self._scaler = torch.amp.GradScaler(device, enabled=is_scaled)
        matrices = [p for p in parameters.values() if p.ndim >= 2]
        vectors = [p for p in parameters.values() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self._adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=0.0, fused=(is_fused and device == "cpu") or None
        )

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What it updates."""
        return list(self._named.values())

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss to those there are."""
        self._scaler.scale(loss).backward()

    def step(self, step: int, rate: float) -> float:
        """One update from the gradients there are, clipped, and gone afterwards; their norm before it was clipped.

        Raises LossDiverged when the norm is no number. In fp16 this leaves the weights as they are (0 is given), the next
        losses are scaled less, and only a scale that is almost 0 ends the run.
        """
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._scaler.unscale_(self._adamw)
        norm = whole(nn.utils.clip_grad_norm_(self._named.values(), self._clip_norm)).item()
        if not self._scaler.is_enabled():
            refuse_unless_finite(norm, "gradient norm", step)
        self._scaler.step(self._adamw)
        self._scaler.update()
        self.forget()
        if self._scaler.is_enabled() and self._scaler.get_scale() < _LEAST_SCALE:
            refuse_unless_finite(math.inf, "gradient norm", step)
        return norm if math.isfinite(norm) else 0.0

    def loss_scale(self) -> dict[str, float]:
        """What `restore` needs of a run in fp16; else nothing."""
        return {name: float(value) for name, value in self._scaler.state_dict().items()}

    def forget(self) -> None:
        """Drop gradients."""
        self._adamw.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """The state where it lies, as `<parameter>/<exp_avg | exp_avg_sq | step>`."""
        return {
            f"{name}/{kind}": tensor.detach()
            for name, parameter in self._named.items()
            for kind, tensor in self._adamw.state[parameter].items()
        }

    def restore(self, tensors: dict[str, Tensor], loss_scale: dict[str, float] | None = None) -> None:
        """Take the state that `tensors` gave. Raises CheckpointUnreadable when it is of other parameters."""
        if loss_scale:
            whole_numbers = {"growth_interval", "_growth_tracker"}
            self._scaler.load_state_dict({n: int(v) if n in whole_numbers else v for n, v in loss_scale.items()})
        for name, state in tensors.items():
            parameter_name, _, kind = name.rpartition("/")
            parameter = self._named.get(parameter_name)
            if parameter is None or (kind != "step" and state.shape != parameter.shape):
                raise CheckpointUnreadable("The checkpoint's optimizer state is of other parameters than the run's.")
            # AdamW counts on the CPU
            self._adamw.state[parameter][kind] = (
                state.to("cpu", copy=True) if kind == "step" else like(state, parameter)
            )
