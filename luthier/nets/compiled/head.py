"""A frozen output layer and its cross entropy by Liger Kernel: Hsu et al. (arXiv 2410.10989).

Cut Cross Entropy (arXiv 2411.09009) is not taken: it does not tell the model's first choice, and makes the logits a second time
in the backward pass, which a frozen layer needs not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from liger_kernel.ops.fused_linear_cross_entropy import (  # pyright: ignore[reportMissingImports] (the extra `gpu`)
    fused_linear_cross_entropy_forward,
)
from torch import Tensor, nn

from luthier.nets import losses
from luthier.nets.compiled.probes import Probe, Shape


def kernels() -> dict[str, Callable[..., Any]]:
    return {frozen_head.__name__: frozen_head}


def probes(shape: Shape) -> Iterator[Probe]:
    """Every second token is plainly the first choice, and the others not."""
    width = 128
    output = nn.Linear(width, shape.vocabulary, bias=False, device=shape.device, dtype=shape.dtype)
    output.weight = nn.Parameter(shape.drawn(shape.vocabulary, width), requires_grad=False)
    targets_N = torch.arange(40, device=shape.device) * (shape.vocabulary // 40)
    chosen_N = torch.where(targets_N % 2 == 0, targets_N, targets_N.roll(1))
    yield losses.frozen_head, (0.05 * output.weight[chosen_N], targets_N, output, 1.5, 16)


def frozen_head(
    hidden_ND: Tensor, targets_N: Tensor, output: nn.Linear, factor: float, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What `luthier.nets.losses.frozen_head` gives. A chunk has `size` positions or, rounded, somewhat more."""
    vocabulary, width = output.weight.shape
    loss_N, _, _, choice_N, slopes_ND, *_ = fused_linear_cross_entropy_forward(
        hidden_ND * factor,
        output.weight,
        targets_N,
        bias=output.bias,
        ignore_index=-1,
        reduction="none",
        return_predicted_tokens=True,
        compute_gradients=True,
        weight_requires_grad=False,
        chunk_mem_const=max(size * vocabulary // (len(hidden_ND) * width), 1),
    )
    return -loss_N, choice_N == targets_N, slopes_ND.mul_(-factor)
