"""Means over micro-batches, and the pace."""

import pytest
import torch

from luthier.nets.losses import TokenLosses
from luthier.training.meter import Mean, Pace


def test_means_are_over_tokens_not_over_micro_batches():
    mean = Mean()
    mean.add(TokenLosses(torch.tensor(6.0), trained=3, correct=1))
    mean.add(TokenLosses(torch.tensor(1.0), trained=1, correct=1))
    assert (mean.loss, mean.token_accuracy) == (7 / 4, 2 / 4)


def test_the_pace_is_smoothed_and_says_how_long_the_rest_takes():
    hands = iter([0.0, 0.0, 1.0, 1.0, 3.0, 10.0])
    pace = Pace(now=lambda: next(hands))
    pace.begin_step()
    pace.end_step(100)
    assert pace.tokens_per_second == 100
    pace.begin_step()
    pace.end_step(100)
    assert pace.tokens_per_second == pytest.approx(190 / 2.9)
    assert pace.seconds_left(190) == pytest.approx(2.9)
    assert pace.elapsed_seconds == 10.0
