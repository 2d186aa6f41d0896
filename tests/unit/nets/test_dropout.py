"""Masks follow from seed, step, row, layer and position alone."""

from __future__ import annotations

import torch

from luthier.nets.dropout import Draw, Dropout


def drawn(rows: list[int], positions: list[int], *, seed: int = 1, step: int = 1, layer: int = 0) -> torch.Tensor:
    draw = Draw()
    draw.begin(seed, step, torch.tensor(rows), torch.tensor(positions))
    return draw.uniform(layer, 64)


def test_a_token_is_drawn_the_same_wherever_it_lies() -> None:
    together = drawn([7, 7, 3], [0, 1, 0])
    assert torch.equal(together[2], drawn([3], [0])[0])
    assert torch.equal(together[1], drawn([3, 7], [5, 1])[1])


def test_every_number_that_it_is_drawn_by_matters() -> None:
    first = drawn([1], [1])
    for other in (
        drawn([2], [1]),
        drawn([1], [2]),
        drawn([1], [1], seed=2),
        drawn([1], [1], step=2),
        drawn([1], [1], layer=1),
    ):
        assert not torch.equal(first, other)
        assert abs(torch.corrcoef(torch.cat((first, other)))[0, 1]) < 0.5


def test_the_numbers_are_spread_evenly() -> None:
    found = drawn([n // 50 for n in range(5000)], [n % 50 for n in range(5000)])
    counts = torch.histc(found, 20, 0, 1)
    assert found.min() >= 0 and found.max() < 1
    assert (counts / counts.mean() - 1).abs().max() < 0.05
    assert abs(torch.corrcoef(found.T)[~torch.eye(64, dtype=torch.bool)]).max() < 0.08
    assert abs(torch.corrcoef(found[:200])[~torch.eye(200, dtype=torch.bool)]).mean() < 0.12


def test_what_is_dropped_is_made_up_for_and_nothing_is_dropped_in_evaluation() -> None:
    draw = Draw()
    draw.begin(0, 1, torch.zeros(2000, dtype=torch.long), torch.arange(2000))
    layer, ones = Dropout(0.25, 3, draw), torch.ones(1, 2000, 64)
    kept = layer(ones)
    assert set(kept.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert abs(kept.mean() - 1) < 0.01
    assert torch.equal(layer.eval()(ones), ones)
