"""Attention over a tree is that of each path by itself, forward and backward."""

from __future__ import annotations

import pytest
import torch

from luthier.nets.attention import Segment, attended, over_tree

SEGMENTS = [
    Segment(0, 5, 20), Segment(5, 9, 14), Segment(9, 14, 14), Segment(14, 20, 20), Segment(20, 27, 27),
    Segment(27, 28, 33), Segment(28, 33, 33),
]  # fmt: skip
PATHS = [[0], [0, 1], [0, 1, 2], [0, 3], [4], [5], [5, 6]]
"""Which segments lead to each."""


def by_paths(query, key, value, root, window):
    """What each segment sees, put together by hand."""
    parts = []
    for path in PATHS:
        places = torch.cat([torch.arange(SEGMENTS[one].begin, SEGMENTS[one].end) for one in path])
        keys, values = key[:, :, places], value[:, :, places]
        if root is not None:
            keys, values = torch.cat((root[0], keys), 2), torch.cat((root[1], values), 2)
        own = SEGMENTS[path[-1]]
        parts.append(attended(query[:, :, own.begin : own.end], keys, values, None, window))
    return torch.cat(parts, 2)


@pytest.mark.parametrize(
    ("heads", "keys", "positions", "width", "window", "dtype", "near"),
    [
        (4, 4, 0, 16, None, torch.float64, 1e-12),
        (6, 2, 3, 16, None, torch.float64, 1e-12),
        (6, 2, 3, 16, None, torch.float32, 1e-5),
        (6, 2, 3, 16, None, torch.bfloat16, 0.06),
        (4, 2, 0, 8, None, torch.float64, 1e-12),  # values narrower than keys, as in multi-head latent attention
        (4, 2, 0, 16, 6, torch.float64, 1e-12),
    ],
)
def test_a_tree_is_its_paths(heads, keys, positions, width, window, dtype, near) -> None:
    torch.manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=dtype, requires_grad=True)

    given = [drawn(1, heads, 33, 16), drawn(1, keys, 33, 16), drawn(1, keys, 33, width)]
    root = drawn(2, 1, keys, positions, 16) if positions else None
    wanted = [*given, *([root] if root is not None else [])]
    gradient = torch.randn(1, heads, 33, width, dtype=dtype)
    found, expected = (
        (said, *torch.autograd.grad(said, wanted, gradient))
        for said in (over_tree(*given, SEGMENTS, root, None, window), by_paths(*given, root, window))
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=near, atol=near)
