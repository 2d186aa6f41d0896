"""Attention over a tree of segments: what several sequences begin with is there once, and each goes on from it.

Shapes: T tokens of all segments, H heads, K key heads, P positions of a learned prefix, D width of a head, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from luthier.nets.kernels import is_taken, replaceable
from luthier.nets.products import linear

if TYPE_CHECKING:
    from luthier.nets.packing import Packed

ATTENTION = "luthier_packed"
"""The name under which transformers knows our attention."""


class Segment(NamedTuple):
    """Tokens from `begin` to before `end`; what goes on from them follows, up to before `last`."""

    begin: int
    end: int
    last: int


def attention(
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
    """Attention of each token to those before it on its way to the root; the prefix, where there is one, is the root.

    Without `packed` of one sequence that goes on from a cache. Gives (1, T, H, D). Raises ValueError for what it does not know.
    """
    if attention_mask is not None or softcap is not None or s_aux is not None or dropout:
        raise ValueError("its attention has a mask, a cap, sinks or dropout")
    if packed is not None and packed.spans is not None:
        raise ValueError(
            "its sequences go through several adapters, which only layers that `layers.fuse` took can tell apart"
        )
    if packed is None:
        return attended(query_1HTD, key_1KTD, value_1KTD, scaling, sliding_window).transpose(1, 2), None
    root_21KPD: Tensor | None = None
    if prefix_L2KPD is not None:
        layer: Any = module
        root_21KPD = prefix_L2KPD[layer.layer_idx, :, None].to(key_1KTD.dtype)
    said = over_tree(query_1HTD, key_1KTD, value_1KTD, packed.segments, root_21KPD, scaling, sliding_window)
    return said.transpose(1, 2), None


@replaceable
def over_tree(
    query_1HTD: Tensor,
    key_1KTD: Tensor,
    value_1KTD: Tensor,
    segments: Sequence[Segment],
    root_21KPD: Tensor | None = None,
    scaling: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Attention over segments that stand in the order of a walk through their trees; (1, H, T, D).

    `root_21KPD` are keys and values that all see first.
    """
    if query_1HTD.device.type != "cpu" or window is not None or value_1KTD.shape[-1] != query_1HTD.shape[-1]:
        return _by_paths(query_1HTD, key_1KTD, value_1KTD, segments, root_21KPD, scaling, window)
    given = [query_1HTD, key_1KTD, value_1KTD, *(() if root_21KPD is None else root_21KPD)]
    if torch.is_autocast_enabled("cpu"):  # as it does for torch's own attention
        given = [one.to(torch.get_autocast_dtype("cpu")) for one in given]
    scale = query_1HTD.shape[-1] ** -0.5 if scaling is None else scaling
    if given[0].dtype != torch.bfloat16:
        segments = _in_parts(tuple(segments))
    return _OverTree.apply(segments, scale, *given)


_WHOLE = range(320, 768)
"""Lengths of a segment for which torch's kernel computes nearly all that a causal mask hides: it takes keys 512 at a time. In
bf16 what it does beside its products costs more than these.
"""
_PART = 256
_LEAST_BF16 = 192
"""Tokens of a segment from which the backward pass of torch's kernel is faster in bf16 than in fp32."""
_LEAST_PAIRS = 128 * 128
"""Queries times keys from which a backward pass by products of oneDNN is faster than torch's kernel, for which MKL multiplies."""
_BLOCK = 160
"""Queries that such a pass takes at a time."""


