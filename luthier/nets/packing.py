"""Sequences laid end to end, each attending to itself alone: no padding, no mask matrix. What they begin with may be shared.

Shapes: T tokens of all sequences, N learned positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from luthier.core.errors import InvalidRequest
from luthier.nets.adapters import Span
from luthier.nets.attention import ATTENTION, Segment, attention
from luthier.nets.prefix import prefix_of
from luthier.nets.trees import Node, trees

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PROBE = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5], [8, 9, 7, 9, 3], [3, 1, 4, 2, 7], [3, 1, 4, 1, 5, 8, 3]]
_SAME = 1e-3  # of what is compared with what it should be, relative
_ROUNDED = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Packed:
    """Sequences of T tokens in all, as a tree of segments. What stands at `chosen_N` says the token `targets_N` after it, which
    is learned; `sequence_N` tells whose it is. `owner_T` is the sequence of each token, of shared ones the first.
    """

    input_ids_T: Tensor
    positions_T: Tensor
    owner_T: Tensor
    segments: tuple[Segment, ...]
    sequences: int
    chosen_N: Tensor
    targets_N: Tensor
    weights_N: Tensor
    sequence_N: Tensor
    spans: tuple[Span, ...] | None = None
    """Which adapter which tokens go through, in layers that `layers.fuse` took; absent: the one that is active."""


def pack(
    sequences: Sequence[tuple[Sequence[int], Sequence[float]]],
    device: torch.device,
    *,
    shared: int | None = None,
    adapters: Sequence[str] | None = None,
) -> Packed:
    """Lay sequences of tokens and their weights end to end; a sequence's first token is never learned.

    `shared` is how many tokens several must have in common, at least, to have them once; absent, each has its own.
    `adapters` names one for each sequence; those of different ones share nothing.
    """
    ids = [np.asarray(tokens, np.int64) for tokens, _ in sequences]
    nodes: list[Node] = []
    segments: list[Segment] = []
    spans: list[Span] = []
    place = 0
    for adapter in sorted(set(adapters or [""])):
        among = [one for one in range(len(sequences)) if adapters is None or adapters[one] == adapter]
        grown = trees(ids, shared, among=among)
        begins = list(accumulate((node.tokens for node in grown), initial=place))
        lasts = begins[1:]
        for number in reversed(range(len(grown))):  # what goes on from a node stands behind it
            if (parent := grown[number].parent) is not None:
                lasts[parent] = max(lasts[parent], lasts[number])
        segments += [Segment(*one) for one in zip(begins, begins[1:], lasts, strict=False)]
        spans.append(Span(adapter, place, begins[-1]))
        nodes, place = [*nodes, *grown], begins[-1]

    way = np.empty(max(map(len, ids), default=0), np.int64)  # to the node under way: where each token on it is laid
    none: list[np.ndarray] = [np.empty(0, np.int64)] * len(sequences)
    chosen, targets, weights = [*none], [*none], [*none]
    for node, segment in zip(nodes, segments, strict=True):
        way[node.begin : node.end] = np.arange(segment.begin, segment.end)
        for one in node.ending:
            shares = np.asarray(sequences[one][1], np.float32)
            learned = 1 + np.flatnonzero(shares[1:])
            chosen[one], targets[one], weights[one] = way[learned - 1], ids[one][learned], shares[learned]

    def tensor(parts: Sequence[np.ndarray], dtype: torch.dtype = torch.long) -> Tensor:
        return torch.from_numpy(np.concatenate(parts)).to(device, dtype)

    return Packed(
        tensor([ids[node.of][node.begin : node.end] for node in nodes]),
        tensor([np.arange(node.begin, node.end) for node in nodes]),
        tensor([np.full(node.tokens, node.of) for node in nodes]),
        tuple(segments),
        len(sequences),
        tensor(chosen),
        tensor(targets),
        tensor(weights, torch.float32),
        tensor([np.full(len(those), one) for one, those in enumerate(chosen)]),
        tuple(spans) if adapters else None,
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
        return attention(*given, **named)

    packed = probe(model.device)
    with torch.no_grad(), Wide():
        alone = [_decoded(model, torch.tensor([ids], device=packed.input_ids_T.device))[:-1] for ids in _PROBE]
    AttentionInterface.register(ATTENTION, watched)
    AttentionMaskInterface.register(ATTENTION, _no_mask)
    before: Any = model.config._attn_implementation
    try:
        model.set_attn_implementation(ATTENTION)
        with torch.no_grad(), Wide():
            together = hidden_states(model, packed)[packed.chosen_N]
        with torch.no_grad():
            hidden_states(model, packed)  # in the type that it is in nothing is compared, but it has to be possible
    except (TypeError, ValueError, AttributeError, RuntimeError) as unfit:
        if isinstance(unfit, torch.OutOfMemoryError) or "alloc" in str(unfit):
            raise
        model.set_attn_implementation(before)
        raise _unfit(model, str(unfit)) from unfit
    finally:
        AttentionInterface.register(ATTENTION, attention)
    if (why := longer_ones_differ(model.config, longest, has_window=any(windows))) is not None:
        model.set_attn_implementation(before)
        raise _unfit(model, why)
    if (why := unlike(together, torch.cat(alone))) is not None:
        model.set_attn_implementation(before)
        raise _unfit(model, why)


def probe(device: torch.device) -> Packed:
    """Short sequences that share beginnings of two lengths, every token learned."""
    return pack([(ids, [1.0] * len(ids)) for ids in _PROBE], device, shared=2)


class Wide(TorchFunctionMode):
    """Inside, all is computed in fp32 at least, also where weights are kept in less, one of them being widened at a time. It is
    for forward passes: what is written to such a weight is lost.

    What is proved there is proved as strictly for every type: in bf16 the hidden states of a model such as SmolLM2 differ by a
    tenth when only its batch is another.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is nn.functional.embedding:  # whose weight may be the largest by far
            return _widened(func(*args, **kwargs or {}))
        return func(*tree_map(_widened, args), **tree_map(_widened, kwargs or {}))


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype in _ROUNDED:
        return value.float()
    return torch.float32 if isinstance(value, torch.dtype) and value in _ROUNDED else value


def unlike(found: Tensor, expected: Tensor) -> str | None:
    """How far hidden states of a probe, made inside `Wide`, are from what they should be, where that is more than rounding."""
    difference = (found - expected).abs().max() / expected.abs().max()
    if not expected.isfinite().all() or difference < _SAME:
        return None
    return f"the difference is {difference:.1e}"


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


def _decoded(model: PreTrainedModel, ids_1L: Tensor) -> Tensor:
    decoder: Any = model.get_decoder()
    return decoder(input_ids=ids_1L, use_cache=False).last_hidden_state[0]


def _unfit(model: PreTrainedModel, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"Sequences cannot be laid end to end for a model of type {model.config.model_type!r}: {why}.",
        hint="Choose a model whose layers look back by attention only, such as Llama, Qwen, GLM-4 or SmolLM.",
    )


def _no_mask(*_: Any, **__: Any) -> None:
    """What transformers asks for a mask: our attention needs none."""
