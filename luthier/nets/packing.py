"""Sequences laid end to end, each attending to itself alone: no padding, no mask matrix.

Shapes: T tokens of all sequences, S sequences, N learned positions, H heads, K key heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from luthier.core.errors import InvalidRequest
from luthier.nets.prefix import prefix_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "luthier_packed"
"""The name under which transformers knows our attention."""

_SAME = 1e-3  # of what is compared with what it should be, relative: bf16 models are proved in fp32 sums too


@dataclass(frozen=True)
class Packed:
    """S sequences of T tokens in all. What stands at `chosen_N` says the token after it, which is learned.

    `bounds` are the S + 1 places where sequences begin and the last ends; `sequence_N` tells whose each learned token is.
    """

    input_ids_T: Tensor
    positions_T: Tensor
    bounds: tuple[int, ...]
    chosen_N: Tensor
    targets_N: Tensor
    weights_N: Tensor
    sequence_N: Tensor

    @property
    def sequences(self) -> int:
        return len(self.bounds) - 1


def pack(sequences: Sequence[tuple[Sequence[int], Sequence[float]]], device: torch.device) -> Packed:
    """Lay sequences of tokens and their weights end to end; a sequence's first token is never learned."""
    tokens: list[int] = []
    positions: list[int] = []
    bounds = [0]
    chosen: list[int] = []
    weights: list[float] = []
    owners: list[int] = []
    for owner, (ids, shares) in enumerate(sequences):
        begin = bounds[-1]
        tokens += ids
        positions += range(len(ids))
        for place, share in enumerate(shares):
            if place and share:
                chosen.append(begin + place - 1)
                weights.append(share)
                owners.append(owner)
        bounds.append(begin + len(ids))

    def tensor(values: list[int] | list[float], dtype: torch.dtype = torch.long) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    input_ids_T, chosen_N = tensor(tokens), tensor(chosen)
    return Packed(
        input_ids_T,
        tensor(positions),
        tuple(bounds),
        chosen_N,
        input_ids_T[chosen_N + 1],
        tensor(weights, torch.float32),
        tensor(owners),
    )


def hidden_states(model: PreTrainedModel, packed: Packed) -> Tensor:
    """What the model's last layer says at every position, (T, hidden size), before its output layer.

    Where the model has a prefix, every sequence attends to it, and begins at the position behind it.
    """
    decoder: Any = model.get_decoder()
    prefix = prefix_of(model)
    positions_T = packed.positions_T if prefix is None else packed.positions_T + prefix.positions
    said = decoder(
        input_ids=packed.input_ids_T[None],
        position_ids=positions_T[None],
        use_cache=False,
        packed=packed,
        prefix_L2KPD=None if prefix is None else prefix(),
    )
    return said.last_hidden_state[0]


