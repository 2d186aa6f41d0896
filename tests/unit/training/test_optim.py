"""The learning rate of each step; what decays; state in and out."""

import pytest
import torch
from torch import nn

from luthier.core.errors import CheckpointUnreadable
from luthier.training.optim import Optimizer, learning_rate
from luthier.training.spec import DataFile, TrainingSpec


def spec(schedule: str, warmup_ratio: float) -> TrainingSpec:
    return TrainingSpec(
        job="j", base_model="m", weights="w", weights_sha256="0", training=DataFile(key="t", sha256="0"), max_length=64,
        epochs=1, batch_size=1, micro_batch_tokens=64, learning_rate=1.0, warmup_ratio=warmup_ratio, schedule=schedule,
        seed=0, precision="fp32", threads=1, evaluate_every_steps=1, save_every_steps=1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("schedule", "warmup_ratio", "expected"),
    [
        ("constant", 0.0, [1, 1, 1, 1]),
        ("linear", 0.0, [1, 0.75, 0.5, 0.25]),
        ("linear", 0.5, [1 / 3, 2 / 3, 1, 0.5]),
        ("cosine", 0.0, [1, 0.853553, 0.5, 0.146447]),
        ("cosine", 0.25, [0.5, 1, 0.75, 0.25]),
        ("wsd", 0.25, [0.5, 1, 1, 0.5]),
        ("wsd", 0.0, [1, 1, 1, 0.5]),
    ],
)
def test_the_rate_follows_its_formula(schedule, warmup_ratio, expected):
    found = [learning_rate(spec(schedule, warmup_ratio), step, 4) for step in (1, 2, 3, 4)]
    assert found == pytest.approx(expected, abs=1e-6)


def test_weights_decay_in_matrices_only():
    parameters = {"matrix": nn.Parameter(torch.ones(2, 2)), "vector": nn.Parameter(torch.ones(2))}
    optimizer = Optimizer(parameters, weight_decay=0.5)
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0.1)
    assert parameters["matrix"].tolist() == [[pytest.approx(0.95)] * 2] * 2
    assert parameters["vector"].tolist() == [1.0, 1.0]


def test_state_of_other_parameters_is_refused():
    parameters = {"a": nn.Parameter(torch.ones(2, 2))}
    optimizer = Optimizer(parameters, weight_decay=0.0)
    parameters["a"].grad = torch.ones(2, 2)
    optimizer.step(0.1)
    with pytest.raises(CheckpointUnreadable):
        Optimizer({"b": nn.Parameter(torch.ones(2, 2))}, weight_decay=0.0).restore(optimizer.tensors())
    with pytest.raises(CheckpointUnreadable):
        Optimizer({"a": nn.Parameter(torch.ones(3, 2))}, weight_decay=0.0).restore(optimizer.tensors())
