"""Norm, gated activation and rotary positions, written for torch's compiler: each becomes one kernel.

Liger Kernel's are not taken: they want halves of a gate that lie apart, rotate no features that stand side by side, and write
gradients over what was given. The names and shapes are those of `luthier.nets.fusion`, which says what they compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from luthier.nets import fusion
from luthier.nets.compiled.probes import Probe, Shape


def kernels() -> dict[str, Callable[..., Any]]:
    """Each is compiled again once the number of tokens differs, and then for all numbers."""
    ours = (norm, normed, norm_backward, gated, gated_backward, _turned)
    return {one.__name__: torch.compile(one) for one in ours}


def probes(shape: Shape) -> Iterator[Probe]:
    for tokens in (40, 300, 70):
        x_TD, gradient_TD = shape.drawn(2, tokens, shape.hidden)
        weight_D = shape.drawn(shape.hidden)
        _, over_T1 = fusion.norm(x_TD, weight_D, 1e-5)
        yield fusion.norm, (x_TD, weight_D, 1e-5)
        yield fusion.normed, (x_TD, weight_D, over_T1)
        yield fusion.norm_backward, (gradient_TD, x_TD, weight_D, over_T1)
        both_T2F = shape.drawn(tokens, 2 * shape.inner)
        yield fusion.gated, (both_T2F,)
        yield fusion.gated_backward, (shape.drawn(tokens, shape.inner), both_T2F)
        kinds = [(shape.heads, False), (shape.key_heads, False)]
        if tokens == 40:  # once: torch's compiler gives a function up that it has compiled eight times
            kinds.append((shape.heads, True))
        for heads, interleaved in kinds:
            cos_T1R, sin_T1R = shape.drawn(2, tokens, 1, shape.width // 4)
            yield fusion._turned, (shape.drawn(tokens, heads, shape.width), cos_T1R, sin_T1R, interleaved)


def norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    over_T1 = torch.rsqrt(_wide(x_TD).square().mean(-1, keepdim=True) + eps)
    return normed(x_TD, weight_D, over_T1), over_T1


def normed(x_TD: Tensor, weight_D: Tensor, over_T1: Tensor) -> Tensor:
    return (_wide(x_TD) * over_T1).to(x_TD.dtype) * weight_D


def norm_backward(gradient_TD: Tensor, x_TD: Tensor, weight_D: Tensor, over_T1: Tensor) -> Tensor:
    scaled_TD, normed_TD = _wide(gradient_TD) * weight_D, _wide(x_TD) * over_T1
    along_T1 = (scaled_TD * normed_TD).mean(-1, keepdim=True)
    return ((scaled_TD - normed_TD * along_T1) * over_T1).to(x_TD.dtype)


def gated(both_T2F: Tensor) -> Tensor:
    gate_TF, up_TF = both_T2F.chunk(2, -1)
    return silu(gate_TF) * up_TF


def gated_backward(gradient_TF: Tensor, both_T2F: Tensor) -> Tensor:
    gate_TF, up_TF = (_wide(one) for one in both_T2F.chunk(2, -1))
    wide_TF, share_TF = _wide(gradient_TF), torch.sigmoid(gate_TF)
    of_gate_TF = wide_TF * up_TF * share_TF * (1 + gate_TF * (1 - share_TF))
    return torch.cat((of_gate_TF, wide_TF * gate_TF * share_TF), -1).to(both_T2F.dtype)


def _turned(x_THW: Tensor, cos_T1R: Tensor, sin_T1R: Tensor, interleaved: bool) -> Tensor:
    width = 2 * cos_T1R.shape[-1]
    turning, rest = x_THW[..., :width], x_THW[..., width:]
    one, two = (turning[..., ::2], turning[..., 1::2]) if interleaved else turning.chunk(2, -1)
    first, second = one * cos_T1R - two * sin_T1R, two * cos_T1R + one * sin_T1R
    both = torch.stack((first, second), -1).flatten(-2) if interleaved else torch.cat((first, second), -1)
    return torch.cat((both.to(x_THW.dtype), rest), -1)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
