"""What kernels are tried on: tensors in the shapes and the type of a model, drawn apart from everything else that is random."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Probe = tuple[Callable[..., Any], tuple[Any, ...]]
"""An operation of ours, and what it is given; gradients are compared of the tensors that require them."""


class Shape:
    """The sizes of a model, and where and in what type it computes."""

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype) -> None:
        config: Any = model.config.get_text_config()
        self.device, self.dtype = model.device, dtype
        self.hidden: int = config.hidden_size
        self.inner: int = config.intermediate_size
        self.vocabulary: int = config.vocab_size
        self.heads: int = config.num_attention_heads
        self.key_heads: int = getattr(config, "num_key_value_heads", None) or self.heads
        self.width: int = getattr(config, "head_dim", None) or self.hidden // self.heads
        self.window: int | None = getattr(config, "sliding_window", None)

    def drawn(self, *size: int) -> Tensor:
        """Numbers of the normal distribution, the same in every run."""
        return torch.randn(size, generator=self._dice, device=self.device).to(self.dtype)

    @cached_property
    def _dice(self) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(0)
