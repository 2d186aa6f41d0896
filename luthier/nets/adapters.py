"""Frozen linear layers that read the same input, and the adapters beside them: one product for all layers, no gradient of what
is frozen, and for each span of tokens an adapter of its own.

LoRA: Hu et al. (arXiv 2106.09685). Shapes: T tokens, I inputs, O outputs of all layers together, o of one, r rank of an adapter.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from luthier.nets import fusion
from luthier.nets.products import linear, times
from luthier.nets.quantised import Nf4Linear


class Span(NamedTuple):
    """Tokens from `begin` to before `end`, and the adapter that they go through."""

    adapter: str
    begin: int
    end: int


class Source(ABC):
    """What layers read of their input. It is made again for the backward pass, and not kept."""

    @abstractmethod
    def read(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What the layers read, and what `again` and `backward` need beside x."""

    @abstractmethod
    def again(self, x: Tensor, *kept: Tensor) -> Tensor: ...

    @abstractmethod
    def backward(self, gradient: Tensor, x: Tensor, *kept: Tensor) -> Tensor:
        """The gradient of x from that of what was read."""


class Plain(Source):
    """The input as it is."""

    def read(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return x, ()

    def again(self, x: Tensor, *kept: Tensor) -> Tensor:
        return x

    def backward(self, gradient: Tensor, x: Tensor, *kept: Tensor) -> Tensor:
        return gradient


class Gated(Source):
    """Gates and what they let through, (T, 2I)."""

    def read(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return fusion.gated(x), ()

    def again(self, x: Tensor, *kept: Tensor) -> Tensor:
        return fusion.gated(x)

    def backward(self, gradient: Tensor, x: Tensor, *kept: Tensor) -> Tensor:
        return fusion.gated_backward(gradient, x)


class Normed(Source):
    """The input divided by its root mean square; the norm's weight is frozen."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def read(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        said, over = fusion.norm(x, self._module.weight, self._module.variance_epsilon)
        return said, (over,)

    def again(self, x: Tensor, *kept: Tensor) -> Tensor:
        return fusion.normed(x, self._module.weight, kept[0])

    def backward(self, gradient: Tensor, x: Tensor, *kept: Tensor) -> Tensor:
        return fusion.norm_backward(gradient, x, self._module.weight, kept[0])


def why_not(layer: nn.Module) -> str | None:
    """Why a linear layer, with or without PEFT's adapters, cannot be one of `Layers`."""
    base: Any = getattr(layer, "base_layer", layer)
    if type(base) not in (nn.Linear, Nf4Linear):
        return f"a layer is of type {type(base).__name__}"
    if any(parameter.requires_grad for parameter in base.parameters()):
        return "its weights learn"
    if base is layer:
        return None
    adapted: Any = layer
    if any(type(one) is not nn.Identity for one in adapted.lora_dropout.values()):
        return "its adapter has dropout"
    if any(adapted.use_dora.values()) if hasattr(adapted, "use_dora") else len(adapted.lora_magnitude_vector):
        return "its adapter is decomposed"
    if any(one.bias is not None for matrices in (adapted.lora_A, adapted.lora_B) for one in matrices.values()):
        return "its adapter has a bias"
    if getattr(adapted, "lora_variant", None):
        return "its adapter is of a kind of its own"
    return (
        "its adapter is merged into the weights, or switched off"
        if adapted.merged or adapted.disable_adapters
        else None
    )


class Layers:
    """Linear layers that read the same, for which `why_not` knows no reason. They stay where they are in their model; with
    `joins` their weights become parts of one tensor, which takes no more memory.
    """

    def __init__(self, layers: Sequence[nn.Module], source: Source, *, joins: bool) -> None:
        untyped: list[Any] = list(layers)
        self.source = source
        self._layers = untyped
        self._bases: list[Any] = [getattr(layer, "base_layer", layer) for layer in untyped]
        bounds = accumulate((base.out_features for base in self._bases), initial=0)
        self._columns = [slice(begin, end) for begin, end in pairwise(bounds)]
        self._joined: Tensor | None = None
        if joins and len(layers) > 1 and all(type(base) is nn.Linear for base in self._bases):
            with torch.no_grad():
                self._joined = torch.cat([base.weight for base in self._bases])
                for base, columns in zip(self._bases, self._columns, strict=True):
                    base.weight.data = self._joined[columns]

    def __call__(self, x: Tensor, spans: Sequence[Span] | None = None, *, residual: Tensor | None = None) -> Tensor:
        """What all layers say of x, side by side, (T, O), added to `residual` where there is one.

        Without spans all tokens go through the adapter that is active.
        """
        parts: list[_Part] = []
        learned: list[Tensor] = []
        for adapter, begin, end in spans or [Span("", 0, len(x))]:
            for layer, columns in zip(self._layers, self._columns, strict=True):
                for name in ([adapter] if adapter else layer.active_adapters) if hasattr(layer, "lora_A") else ():
                    if name in layer.lora_A:
                        parts.append(_Part(slice(begin, end), columns, float(layer.scaling[name])))
                        learned += [layer.lora_A[name].weight, layer.lora_B[name].weight]
        return _Adapted.apply(self, parts, x, residual, *learned)

    def product(self, read: Tensor, residual: Tensor | None) -> Tensor:
        """Of the weights alone."""
        if self._joined is not None:
            said = linear(read, self._joined, self._bias())
        elif len(self._bases) > 1:
            said = torch.cat([linear(read, base.weight.to(read.dtype), base.bias) for base in self._bases], 1)
        else:
            said = linear(read, self._bases[0].weight.to(read.dtype), self._bases[0].bias)
        return said if residual is None else said.add_(residual)

    def back(self, gradient: Tensor) -> Tensor:
        """The gradient of what was read, through the weights alone."""
        if self._joined is not None:
            return times(gradient, self._joined)
        found: Tensor | None = None
        for base, columns in zip(self._bases, self._columns, strict=True):  # one weight of 4 bits is whole at a time
            part, weight = gradient[:, columns], base.weight.to(gradient.dtype)
            found = times(part, weight) if found is None else found.add_(times(part, weight))
        assert found is not None
        return found

    def _bias(self) -> Tensor | None:
        biases = [base.bias for base in self._bases]
        if all(bias is None for bias in biases):
            return None
        zeros = self._bases[0].weight.new_zeros
        return torch.cat([zeros(base.out_features) if base.bias is None else base.bias for base in self._bases])


class _Part(NamedTuple):
    """An adapter beside one layer for some tokens."""

    tokens: slice
    columns: slice
    scale: float


class _Adapted(torch.autograd.Function):
    """`learned` are the two matrices of each part, (r, I) and (o, r), in fp32 over whatever the base model is in."""

    @staticmethod
    def forward(
        ctx: Any, layers: Layers, parts: Sequence[_Part], x: Tensor, residual: Tensor | None, *learned: Tensor
    ) -> Tensor:
        read, kept = layers.source.read(x)
        said = layers.product(read, residual)
        inner: list[Tensor] = []
        for tokens, members in _by_tokens(parts):
            first = torch.cat([learned[2 * one] for one in members]).to(read.dtype)
            inner.append(linear(read[tokens], first))
            for one, between in zip(
                members, inner[-1].split([len(learned[2 * one]) for one in members], 1), strict=True
            ):
                second = learned[2 * one + 1].to(read.dtype)
                said[tokens, parts[one].columns].addmm_(between, second.T, alpha=parts[one].scale)
        ctx.layers, ctx.parts, ctx.counts = layers, parts, (len(kept), len(inner))
        ctx.save_for_backward(x, *kept, *inner, *learned)
        return said

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        layers: Layers = ctx.layers
        parts: Sequence[_Part] = ctx.parts
        x, *saved = ctx.saved_tensors
        keeps, inners = ctx.counts
        kept, inner, learned = saved[:keeps], saved[keeps : keeps + inners], saved[keeps + inners :]
        read = layers.source.again(x, *kept) if inner else x
        of_read = layers.back(gradient) if ctx.needs_input_grad[2] else None
        found: list[Tensor] = [*learned]
        for (tokens, members), between in zip(_by_tokens(parts), inner, strict=True):
            ranks = [len(learned[2 * one]) for one in members]
            of_between = torch.empty_like(between)
            for one, said, of_said in zip(members, between.split(ranks, 1), of_between.split(ranks, 1), strict=True):
                second = learned[2 * one + 1]
                part = gradient[tokens, parts[one].columns]
                torch.mul(times(part, second.to(part.dtype)), parts[one].scale, out=of_said)
                found[2 * one + 1] = (times(said.T, part).T * parts[one].scale).to(second.dtype)
            for one, of_first in zip(members, times(of_between.T, read[tokens]).split(ranks), strict=True):
                found[2 * one] = of_first.to(learned[2 * one].dtype)
            if of_read is not None:
                first = torch.cat([learned[2 * one] for one in members]).to(between.dtype)
                of_read[tokens].addmm_(of_between, first)
        of_x = None if of_read is None else layers.source.backward(of_read, x, *kept)
        return None, None, of_x, gradient if ctx.needs_input_grad[3] else None, *found


def _by_tokens(parts: Sequence[_Part]) -> list[tuple[slice, list[int]]]:
    """The parts, by number, of each span."""
    found: dict[tuple[int, int], list[int]] = {}
    for number, part in enumerate(parts):
        found.setdefault((part.tokens.start, part.tokens.stop), []).append(number)
    return [(slice(begin, end), members) for (begin, end), members in found.items()]
