"""Decoder layers of Llama's kind, computed by our own operations over the library's modules, which stay what they are.

Shapes: T tokens of all segments, E hidden size, O outputs of layers together, H heads, K key heads, W width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from luthier.nets.adapters import Gated, Layers, Normed, Plain, Span, why_not
from luthier.nets.attention import over_tree
from luthier.nets.fusion import rotated
from luthier.nets.packing import Packed, Wide, hidden_states, probe, unlike

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_KINDS = {"LlamaDecoderLayer": False, "Qwen2DecoderLayer": False, "Qwen3DecoderLayer": False, "Glm4DecoderLayer": True}
"""Layers that are known, and whether the features that their positions turn together lie side by side."""


def fuse(model: PreTrainedModel, *, joins: bool = True) -> str | None:
    """Let passes over packed sequences go through our own layers; the reason where they cannot, and the library's compute.

    Behind the last layer stands only what is asked for: hidden states of positions where nothing is learned are zeros then.
    `model` went through `prepare`; adapters and prefixes are attached before. `joins` lays weights that read the same into
    one tensor. What the layers say then is compared with what they said before. From here on the model stays on its device and
    in its type, and is not copied: the layers hold its weights.
    """
    decoder: Any = model.get_decoder()
    layers: Any = getattr(decoder, "layers", ())
    if not len(layers):
        return f"a model of type {type(decoder).__name__} has no layers where they are looked for"
    before = [vars(layer).get("forward") for layer in layers]
    try:
        why = next((why for layer in layers if (why := _why_not(layer)) is not None), None)
        if why is None:
            why = _replaced(model, layers, joins=joins)
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as changed:
        if isinstance(changed, torch.OutOfMemoryError) or "alloc" in str(changed):
            raise
        why = f"layers of type {type(layers[0]).__name__} are not what they were: {changed}"
    if why is not None:
        for layer, forward in zip(layers, before, strict=True):
            vars(layer).pop("forward", None)
            if forward is not None:
                layer.forward = forward
    return why


def _replaced(model: PreTrainedModel, layers: Any, *, joins: bool) -> str | None:
    """Put our forward passes into layers, and say how they differ from those that were there."""
    packed = probe(model.device)
    with torch.no_grad(), Wide():
        expected = hidden_states(model, packed)[packed.chosen_N]
    for layer in layers:
        layer.forward = MethodType(_Fused(layer, joins=joins, is_last=layer is layers[-1]), layer)
    with torch.no_grad(), Wide():
        why = unlike(hidden_states(model, packed)[packed.chosen_N], expected)
    with torch.no_grad():
        hidden_states(model, packed)  # in the type that it is in nothing is compared, but it has to be possible
    return why


def _why_not(layer: Any) -> str | None:
    if type(layer).__name__ not in _KINDS:
        return f"layers of type {type(layer).__name__} are not known"
    if any(parameter.requires_grad for norm in _norms(layer) for parameter in norm.parameters()):
        return "its norms learn"
    config, names = layer.self_attn.config, {"silu", "swish"}
    if config.hidden_act not in names:
        return f"its activation is {config.hidden_act}"
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()) and not hasattr(
        layer.self_attn, "sliding_window"
    ):
        return "its layers do not tell of their window"
    return next((why for one in _linear(layer) if (why := why_not(one)) is not None), None)


def _norms(layer: Any) -> list[nn.Module]:
    return [module for name, module in layer.named_modules() if name.endswith("norm")]


def _linear(layer: Any) -> list[nn.Module]:
    attention, mlp = layer.self_attn, layer.mlp
    return [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, *_gates(mlp), mlp.down_proj]


def _gates(mlp: Any) -> list[nn.Module]:
    return [mlp.gate_up_proj] if hasattr(mlp, "gate_up_proj") else [mlp.gate_proj, mlp.up_proj]


class _Fused:
    """The forward pass of one layer."""

    def __init__(self, layer: Any, *, joins: bool, is_last: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._plain = layer.forward
        self._is_last = is_last
        self._is_interleaved = _KINDS[type(layer).__name__]
        qkv = [attention.q_proj, attention.k_proj, attention.v_proj]
        self._qkv = Layers(qkv, Normed(layer.input_layernorm), joins=joins)
        self._out = Layers([attention.o_proj], Plain(), joins=joins)
        self._gates = Layers(_gates(mlp), Normed(layer.post_attention_layernorm), joins=joins)
        self._down = Layers([mlp.down_proj], Gated(), joins=joins)

    def __call__(
        self,
        layer: Any,
        hidden_states: Tensor,
        *given: Any,
        packed: Packed | None = None,
        prefix_L2KPD: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **named: Any,
    ) -> Tensor:
        if packed is None:
            return self._plain(hidden_states, *given, position_embeddings=position_embeddings, **named)
        if position_embeddings is None:
            raise TypeError("they are not told the angles of positions")
        compute = partial(self._computed, layer, position_embeddings, packed, prefix_L2KPD)
        if (
            layer.gradient_checkpointing and layer.training
        ):  # the library does so around the forward pass that this replaces
            return layer._gradient_checkpointing_func(compute, hidden_states)
        return compute(hidden_states)

    def _computed(
        self,
        layer: Any,
        angles: tuple[Tensor, Tensor],
        packed: Packed,
        prefix_L2KPD: Tensor | None,
        hidden_states: Tensor,
    ) -> Tensor:
        x_TE, spans = hidden_states[0], packed.spans
        said_TO = self._qkv(x_TE, spans)
        seen_TE = self._attention(layer.self_attn, said_TO, angles, packed, prefix_L2KPD)
        if not self._is_last or spans is not None:
            return self._onward(layer, x_TE, seen_TE, spans)[None]
        asked_U = torch.unique(packed.chosen_N)  # no other position is looked at behind this layer
        said_UE = self._onward(layer, x_TE[asked_U], seen_TE[asked_U], None)
        return torch.zeros_like(x_TE).index_copy(0, asked_U, said_UE)[None]

    def _onward(self, layer: Any, x_TE: Tensor, seen_TE: Tensor, spans: Sequence[Span] | None) -> Tensor:
        """What is left of a layer once it has looked at other positions: each goes on by itself."""
        if (after := getattr(layer, "post_self_attn_layernorm", None)) is None:
            x_TE = self._out(seen_TE, spans, residual=x_TE)
        else:
            x_TE = x_TE + after(self._out(seen_TE, spans))
        gates_TO = self._gates(x_TE, spans)
        if (after := getattr(layer, "post_mlp_layernorm", None)) is None:
            return self._down(gates_TO, spans, residual=x_TE)
        return x_TE + after(self._down(gates_TO, spans))

    def _attention(
        self,
        attention: Any,
        said_TO: Tensor,
        angles: tuple[Tensor, Tensor],
        packed: Packed,
        prefix_L2KPD: Tensor | None,
    ) -> Tensor:
        config, width = attention.config, attention.head_dim
        heads, keys = config.num_attention_heads, config.num_key_value_heads
        query_THW, key_TKW, value_TKW = said_TO.unflatten(1, (-1, width)).split((heads, keys, keys), 1)
        if hasattr(attention, "q_norm"):
            query_THW, key_TKW = attention.q_norm(query_THW), attention.k_norm(key_TKW)
        cos_TR, sin_TR = (one[0] for one in angles)
        query_THW, key_TKW = (
            rotated(one, cos_TR, sin_TR, interleaved=self._is_interleaved) for one in (query_THW, key_TKW)
        )
        root = None if prefix_L2KPD is None else prefix_L2KPD[attention.layer_idx, :, None].to(key_TKW.dtype)
        seen_1HTW = over_tree(
            query_THW.transpose(0, 1)[None],
            key_TKW.transpose(0, 1)[None],
            value_TKW.contiguous().transpose(0, 1)[None],  # else all that the layers said would be kept with it
            packed.segments,
            root,
            attention.scaling,
            getattr(attention, "sliding_window", None),
        )
        return seen_1HTW[0].transpose(0, 1).flatten(1)
