"""Small operations in one go, forward and backward: root mean square norm, gated activation, rotary positions.

Each keeps what its backward pass cannot make again at little cost, and nothing else. Shapes: T tokens, D features, F of a gate,
H heads, W width of a head, R of it that is rotated.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from luthier.nets.kernels import replaceable


@replaceable
def norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Zhang and Sennrich, Root Mean Square Layer Normalization (arXiv 1910.07467), as Llama rounds it: x over its root mean
    square in fp32, rounded, times the weight. Also gives one over that root, (T, 1), in fp32.
    """
    length_T1 = torch.linalg.vector_norm(_wide(x_TD), dim=-1, keepdim=True)
    over_T1 = torch.rsqrt(length_T1.square_().div_(x_TD.shape[-1]).add_(eps))
    return normed(x_TD, weight_D, over_T1), over_T1


@replaceable
def normed(x_TD: Tensor, weight_D: Tensor, over_T1: Tensor) -> Tensor:
    """The same again."""
    return (_wide(x_TD) * over_T1).to(x_TD.dtype).mul_(weight_D)


@replaceable
def norm_backward(gradient_TD: Tensor, x_TD: Tensor, weight_D: Tensor, over_T1: Tensor) -> Tensor:
    """The gradient of x; the weight is frozen."""
    scaled_TD, wide_TD = _wide(gradient_TD) * weight_D, _wide(x_TD)
    along_T1 = (scaled_TD * wide_TD).sum(-1, keepdim=True).mul_(over_T1**3).div_(-x_TD.shape[-1])
    return scaled_TD.mul_(over_T1).addcmul_(wide_TD, along_T1).to(x_TD.dtype)


@replaceable
def gated(both_T2F: Tensor) -> Tensor:
    """SwiGLU, Shazeer (arXiv 2002.05202): the first half, activated, times the second; (T, F)."""
    gate_TF, up_TF = both_T2F.chunk(2, -1)
    return silu(gate_TF).mul_(up_TF)


@replaceable
def gated_backward(gradient_TF: Tensor, both_T2F: Tensor) -> Tensor:
    """The gradient of both halves, (T, 2F)."""
    gate_TF, up_TF = both_T2F.chunk(2, -1)
    found_T2F = torch.empty_like(both_T2F)
    of_gate_TF, of_up_TF = found_T2F.chunk(2, -1)
    torch.ops.aten.silu_backward.grad_input(gradient_TF * up_TF, gate_TF, grad_input=of_gate_TF)
    torch.mul(silu(gate_TF), gradient_TF, out=of_up_TF)
    return found_T2F


def rotated(x_THW: Tensor, cos_TR: Tensor, sin_TR: Tensor, *, interleaved: bool) -> Tensor:
    """Su et al., RoFormer (arXiv 2104.09864): pairs of features turned by their position's angles. Pairs lie half a width
    apart, or side by side; what is beyond R stays as it is.
    """
    half = cos_TR.shape[-1] // 2
    cos_T1R, sin_T1R = (one[:, None, :half].contiguous() for one in (cos_TR, sin_TR))  # strided as in the backward pass
    return _Rotated.apply(x_THW, cos_T1R, sin_T1R, interleaved)


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_THW: Tensor, cos_T1R: Tensor, sin_T1R: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(cos_T1R, sin_T1R)
        ctx.interleaved = interleaved
        return _turned(x_THW, cos_T1R, sin_T1R, interleaved)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        cos_T1R, sin_T1R = ctx.saved_tensors
        return _turned(gradients[0], cos_T1R, -sin_T1R, ctx.interleaved), None, None, None


@replaceable
def _turned(x_THW: Tensor, cos_T1R: Tensor, sin_T1R: Tensor, interleaved: bool) -> Tensor:
    width = 2 * cos_T1R.shape[-1]
    found_THW = x_THW.new_empty(x_THW.shape) if width == x_THW.shape[-1] else x_THW.clone()
    (one, two), (first, second) = (
        (part[..., ::2], part[..., 1::2]) if interleaved else part.chunk(2, -1)
        for part in (x_THW[..., :width], found_THW[..., :width])
    )
    torch.mul(one, cos_T1R, out=first).addcmul_(two, sin_T1R, value=-1)
    torch.mul(two, cos_T1R, out=second).addcmul_(one, sin_T1R)
    return found_THW


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
