"""Means over micro-batches, and the pace."""

import pytest
import torch

from luthier.training.meter import Mean, Pace
from luthier.training.objectives.base import Losses


def test_means_are_over_units_not_over_micro_batches():
    mean = Mean()
    mean.add(Losses(torch.tensor(6.0), {"token_accuracy": (torch.tensor(1), 3)}), units=3)
    mean.add(
        Losses(torch.tensor(1.0), {"token_accuracy": (torch.tensor(1), 1), "margin": (torch.tensor(3.0), 2)}), units=1
    )
    assert (mean.loss, mean.token_accuracy, mean.measures) == (7 / 4, 2 / 4, {"margin": 1.5})


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
