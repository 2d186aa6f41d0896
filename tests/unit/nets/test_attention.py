"""Attention over a tree is that of each path by itself, forward and backward."""

from __future__ import annotations

import pytest
import torch

from luthier.nets import attention
from luthier.nets.attention import Segment, _by_paths, _in_parts, attended, over_tree

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


def written_out(query, key, value, root, window):
    """The softmax over what each token sees, one after the other."""
    times = query.shape[1] // key.shape[1]
    rows = []
    for path in PATHS:
        own = SEGMENTS[path[-1]]
        places = [place for one in path for place in range(SEGMENTS[one].begin, SEGMENTS[one].end)]
        for at in range(own.begin, own.end):
            seen = [place for place in places if place <= at]
            keys, values = key[0, :, seen], value[0, :, seen]
            if root is not None:
                keys, values = torch.cat((root[0, 0], keys), 1), torch.cat((root[1, 0], values), 1)
            if window is not None:
                keys, values = keys[:, -window:], values[:, -window:]
            keys, values = keys.repeat_interleave(times, 0), values.repeat_interleave(times, 0)
            shares = torch.softmax(torch.einsum("hw,htw->ht", query[0, :, at], keys) * 16**-0.5, -1)
            rows.append(torch.einsum("ht,htw->hw", shares, values))
    return torch.stack(rows, 1)[None]


@pytest.mark.parametrize("compute", [_by_paths, over_tree])
@pytest.mark.parametrize("positions", [0, 3])
@pytest.mark.parametrize("window", [None, 6])
def test_values_and_gradients_are_those_of_a_softmax_written_out(compute, positions, window) -> None:
    torch.manual_seed(0)
    shapes = [(1, 4, 33, 16), (1, 2, 33, 16), (1, 2, 33, 16), *([(2, 1, 2, positions, 16)] if positions else [])]
    given = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    root = given[3] if positions else None
    gradient = torch.randn(1, 4, 33, 16, dtype=torch.float64)
    found, expected = (
        (said, *torch.autograd.grad(said, given, gradient))
        for said in (
            compute(*given[:3], SEGMENTS, root, None, window),
            written_out(*given[:3], root, window),
        )
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("positions", [0, 30])
def test_gradients_by_products_are_those_of_every_path(dtype, near, positions, by_onednn, monkeypatch) -> None:
    by_onednn()
    torch.manual_seed(0)
    segments = (Segment(0, 330, 700), Segment(330, 450, 700), Segment(450, 700, 700), Segment(700, 1000, 1000))
    shapes = [(1, 6, 1000, 16), (1, 2, 1000, 16), (1, 2, 1000, 16), *([(2, 1, 2, positions, 16)] if positions else [])]
    given = [(2 * torch.randn(shape)).to(dtype).requires_grad_() for shape in shapes]
    exact = [one.detach().double().requires_grad_() for one in given]
    gradient = torch.randn(1, 6, 1000, 16).to(dtype)
    written_out, sizes = attention._by_products, []
    monkeypatch.setattr(
        attention,
        "_by_products",
        lambda *all_of, **named: sizes.append(named["is_causal"]) or written_out(*all_of, **named),
    )
    found, expected = (
        torch.autograd.grad(
            compute(*these[:3], segments, these[3] if positions else None, None, None),
            these,
            gradient.to(these[0].dtype),
        )
        for compute, these in ((over_tree, given), (_by_paths, exact))
    )
    assert set(sizes) == {True, False}
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        assert (one.double() - other).norm() <= near * other.norm()


def test_long_segments_are_computed_in_parts_and_give_the_same() -> None:
    torch.manual_seed(0)
    segments = (Segment(0, 500, 1150), Segment(500, 1120, 1150), Segment(1120, 1150, 1150), Segment(1150, 2000, 2000))
    parts = _in_parts(segments)
    assert [one.end - one.begin for one in parts] == [250, 250, 310, 310, 30, 850]
    assert [one.last for one in parts] == [1150] * 5 + [2000]
    given = [torch.randn(1, heads, 2000, 8, dtype=torch.float64, requires_grad=True) for heads in (2, 1, 1)]
    gradient = torch.randn(1, 2, 2000, 8, dtype=torch.float64)
    found, expected = (
        (said, *torch.autograd.grad(said, given, gradient))
        for said in (over_tree(*given, segments), _by_paths(*given, segments, None, None, None))
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
