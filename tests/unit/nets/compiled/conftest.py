"""A stand-in for Liger Kernel: its function's own parameters, and plain arithmetic behind them."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch


def fused_linear_cross_entropy_forward(
    _input: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    ce_weight: Any = None,
    bias: torch.Tensor | None = None,
    ignore_index: int = -100,
    lse_square_scale: float = 0.0,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    softcap: float | None = None,
    return_z_loss: bool = False,
    accum_dtype: Any = None,
    use_token_scaling: bool = False,
    return_token_accuracy: bool = False,
    return_predicted_tokens: bool = False,
    ce_impl: Any = None,
    ce_mode: Any = None,
    token_grad_output: Any = None,
    compute_gradients: bool | None = None,
    weight_requires_grad: bool | None = None,
    chunk_mem_const: int = 1,
) -> tuple[Any, ...]:
    """As in version 0.8.5, as far as it is used here."""
    assert reduction == "none"
    assert return_predicted_tokens and compute_gradients and not weight_requires_grad
    logits = torch.nn.functional.linear(_input, weight, bias)
    shares = torch.softmax(logits.float(), -1)
    places = torch.arange(len(target))
    loss = torch.logsumexp(logits.float(), -1) - logits[places, target].float()
    shares[places, target] -= 1
    return loss, None, None, logits.argmax(-1), shares.to(_input.dtype) @ weight, None, None


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Its module, which can be given another function."""
    module: Any = ModuleType("liger_kernel.ops.fused_linear_cross_entropy")
    module.fused_linear_cross_entropy_forward = fused_linear_cross_entropy_forward
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.ops", ModuleType("liger_kernel.ops"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "luthier.nets.compiled.head", raising=False)
    return module
