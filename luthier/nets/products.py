"""Products of matrices, for which a library's may stand in where torch's own choice is not the fastest."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from luthier.nets.kernels import replaceable


@replaceable
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x times the transposed weight, and a bias; (..., I), (O, I) and (O) give (..., O). It has no gradient of its own."""
    return nn.functional.linear(x, weight, bias)


@replaceable
def times(one: Tensor, other: Tensor) -> Tensor:
    """The product of two matrices, (A, B) and (B, C). It has no gradient of its own."""
    return one @ other


def through(model: nn.Module) -> None:
    """Let the linear layers that a library computes multiply by these, forward and backward."""
    for layer in model.modules():
        if type(layer) is nn.Linear and "forward" not in vars(layer):
            layer.forward = MethodType(_forward, layer)


def _forward(layer: nn.Linear, input: Tensor) -> Tensor:
    if torch.is_autocast_enabled(input.device.type):
        return nn.functional.linear(input, layer.weight, layer.bias)
    return _Linear.apply(input, layer.weight, layer.bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if weight.requires_grad else None, weight if x.requires_grad else None)
        return linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        flat = gradient.flatten(0, -2)
        of_x = times(flat, weight).unflatten(0, gradient.shape[:-1]) if ctx.needs_input_grad[0] else None
        of_weight = times(flat.T, x.flatten(0, -2)) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, flat.sum(0) if ctx.needs_input_grad[2] else None
