"""The learning rate of each step; what decays; state in and out."""

import pytest
import torch
from torch import nn

from luthier.core.errors import CheckpointUnreadable, LossDiverged
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
    optimizer.step(1, 0.1)
    assert parameters["matrix"].tolist() == [[pytest.approx(0.95)] * 2] * 2
    assert parameters["vector"].tolist() == [1.0, 1.0]


def test_one_pass_over_each_tensor_gives_the_same_steps_and_goes_on_from_the_same_state():
    torch.manual_seed(0)
    start, gradients = torch.randn(5, 3), torch.randn(4, 5, 3)
    plain, fused, resumed = (nn.Parameter(start.clone()) for _ in range(3))
    one = Optimizer({"a": plain}, weight_decay=0.1, clip_norm=1.0)
    other = Optimizer({"a": fused}, weight_decay=0.1, clip_norm=1.0, is_fused=True)
    for number, gradient in enumerate(gradients[:3]):
        for optimizer, parameter in ((one, plain), (other, fused)):
            parameter.grad = gradient.clone()
            optimizer.step(number + 1, 0.1)
    torch.testing.assert_close(fused, plain)
    again = Optimizer({"a": resumed}, weight_decay=0.1, clip_norm=1.0, is_fused=True)
    resumed.data.copy_(fused)
    again.restore({name: tensor.clone() for name, tensor in other.tensors().items()})
    for optimizer, parameter in ((other, fused), (again, resumed)):
        parameter.grad = gradients[3].clone()
        optimizer.step(4, 0.1)
    assert torch.equal(resumed, fused)


def test_state_of_other_parameters_is_refused():
    parameters = {"a": nn.Parameter(torch.ones(2, 2))}
    optimizer = Optimizer(parameters, weight_decay=0.0)
    parameters["a"].grad = torch.ones(2, 2)
    optimizer.step(1, 0.1)
    with pytest.raises(CheckpointUnreadable):
        Optimizer({"b": nn.Parameter(torch.ones(2, 2))}, weight_decay=0.0).restore(optimizer.tensors())
    with pytest.raises(CheckpointUnreadable):
        Optimizer({"a": nn.Parameter(torch.ones(3, 2))}, weight_decay=0.0).restore(optimizer.tensors())


def test_gradients_are_clipped_to_the_largest_norm_and_a_norm_that_is_no_number_changes_nothing():
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = Optimizer({"a": parameter}, weight_decay=0.0, clip_norm=1.0)
    optimizer.backward((parameter * torch.tensor([3.0, 4.0])).sum())
    assert optimizer.step(1, 0.5) == pytest.approx(5.0)
    moments = optimizer.tensors()
    torch.testing.assert_close(moments["a/exp_avg"], torch.tensor([0.06, 0.08]))  # a tenth of the clipped gradient
    before = parameter.detach().clone()
    optimizer.backward((parameter * float("nan")).sum())
    with pytest.raises(LossDiverged, match="gradient norm became nan at step 2"):
        optimizer.step(2, 0.5)
    assert torch.equal(parameter, before)


def test_a_scaled_loss_gives_the_same_steps_and_outlives_an_overflow():
    plain, scaled = (nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
    one = Optimizer({"a": plain}, weight_decay=0.0, clip_norm=1.0)
    other = Optimizer({"a": scaled}, weight_decay=0.0, clip_norm=1.0, is_scaled=True)
    for number in (1, 2):
        for optimizer, parameter in ((one, plain), (other, scaled)):
            optimizer.backward((parameter**2).sum())
            optimizer.step(number, 0.1)
    torch.testing.assert_close(scaled, plain)
    before, scale = scaled.detach().clone(), other.loss_scale()["scale"]
    other.backward((scaled * float("inf")).sum())
    assert other.step(3, 0.1) == 0.0
    assert torch.equal(scaled, before)
    assert other.loss_scale()["scale"] == scale / 2
    again = Optimizer({"a": scaled}, weight_decay=0.0, is_scaled=True)
    again.restore(other.tensors(), other.loss_scale())
    assert again.loss_scale() == other.loss_scale()


def overflow(optimizer: Optimizer, parameter: nn.Parameter, steps: int) -> None:
    for number in range(steps):
        optimizer.backward((parameter * float("inf")).sum())
        optimizer.step(number, 0.1)


def test_a_loss_that_overflows_however_little_it_is_scaled_ends_the_run():
    parameter = nn.Parameter(torch.ones(2))
    optimizer = Optimizer({"a": parameter}, weight_decay=0.0, is_scaled=True)
    overflow(optimizer, parameter, 30)
    with pytest.raises(LossDiverged, match="gradient norm became inf"):
        overflow(optimizer, parameter, 1)
