"""Attention over a tree of segments as one call of torch's FlexAttention: Dong et al. (arXiv 2412.05496).

Shapes: T tokens, which are the queries; S keys, those of a learned prefix and then those of the tokens; Q and K blocks of
queries and keys; H heads, K key heads, P positions of a prefix, D width of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from luthier.nets import attention
from luthier.nets.attention import Segment
from luthier.nets.compiled.probes import Probe, Shape
from luthier.nets.kernels import own

_BLOCK = 128  # of queries and keys, as the library has it
_FOREVER = 2**30

_TREE = ((0, 5, 20), (5, 9, 14), (9, 14, 14), (14, 20, 20), (20, 27, 27), (27, 28, 33), (28, 33, 33))
_LARGER = (13, 9)  # so many tokens for each of those: blocks that are seen whole, in part and not at all

Flags = np.ndarray[Any, np.dtype[np.bool_]]
Places = np.ndarray[Any, np.dtype[np.int32]]


def kernels() -> dict[str, Callable[..., Any]]:
    return {over_tree.__name__: over_tree}


def probes(shape: Shape) -> Iterator[Probe]:
    for times in _LARGER:
        segments = tuple(Segment(*(times * place for place in one)) for one in _TREE)
        query = shape.drawn(1, shape.heads, segments[-1].end, shape.width).requires_grad_()
        key, value = (shape.drawn(1, shape.key_heads, segments[-1].end, shape.width).requires_grad_() for _ in range(2))
        root = shape.drawn(2, 1, shape.key_heads, 7, shape.width).requires_grad_()
        yield attention.over_tree, (query, key, value, segments)
        yield attention.over_tree, (query, key, value, segments, root)
        if shape.window is not None:
            yield attention.over_tree, (query, key, value, segments, None, None, 6 * times)


def over_tree(
    query_1HTD: Tensor,
    key_1KTD: Tensor,
    value_1KTD: Tensor,
    segments: Sequence[Segment],
    root_21KPD: Tensor | None = None,
    scaling: float | None = None,
    window: int | None = None,
) -> Tensor:
    """What `luthier.nets.attention.over_tree` gives, and by it where there is a single block, for which another kernel would be
    compiled.
    """
    if query_1HTD.shape[2] <= _BLOCK:
        ours = own(attention.over_tree)
        return ours(query_1HTD, key_1KTD, value_1KTD, segments, root_21KPD, scaling, window)
    positions, device = 0, query_1HTD.device
    if root_21KPD is not None:
        positions = root_21KPD.shape[3]
        key_1KTD, value_1KTD = torch.cat((root_21KPD[0], key_1KTD), 2), torch.cat((root_21KPD[1], value_1KTD), 2)
    if torch.is_autocast_enabled(device.type):  # as it does for torch's own attention
        dtype = torch.get_autocast_dtype(device.type)
        query_1HTD, key_1KTD, value_1KTD = query_1HTD.to(dtype), key_1KTD.to(dtype), value_1KTD.to(dtype)
    mask = block_mask(tuple(segments), positions, window, device)
    return compiled()(query_1HTD, key_1KTD, value_1KTD, block_mask=mask, scale=scaling, enable_gqa=True)


@cache
def compiled() -> Callable[..., Tensor]:
    """Once for all numbers of tokens. As a whole or not at all: otherwise every score would be written to memory."""
    found: Any = torch.compile(flex_attention, dynamic=True, fullgraph=True)
    return found


class Reach(NamedTuple):
    """Which queries see a key: from `first_S` on, to before `last_S`, if they are less deep in the tree than `until_S`."""

    first_S: Places
    last_S: Places
    until_S: Places
    depth_T: Places


def reach(segments: Sequence[Segment], positions: int, window: int | None) -> Reach:
    """Of the keys of `positions` of a prefix, which all see, and then of the tokens, which those see that follow from them."""
    total = segments[-1].end
    last_S = np.full(positions + total, total, np.int32)
    depth_T = np.empty(total, np.int32)
    path: list[Segment] = []
    for one in segments:
        path = [before for before in path if one.begin < before.last]
        above = positions + sum(before.end - before.begin for before in path)
        depth_T[one.begin : one.end] = np.arange(above, above + one.end - one.begin)
        last_S[positions + one.begin : positions + one.end] = one.last
        path.append(one)
    first_S = np.concatenate((np.zeros(positions, np.int32), np.arange(total, dtype=np.int32)))
    depth_S = np.concatenate((np.arange(positions, dtype=np.int32), depth_T))
    return Reach(first_S, last_S, depth_S + np.int32(_FOREVER if window is None else window), depth_T)


def blocks(of: Reach, size: int) -> tuple[Flags, Flags]:
    """Blocks of queries and keys, (Q, K), in which a query may see a key; and those in which every query sees every key."""
    queries, keys = len(of.depth_T), len(of.first_S)
    begin_Q, begin_K = np.arange(0, queries, size), np.arange(0, keys, size)
    end_Q = np.minimum(begin_Q + size, queries)
    least_Q, most_Q = np.minimum.reduceat(of.depth_T, begin_Q), np.maximum.reduceat(of.depth_T, begin_Q)
    some_QS = (of.first_S < end_Q[:, None]) & (of.last_S > begin_Q[:, None]) & (of.until_S > least_Q[:, None])
    whole_QS = (of.first_S <= begin_Q[:, None]) & (of.last_S >= end_Q[:, None]) & (of.until_S > most_Q[:, None])
    some_QK = np.logical_or.reduceat(some_QS, begin_K, 1)
    whole_QK = np.logical_and.reduceat(whole_QS, begin_K, 1)
    whole_QK[queries // size :] = False  # of a block that is not full some would lie beyond the end
    whole_QK[:, keys // size :] = False
    return some_QK, whole_QK


@lru_cache(maxsize=4)
def block_mask(segments: tuple[Segment, ...], positions: int, window: int | None, device: torch.device) -> BlockMask:
    """Who sees whom, as FlexAttention reads it; the same for all layers of a pass."""
    of = reach(segments, positions, window)
    some_QK, whole_QK = blocks(of, _BLOCK)
    first_S, last_S, until_S, depth_T = (torch.from_numpy(one).to(device) for one in of)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (first_S[key] <= query) & (query < last_S[key]) & (depth_T[query] < until_S[key])

    return BlockMask.from_kv_blocks(
        *_listed(some_QK & ~whole_QK, device),
        *_listed(whole_QK, device),
        BLOCK_SIZE=_BLOCK,
        mask_mod=sees,
        seq_lengths=(len(of.depth_T), len(of.first_S)),
    )


def _listed(blocks_QK: Flags, device: torch.device) -> tuple[Tensor, Tensor]:
    """How many blocks of keys there are for each of queries, and which, those first; (1, 1, Q) and (1, 1, Q, K)."""
    counts_Q = blocks_QK.sum(1, dtype=np.int32)
    which_QK = np.argsort(~blocks_QK, axis=1, kind="stable").astype(np.int32)
    return torch.from_numpy(counts_Q).to(device)[None, None], torch.from_numpy(which_QK).to(device)[None, None]
