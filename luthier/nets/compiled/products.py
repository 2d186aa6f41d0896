"""Products of fp32 by oneDNN, whose kernels take AVX-512 wherever a processor has it. MKL, to which torch gives such products by
itself, takes its own only on Intel's: on AMD's it computes with half of each vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from luthier.nets import products
from luthier.nets.compiled.probes import Probe, Shape


def kernels() -> dict[str, Callable[..., Any]]:
    return {one.__name__: one for one in (linear, times)}


def probes(shape: Shape) -> Iterator[Probe]:
    x_TI, slopes_TO = (shape.drawn(40, size).float() for size in (shape.hidden, shape.inner))
    weight_OI, bias_O = (shape.drawn(*size).float() for size in ((shape.inner, shape.hidden), (shape.inner,)))
    yield products.linear, (x_TI, weight_OI)
    yield products.linear, (x_TI, weight_OI, bias_O)
    yield products.times, (slopes_TO, weight_OI)
    yield products.times, (slopes_TO.T, x_TI)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if x.dtype != torch.float32 or not x.numel() or not weight.numel() or not (_is_dense(x) and _is_dense(weight)):
        return nn.functional.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def times(one: Tensor, other: Tensor) -> Tensor:
    return linear(one, other.T)


def _is_dense(one: Tensor) -> bool:
    """Whether oneDNN takes it without a copy or, where a few rows of it are transposed, with a small one."""
    return one.is_contiguous() or one.mT.is_contiguous()