@lru_cache(maxsize=16)
def _in_parts(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """The same with those of such lengths as chains of shorter ones, each going on from the one before."""
    found: list[Segment] = []
    for one in segments:
        length = one.end - one.begin
        parts = round(length / _PART) if length in _WHOLE else 1
        cuts = [one.begin + length * part // parts for part in range(parts + 1)]
        found += [Segment(begin, end, one.last) for begin, end in pairwise(cuts)]
    return tuple(found)


def _by_paths(
    query_1HTD: Tensor,
    key_1KTD: Tensor,
    value_1KTD: Tensor,
    segments: Sequence[Segment],
    root_21KPD: Tensor | None,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """The same for each segment by itself, with all keys on its path."""
    parts: list[Tensor] = []
    path: list[Segment] = []
    for segment in segments:
        path = [*(one for one in path if segment.begin < one.last), segment]
        keys = [key_1KTD[:, :, one.begin : one.end] for one in path]
        values = [value_1KTD[:, :, one.begin : one.end] for one in path]
        if root_21KPD is not None:
            keys, values = [root_21KPD[0], *keys], [root_21KPD[1], *values]
        query = query_1HTD[:, :, segment.begin : segment.end]
        ahead = sum(key.shape[2] for key in keys[:-1])
        if ahead and window is None:
            # Empty queries stand where there are keys before: so what is causal needs no mask.
            query = torch.cat((query.new_zeros(*query.shape[:2], ahead, query.shape[3]), query), 2)
        said = attended(query, torch.cat(keys, 2), torch.cat(values, 2), scaling, window)
        parts.append(said if window is not None else said[:, :, ahead:])
    return torch.cat(parts, 2)


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


class _OverTree(torch.autograd.Function):
    """A call of torch's flash attention for the keys of each segment: its own queries see them causally, all that follow see
    all of them. Parts are joined by their log-sum-exp, as in Liu et al., Ring Attention (arXiv 2310.01889), section 3.

    What is kept for the backward pass grows with T: each part's probabilities follow from the joined log-sum-exp.
    """

    @staticmethod
    def forward(
        ctx: Any, segments: Sequence[Segment], scale: float, query: Tensor, key: Tensor, value: Tensor, *root: Tensor
    ) -> Tensor:
        ctx.segments, ctx.scale = segments, scale
        keys, values = _for_all_heads(query, key), _for_all_heads(query, value)
        said = torch.empty_like(query.transpose(1, 2)).transpose(1, 2)
        sums = query.new_empty(query.shape[:3], dtype=torch.float64 if query.dtype == torch.float64 else torch.float32)
        for one in segments:
            own = slice(one.begin, one.end)
            said[:, :, own], sums[:, :, own] = _flash(query, keys, values, own, own, scale, is_causal=True)
        for one in segments:
            if one.last > one.end:
                later = slice(one.end, one.last)
                part, total = _flash(query, keys, values, later, slice(one.begin, one.end), scale, is_causal=False)
                _join(said[:, :, later], sums[:, :, later], part, total)
        if root:
            everything = slice(0, query.shape[2])
            first, second = (_for_all_heads(query, one) for one in root)
            part, total = _flash(query, first, second, everything, slice(0, first.shape[2]), scale, is_causal=False)
            _join(said, sums, part, total)
        ctx.save_for_backward(query, key, value, said, sums, *root)
        return said

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        query, key, value, said, sums, *root = ctx.saved_tensors
        keys, values = _for_all_heads(query, key), _for_all_heads(query, value)
        of_query, of_key, of_value = (torch.empty_like(one) for one in (query, key, value))

        def of(later: slice, seen: slice, keys: Tensor, values: Tensor, *, is_causal: bool) -> tuple[Tensor, ...]:
            given = [gradient[:, :, later], query[:, :, later], keys[:, :, seen], values[:, :, seen], said[:, :, later]]
            pairs = (later.stop - later.start) * (seen.stop - seen.start)
            if pairs >= _LEAST_PAIRS and query.dtype != torch.float64 and is_taken(linear, query):
                return _by_products(given, sums[:, :, later], key.shape[1], ctx.scale, is_causal=is_causal)
            if is_causal and query.dtype == torch.bfloat16 and later.stop - later.start < _LEAST_BF16:
                given = [one.float() for one in given]
            first, *both = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                *given, sums[:, :, later], 0.0, is_causal, scale=ctx.scale
            )
            return first, *(_of_key_heads(one, key.shape[1]) for one in both)

        for one in ctx.segments:
            own = slice(one.begin, one.end)
            of_query[:, :, own], of_key[:, :, own], of_value[:, :, own] = of(own, own, keys, values, is_causal=True)
        for one in ctx.segments:
            if one.last > one.end:
                later, own = slice(one.end, one.last), slice(one.begin, one.end)
                for whole, at, part in zip(
                    (of_query, of_key, of_value),
                    (later, own, own),
                    of(later, own, keys, values, is_causal=False),
                    strict=True,
                ):
                    whole[:, :, at] += part
        of_root: list[Tensor] = []
        if root:
            everything, positions = slice(0, query.shape[2]), slice(0, root[0].shape[2])
            first, second = (_for_all_heads(query, one) for one in root)
            part, *of_root = of(everything, positions, first, second, is_causal=False)
            of_query += part
        return None, None, of_query, of_key, of_value, *of_root


def _by_products(
    given: Sequence[Tensor], sums_1HT: Tensor, heads: int, scale: float, *, is_causal: bool
) -> tuple[Tensor, ...]:
    """The gradients of queries, (1, H, T, D), and of the keys and values of `heads` heads that they see, (1, K, S, D), in fp32:
    Dao, FlashAttention-2 (arXiv 2307.08691), section 3.1.2. `given` is what torch's kernel is given.

    Scores stand transposed, (S, G x B) of B queries under the G heads that share a key: what is subtracted of a query's is then a
    bias of the product.
    """
    gradient_1HTD, query_1HTD, keys_1HSD, values_1HSD, said_1HTD = given
    group = query_1HTD.shape[1] // heads
    gradient_HTD, query_HTD, said_HTD = (one[0].float().contiguous() for one in (gradient_1HTD, query_1HTD, said_1HTD))
    key_KSD, value_KSD = (one[0, ::group].float().contiguous() for one in (keys_1HSD, values_1HSD))
    query_HTD = query_HTD * scale
    less_HT, along_HT = -sums_1HT[0], (gradient_HTD * said_HTD).sum(-1).neg_()
    of_query_HTD, of_key_KSD, of_value_KSD = torch.empty_like(query_HTD), *map(torch.zeros_like, (key_KSD, value_KSD))
    (_, new, width), held = query_HTD.shape, key_KSD.shape[1]
    cuts = [*range(0, max(new - _BLOCK // 2, 1), _BLOCK), new]
    for begin, end in pairwise(cuts):
        seen = end if is_causal else held
        for head in range(heads):
            at = (slice(head * group, (head + 1) * group), slice(begin, end))
            query_BD, gradient_BD = (one[at].reshape(-1, width) for one in (query_HTD, gradient_HTD))
            key_SD, value_SD = key_KSD[head, :seen], value_KSD[head, :seen]
            shares_SB = linear(key_SD, query_BD, less_HT[at].reshape(-1)).exp_()
            if is_causal:
                shares_SB.view(seen, group, -1)[begin:].transpose(0, 1).triu_()
            of_scores_SB = linear(value_SD, gradient_BD, along_HT[at].reshape(-1)).mul_(shares_SB)
            of_value_KSD[head, :seen] += linear(shares_SB, gradient_BD.T)
            of_key_KSD[head, :seen] += linear(of_scores_SB, query_BD.T)
            of_query_DB = linear(key_SD.T.contiguous(), of_scores_SB.T)
            of_query_HTD[at] = of_query_DB.view(width, group, -1).permute(1, 2, 0)
    return tuple(one[None] for one in (of_query_HTD.mul_(scale), of_key_KSD, of_value_KSD))


def _flash(
    query: Tensor, keys: Tensor, values: Tensor, later: slice, seen: slice, scale: float, *, is_causal: bool
) -> tuple[Tensor, Tensor]:
    """What queries say of keys, and the logarithms of the sums of their exponentials, (1, H, T)."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query[:, :, later], keys[:, :, seen], values[:, :, seen], 0.0, is_causal, scale=scale
    )


def _join(said: Tensor, sums: Tensor, part: Tensor, total: Tensor) -> None:
    """Add what other keys say, in place."""
    joined = torch.logaddexp(sums, total)
    kept, added = (torch.exp(one - joined)[..., None] for one in (sums, total))
    if said.dtype == sums.dtype:
        said.mul_(kept).addcmul_(part, added)
    else:  # rounded once
        said.copy_(said.to(sums.dtype).mul_(kept).addcmul_(part.to(sums.dtype), added))
    sums.copy_(joined)


def _for_all_heads(query: Tensor, one: Tensor) -> Tensor:
    times = query.shape[1] // one.shape[1]
    return one if times == 1 else one.repeat_interleave(times, 1)


def _of_key_heads(gradient: Tensor, heads: int) -> Tensor:
    """Of what was repeated for several heads, the sum."""
    return gradient if gradient.shape[1] == heads else gradient.unflatten(1, (heads, -1)).sum(2)
