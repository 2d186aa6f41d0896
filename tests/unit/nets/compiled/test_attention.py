"""Which query sees which key, exactly; and FlexAttention with it, whose own plain arithmetic stands in for its kernel."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import flex_attention as library
from torch.nn.attention.flex_attention import create_block_mask, create_mask

from luthier.nets import attention
from luthier.nets.attention import Segment
from luthier.nets.compiled import attention as gpu
from luthier.nets.kernels import own

TREE = [(0, 5, 20), (5, 9, 14), (9, 14, 14), (14, 20, 20), (20, 27, 27), (27, 28, 33), (28, 33, 33)]
CPU = torch.device("cpu")
CASES = [(1, 0, None), (4, 3, None), (8, 0, None), (9, 130, None), (1, 3, 4), (9, 0, 20), (11, 7, 150)]
"""How many times as large the tree is, positions of a prefix, window."""


def tree(times: int) -> tuple[Segment, ...]:
    return tuple(Segment(*(times * place for place in one)) for one in TREE)


def paths(segments: tuple[Segment, ...], positions: int) -> list[list[int]]:
    """Of each token the keys on its way from the root, itself the last."""
    found: list[list[int]] = []
    for segment in segments:
        above = [one for one in segments if one.begin < segment.begin < one.last]
        before = [positions + place for one in above for place in range(one.begin, one.end)]
        for place in range(segment.begin, segment.end):
            own_keys = [positions + one for one in range(segment.begin, place + 1)]
            found.append([*range(positions), *before, *own_keys])
    return found


@pytest.mark.parametrize(("times", "positions", "window"), CASES)
def test_a_query_sees_its_path_through_its_window_and_nothing_else(times, positions, window) -> None:
    segments = tree(times)
    total = segments[-1].end
    expected = torch.zeros(total, positions + total, dtype=torch.bool)
    for query, keys in enumerate(paths(segments, positions)):
        expected[query, keys[-window:] if window else keys] = True
    mask = gpu.block_mask(segments, positions, window, CPU)
    assert torch.equal(create_mask(mask.mask_mod, 1, 1, total, positions + total, device="cpu")[0, 0], expected)


@pytest.mark.parametrize(("times", "positions", "window"), CASES)
def test_no_block_is_left_out_of_which_something_is_seen(times, positions, window) -> None:
    """The library's own way looks at every pair; with a window ours may list blocks more, of which the mask takes all away."""
    segments = tree(times)
    total = segments[-1].end
    mask = gpu.block_mask(segments, positions, window, CPU)
    exact = create_block_mask(mask.mask_mod, 1, 1, total, positions + total, device="cpu")
    assert mask.shape == exact.shape
    found, whole = (one.to_dense().bool() for one in (mask, exact))
    assert (found | whole).equal(found)
    if window is None:
        assert found.equal(whole)
        assert mask.full_kv_num_blocks.equal(exact.full_kv_num_blocks)


@pytest.mark.parametrize(
    ("heads", "keys", "positions", "width", "window", "dtype", "near"),
    [
        (4, 2, 0, 16, None, torch.float64, 1e-12),
        (6, 2, 3, 16, None, torch.float64, 1e-12),
        (4, 4, 0, 8, None, torch.float64, 1e-12),  # values narrower than keys
        (4, 2, 0, 16, 40, torch.float64, 1e-12),
        (4, 2, 3, 16, None, torch.bfloat16, 0.06),
    ],
)
def test_it_gives_what_ours_gives_forward_and_backward(
    monkeypatch, heads, keys, positions, width, window, dtype, near
) -> None:
    monkeypatch.setattr(
        library, "_validate_device", lambda *_: None
    )  # only its kernels for a CPU have no backward pass
    plain = torch.compile(library.flex_attention, backend="aot_eager", dynamic=True, fullgraph=True)
    monkeypatch.setattr(gpu, "compiled", lambda: plain)
    torch.manual_seed(0)
    segments = tree(9)
    total = segments[-1].end

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=dtype, requires_grad=True)

    given = [drawn(1, heads, total, 16), drawn(1, keys, total, 16), drawn(1, keys, total, width)]
    root = drawn(2, 1, keys, positions, 16) if positions else None
    wanted = [*given, *([root] if root is not None else [])]
    gradient = torch.randn(1, heads, total, width, dtype=dtype)
    found, expected = (
        (said, *torch.autograd.grad(said, wanted, gradient))
        for said in (one(*given, segments, root, 0.3, window) for one in (gpu.over_tree, own(attention.over_tree)))
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=near, atol=near)


def test_one_kernel_without_a_prefix_and_one_with_it_do_for_all_trees_and_windows(monkeypatch) -> None:
    graphs: list[int] = []

    def counted(graph, given):
        graphs.append(1)
        return graph.forward

    plain = torch.compile(library.flex_attention, backend=counted, dynamic=True, fullgraph=True)
    monkeypatch.setattr(gpu, "compiled", lambda: plain)
    for times, positions, window in ((8, 0, None), (13, 3, None), (9, 7, None), (11, 0, 20), (12, 0, None)):
        segments = tree(times)
        query, key, value = torch.randn(3, 1, 2, segments[-1].end, 16)
        root = torch.randn(2, 1, 2, positions, 16) if positions else None
        gpu.over_tree(query, key, value, segments, root, None, window)
    assert len(graphs) == 2


def test_a_single_block_goes_our_own_way(monkeypatch) -> None:
    monkeypatch.setattr(gpu, "compiled", lambda: pytest.fail("no kernel is made for it"))
    query, key, value = torch.randn(3, 1, 2, 33, 16)
    torch.testing.assert_close(
        gpu.over_tree(query, key, value, tree(1)), attention.over_tree(query, key, value, tree(1))
    )