def prepare(model: PreTrainedModel, *, longest: int = 0) -> None:
    """Give a model our attention, and prove that sequences laid end to end get what each gets alone.

    Dropout of the model's own is switched off: its random numbers would depend on what lies beside a sequence. Raises
    InvalidRequest for a model whose layers look back in another way than attention, or do so for sequences of `longest`
    tokens, of which the proof has none.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    _switch_off_dropout(model)
    windows: list[int | None] = []

    def watched(*given: Any, **named: Any) -> tuple[Tensor, None]:
        windows.append(named.get("sliding_window"))
        return _attention(*given, **named)

    probe = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5], [8, 9, 7, 9, 3]]
    with torch.no_grad():
        alone = [_decoded(model, ids) for ids in probe]
    AttentionInterface.register(ATTENTION, watched)
    AttentionMaskInterface.register(ATTENTION, _no_mask)
    before: Any = model.config._attn_implementation
    try:
        model.set_attn_implementation(ATTENTION)
        with torch.no_grad():
            together = hidden_states(model, pack([(ids, [0.0] * len(ids)) for ids in probe], model.device))
    except (TypeError, ValueError, AttributeError) as unfit:
        model.set_attn_implementation(before)
        raise _unfit(model, str(unfit)) from unfit
    finally:
        AttentionInterface.register(ATTENTION, _attention)
    if (why := longer_ones_differ(model.config, longest, has_window=any(windows))) is not None:
        model.set_attn_implementation(before)
        raise _unfit(model, why)
    expected = torch.cat(alone).float()
    difference = (together.float() - expected).abs().max() / expected.abs().max()
    if expected.isfinite().all() and not difference < (_SAME if together.dtype == torch.float32 else 30 * _SAME):
        model.set_attn_implementation(before)
        raise _unfit(model, f"the difference is {difference:.1e}")


def _switch_off_dropout(model: PreTrainedModel) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def longer_ones_differ(config: Any, longest: int, *, has_window: bool) -> str | None:
    """Why sequences of that many tokens may not get beside others what they get alone, whatever short ones do."""
    rope = getattr(config, "rope_parameters", None) or {}
    for one in (rope, *(part for part in rope.values() if isinstance(part, dict))):
        limit = one.get("original_max_position_embeddings") or getattr(config, "max_position_embeddings", longest)
        if one.get("rope_type") in ("dynamic", "longrope") and longest > limit:
            return f"its positions change for all once one has more than {limit:,} tokens: use a smaller max_length"
    kinds = set(getattr(config, "layer_types", None) or ())
    chunk = getattr(config, "attention_chunk_size", None)
    if "chunked_attention" in kinds and chunk is not None and longest > chunk:
        return f"it looks back in chunks of {chunk:,} tokens: use a smaller max_length"
    window = getattr(config, "sliding_window", None)
    looks_through_one = "sliding_attention" in kinds if kinds else getattr(config, "use_sliding_window", True)
    if window is not None and looks_through_one and not has_window and longest > window:
        return f"its layers do not tell of their window of {window:,} tokens: use a smaller max_length"
    return None


def _decoded(model: PreTrainedModel, ids: list[int]) -> Tensor:
    decoder: Any = model.get_decoder()
    return decoder(input_ids=torch.tensor([ids], device=model.device), use_cache=False).last_hidden_state[0]


def _unfit(model: PreTrainedModel, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"Sequences cannot be laid end to end for a model of type {model.config.model_type!r}: {why}.",
        hint="Choose a model whose layers look back by attention only, such as Llama, Qwen, GLM-4 or SmolLM.",
    )


def _no_mask(*_: Any, **__: Any) -> None:
    """What transformers asks for a mask: our attention needs none."""


def _attention(
    module: nn.Module,
    query_1HTD: Tensor,
    key_1KTD: Tensor,
    value_1KTD: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    packed: Packed | None = None,
    prefix_L2KPD: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of each sequence to itself; without `packed` of one sequence that goes on from a cache. Gives (1, T, H, D)."""
    if attention_mask is not None or softcap is not None or s_aux is not None or dropout:
        raise ValueError("its attention has a mask, a cap, sinks or dropout")
    if packed is None:
        return attended(query_1HTD, key_1KTD, value_1KTD, scaling, sliding_window).transpose(1, 2), None
    before: Any = None
    if prefix_L2KPD is not None:
        layer: Any = module
        before = prefix_L2KPD[layer.layer_idx].to(key_1KTD.dtype)
    parts: list[Tensor] = []
    for begin, end in pairwise(packed.bounds):
        key, value = key_1KTD[:, :, begin:end], value_1KTD[:, :, begin:end]
        query = query_1HTD[:, :, begin:end]
        if before is None:
            parts.append(attended(query, key, value, scaling, sliding_window))
            continue
        # Empty queries stand where the prefix has keys: so what is causal lets all others see it, and needs no mask.
        key, value = torch.cat((before[None, 0], key), 2), torch.cat((before[None, 1], value), 2)
        positions = before.shape[2]
        query = torch.cat((query.new_zeros(*query.shape[:2], positions, query.shape[3]), query), 2)
        parts.append(attended(query, key, value, scaling, sliding_window)[:, :, positions:])
    return torch.cat(parts, 2).transpose(1, 2), None


def attended(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None) -> Tensor:
    """Each of t queries attends to the keys up to its own, the last t of them being those of the queries."""
    new, held = query.shape[2], key.shape[2]
    mask = None
    if (new != held and new > 1) or (window is not None and held > window):
        at, of = torch.arange(held - new, held, device=query.device)[:, None], torch.arange(held, device=query.device)
        mask = of <= at if window is None else (of <= at) & (of > at - window)
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None and new > 1, scale=scaling, enable_gqa=True
    )
