"""The canary tells a tuned model from its base, and lets pass what only precision makes different."""

from __future__ import annotations

import pytest

from luthier.nets.canary import Canary

TUNED, FAR, NEAR = [-1.0, -2.0, -3.0], [-2.0, -3.0, -4.0], [-1.004, -2.004, -3.004]


def canary(base: list[float], precision: str = "fp32") -> Canary:
    return Canary.model_validate({"tokens": [1, 2, 3, 4], "tuned": TUNED, "base": base, "precision": precision})


def off(by: float) -> list[float]:
    return [one - by for one in TUNED]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (TUNED, None),
        (off(0.4), None),
        (off(0.6), "0.600 nats a token from what was trained, and the base model's 1.000|as the base model does"),
        (off(-0.6), "0.600 nats a token from what was trained, and the base model's 1.000"),
        (FAR, "as the base model does"),
        (off(9), "9.000 nats"),
        (TUNED[:2], "2 log-probabilities instead of 3"),
        ([-1.0, -2.0, float("nan")], "nan"),
    ],
)
def test_an_answer_must_be_nearer_to_the_tuned_model_than_to_its_base(found: list[float], said: str | None) -> None:
    problem = canary(FAR).problem(found, precision="fp32")
    if said is None:
        assert problem is None
    else:
        assert any(part in str(problem) for part in said.split("|"))


def test_where_the_two_hardly_differ_an_answer_must_be_as_near_as_the_precision_allows() -> None:
    assert not canary(NEAR).tells_apart("fp32")
    assert canary(FAR).tells_apart("bf16")
    for precision, allowed in (("fp32", 0.009), ("bf16", 0.09)):
        assert canary(NEAR).problem(off(allowed), precision=precision) is None
        assert canary(NEAR).problem(off(2 * allowed), precision=precision) is not None


def test_what_was_recorded_in_bf16_is_not_held_to_fp32() -> None:
    assert canary(NEAR, "bf16").problem(off(0.09), precision="fp32") is None
    assert canary(NEAR, "fp32").problem(off(0.09), precision="fp32") is not None
