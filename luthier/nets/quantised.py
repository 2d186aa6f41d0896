"""Linear layers whose weights are kept in 4 bits, and computed with as what those bits stand for.

Shapes: I inputs, O outputs. bitsandbytes makes and reads the 4 bits; the product is torch's own. The layer of bitsandbytes is not
used: on a CPU, once it was evaluated, it computes in bf16 with rounded scales, and without a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from luthier.core.registry import MissingLibrary
from luthier.nets.products import linear, times

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Nf4Linear(nn.Linear):
    """NormalFloat of 4 bits with double quantisation: Dettmers et al., QLoRA (arXiv 2305.14314), section 3.

    A block of 64 weights shares a scale, and 256 scales share one, so that a weight takes 4.13 bits. The layer is frozen.
    """

    bits: Tensor

    def __init__(self, layer: nn.Linear, device: torch.device) -> None:
        """Of a layer whose weight is (O, I); the 4 bits are made on `device`."""
        from bitsandbytes.functional import quantize_4bit

        nn.Module.__init__(self)  # a linear layer's own would make a whole weight
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = layer.bias
        self._source: Callable[[], Tensor] | None = None
        bits, self._state = quantize_4bit(layer.weight.detach().to(device), quant_type="nf4", compress_statistics=True)
        self.register_buffer("bits", bits, persistent=False)

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What the bits stand for, (O, I), made anew each time; inside `unquantised` what they were made of."""
        from bitsandbytes.functional import dequantize_4bit

        if self._source is not None:
            return self._source().to(self.bits.device)

        return dequantize_4bit(self.bits, self._state)

    def forward(self, input: Tensor) -> Tensor:
        product = _Product.apply(input, self)
        return product if self.bias is None else product + self.bias.to(product.dtype)


class _Product(torch.autograd.Function):
    """Input times weight; for the backward pass the weight is made again instead of kept."""

    @staticmethod
    def forward(ctx: FunctionCtx, input: Tensor, layer: Nf4Linear) -> Tensor:
        untyped: Any = ctx
        untyped.layer = layer
        return linear(input, layer.weight.to(input.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        weight = ctx.layer.weight.to(gradient.dtype)
        return times(gradient.flatten(0, -2), weight).unflatten(0, gradient.shape[:-1]), None


def quantise(model: PreTrainedModel, device: torch.device) -> None:
    """Keep the weights of all linear layers but the output in 4 bits; a layer at a time, so that both never lie there whole.

    Raises MissingLibrary when bitsandbytes is not installed.
    """
    try:
        import bitsandbytes as _  # noqa: F401
    except ImportError as absent:
        raise MissingLibrary(
            "Weights in 4 bits need bitsandbytes, which is not installed.",
            hint="Install it with `pip install 'luthier[quantised]'`, or choose the method lora.",
        ) from absent
    output = model.get_output_embeddings()
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and layer is not output:
            model.set_submodule(name, Nf4Linear(layer, device))


@contextmanager
def unquantised(model: nn.Module, folder: Path) -> Iterator[None]:
    """Compute with the weights in `folder` that the 4 bits were made of, read one layer at a time as each is used.

    A model without layers in 4 bits is left alone. Raises KeyError for one whose layers and weights have different names.
    """
    from safetensors import safe_open

    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, Nf4Linear)}
    with ExitStack() as files:
        sources: dict[str, Callable[[], Tensor]] = {}
        for path in sorted(folder.glob("*.safetensors")) if layers else ():
            file = files.enter_context(safe_open(path, "pt"))
            sources |= {name: partial(file.get_tensor, name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        found = {layer: sources[f"{name.removesuffix('.base_layer')}.weight"] for name, layer in layers.items()}
        try:
            for layer, source in found.items():
                layer._source = source
            yield
        finally:
            for layer in found:
                layer._source = None
