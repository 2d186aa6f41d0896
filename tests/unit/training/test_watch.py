"""When a run ends early, and what of its losses ends it."""

from __future__ import annotations

import math

import pytest

from luthier.core.errors import LossDiverged
from luthier.training.watch import Standing, Watch


def test_training_ends_after_so_many_evaluations_without_a_better_loss() -> None:
    watch = Watch(patience=2)
    judged = [(watch.judge(step, loss), watch.is_over) for step, loss in enumerate((3.0, 2.0, 2.0, 1.9, 2.5, 1.95))]
    assert judged == [(True, False), (True, False), (False, False), (True, False), (False, False), (False, True)]
    assert (watch.standing.best_step, watch.standing.best_loss) == (3, 1.9)
    assert Watch(2, watch.standing).is_over
    assert not Watch(None, watch.standing).is_over


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_run(loss: float) -> None:
    with pytest.raises(LossDiverged, match=f"The loss became {loss} at step 7"):
        Watch(None).step(7, loss)


def test_a_loss_of_exactly_nothing_ends_the_run_after_some_steps() -> None:
    watch = Watch(None)
    for step in range(1, 5):
        watch.step(step, 0.0)
    watch.step(5, 1e-9)
    for step in range(6, 10):
        watch.step(step, 0.0)
    with pytest.raises(LossDiverged, match="exactly 0 for 5 steps, up to step 10"):
        watch.step(10, 0.0)


def test_a_steep_rise_ends_the_run_and_single_bad_steps_do_not() -> None:
    watch = Watch(None)
    for step in range(1, 60):
        watch.step(step, 9.0 if step % 5 == 0 else 1.0)
    for step in (60, 61):
        watch.step(step, 7.0)
    with pytest.raises(LossDiverged, match=r"rose from 1\.00 to 7\.00 within 5 steps, up to step 62") as risen:
        watch.step(62, 7.0)
    assert risen.value.hint == "Use a smaller learning rate, or look for faulty rows."


def test_a_small_loss_may_rise_many_times_over() -> None:
    watch = Watch(None)
    for step in range(1, 40):
        watch.step(step, 0.001 if step < 25 else 0.5)
    assert len(watch.standing.losses) == 25
    assert Standing.model_validate_json(watch.standing.model_dump_json()) == watch.standing
