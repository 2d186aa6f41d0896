"""Small operations in one go, forward and backward: root mean square norm, gated activation, rotary positions.

Each keeps what its backward pass cannot make again at little cost, and nothing else. Shapes: T tokens, D features, F of a gate,
H heads, W width of a head, R of it that is rotated.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu


def norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Zhang and Sennrich, Root Mean Square Layer Normalization (arXiv 1910.07467), as Llama rounds it: x over its root mean
    square in fp32, rounded, times the weight. Also gives one over that root, (T, 1), in fp32.
    """
    wide_TD = _wide(x_TD)
    over_T1 = torch.rsqrt(wide_TD.square().mean(-1, keepdim=True) + eps)
    return normed(x_TD, weight_D, over_T1), over_T1


def normed(x_TD: Tensor, weight_D: Tensor, over_T1: Tensor) -> Tensor:
    """The same again."""
    return (_wide(x_TD) * over_T1).to(x_TD.dtype) * weight_D


def norm_backward(gradient_TD: Tensor, x_TD: Tensor, weight_D: Tensor, over_T1: Tensor) -> Tensor:
    """The gradient of x; the weight is frozen."""
    scaled_TD = _wide(gradient_TD) * weight_D
    direction_TD = _wide(x_TD) * over_T1
    along_T1 = (scaled_TD * direction_TD).mean(-1, keepdim=True)
    return ((scaled_TD - direction_TD * along_T1) * over_T1).to(x_TD.dtype)


def gated(both_T2F: Tensor) -> Tensor:
    """SwiGLU, Shazeer (arXiv 2002.05202): the first half, activated, times the second; (T, F)."""
    gate_TF, up_TF = both_T2F.chunk(2, -1)
    return silu(gate_TF) * up_TF


def gated_backward(gradient_TF: Tensor, both_T2F: Tensor) -> Tensor:
    """The gradient of both halves, (T, 2F)."""
    gate_TF, up_TF = both_T2F.chunk(2, -1)
    share_TF = torch.sigmoid(gate_TF)
    active_TF = gate_TF * share_TF
    of_gate_TF = gradient_TF * up_TF * (share_TF + active_TF * (1 - share_TF))
    return torch.cat((of_gate_TF, gradient_TF * active_TF), -1)


def rotated(x_THW: Tensor, cos_TR: Tensor, sin_TR: Tensor, *, interleaved: bool) -> Tensor:
    """Su et al., RoFormer (arXiv 2104.09864): pairs of features turned by their position's angles. Pairs lie half a width
    apart, or side by side; what is beyond R stays as it is.
    """
    half = cos_TR.shape[-1] // 2
    cos_T1R, sin_T1R = cos_TR[:, None, :half], sin_TR[:, None, :half]
    turned = x_THW[..., : 2 * half]
    one, two = (turned[..., ::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    first, second = one * cos_T1R - two * sin_T1R, two * cos_T1R + one * sin_T1R
    new = torch.stack((first, second), -1).flatten(-2) if interleaved else torch.cat((first, second), -1)
    return new if 2 * half == x_THW.shape[-1] else torch.cat((new, x_THW[..., 2 * half :]), -1)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
