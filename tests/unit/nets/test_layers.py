"""Our own layers give the losses and gradients of plain PEFT in double precision, for every family that is known."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from luthier.nets import layers
from luthier.nets.layers import fuse
from luthier.nets.losses import learned_tokens
from luthier.nets.packing import pack, prepare
from luthier.nets.prefix import Prefix, put_prefix, seen
from tests.unit.nets.families import model_of

KNOWN = ["smollm2", "biases", "qwen2.5", "qwen3", "glm4"]
CPU = torch.device("cpu")
ROWS = [
    ([1, 5, 6, 7, 8, 9], [0.0, 0, 0, 1, 1, 1]),
    ([1, 5, 6, 7, 13, 4, 4], [0, 0, 0.0, 0, 0.5, 1, 1]),
    ([2, 3, 4, 9, 9, 9, 7, 5], [0.0, 1, 1, 1, 1, 1, 1, 1]),
    ([1, 5, 6, 7, 8, 9, 11, 12], [0.0, 0, 0, 0, 1, 1, 1, 1]),
]


def adapted(kind: str, *names: str, targets: str = "all-linear", **more: Any) -> nn.Module:
    """A frozen model with adapters that say something."""
    model = model_of(kind).requires_grad_(False)
    for name in names:
        inject_adapter_in_model(LoraConfig(r=3, lora_alpha=7, target_modules=targets, **more), model, name)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def plainly(model: nn.Module, rows: list[Any]) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for ids, weights in rows:
        tokens = torch.tensor([ids])
        logits = model(input_ids=tokens, use_cache=False).logits[0, :-1].double()
        each = nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none")
        total = total + (each * torch.tensor(weights[1:], dtype=torch.float64)).sum()
    return total


def ours(model: Any, rows: list[Any], **more: Any) -> torch.Tensor:
    packed = pack(rows, CPU, **more)
    return -(learned_tokens(model, packed).logprobs_N * packed.weights_N).sum()


def assert_same_gradients(model: nn.Module, exact: nn.Module) -> None:
    differences, sizes = torch.zeros(()).double(), torch.zeros(()).double()
    for (name, one), (_, other) in zip(model.named_parameters(), exact.named_parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None and other.grad is not None:
            differences += (one.grad.double() - other.grad).square().sum()
            sizes += other.grad.square().sum()
    assert sizes > 0
    assert differences.sqrt() <= 1e-5 * sizes.sqrt()


@pytest.mark.parametrize("kind", KNOWN)
@pytest.mark.parametrize("shared", [None, 2])
@pytest.mark.parametrize("joins", [False, True])
def test_losses_and_gradients_are_those_of_plain_peft(kind: str, shared: int | None, joins: bool) -> None:
    model = adapted(kind, "default")
    exact = copy.deepcopy(model).double()
    expected = plainly(exact, ROWS)
    expected.backward()
    prepare(model)
    assert fuse(model, joins=joins) is None
    found = ours(model, ROWS, shared=shared)
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert_same_gradients(model, exact)


def test_adapters_on_some_layers_alone() -> None:
    model = adapted("qwen2.5", "default", targets=["q_proj", "v_proj", "down_proj"])
    exact = copy.deepcopy(model).double()
    plainly(exact, ROWS).backward()
    prepare(model)
    assert fuse(model) is None
    ours(model, ROWS, shared=2).backward()
    assert_same_gradients(model, exact)


@pytest.mark.parametrize("kind", KNOWN)
def test_two_adapters_in_one_pass(kind: str) -> None:
    model = adapted(kind, "one", "two")
    exact = copy.deepcopy(model).double()
    for adapter, rows in (("one", ROWS[::2]), ("two", ROWS[1::2])):
        for module in exact.modules():
            if hasattr(module, "set_adapter") and hasattr(module, "lora_A"):
                module.set_adapter(adapter)
        plainly(exact, rows).backward()
    for parameter in exact.parameters():  # choosing an adapter says which one learns
        parameter.requires_grad_(parameter.grad is not None)
    prepare(model)
    assert fuse(model) is None
    ours(model, ROWS, shared=2, adapters=["one", "two", "one", "two"]).backward()
    assert_same_gradients(model, exact)


def test_adapters_by_sequence_are_refused_where_layers_are_the_librarys() -> None:
    model = adapted("smollm2", "one", "two")
    prepare(model)
    with pytest.raises(ValueError, match="go through several adapters"):
        ours(model, ROWS[:2], adapters=["one", "two"])


@pytest.mark.parametrize("kind", KNOWN)
def test_a_learned_prefix(kind: str) -> None:
    model: Any = model_of(kind).requires_grad_(False)
    prepare(model)
    start, shape = seen(model, [3] * 5)
    put_prefix(model, Prefix(start, shape, width=16))
    with torch.no_grad():
        model.luthier_prefix.outer.weight.normal_(std=0.1)
    exact = copy.deepcopy(model)
    expected = ours(exact, ROWS)
    expected.backward()
    assert fuse(model) is None
    found = ours(model, ROWS, shared=2)
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert_same_gradients(model, exact)


def test_layers_are_computed_again_where_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = adapted("smollm2", "default").train()
    prepare(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert fuse(model) is None
    calls: list[int] = []
    plainly_attended = layers.over_tree
    monkeypatch.setattr(layers, "over_tree", lambda *given: (calls.append(1), plainly_attended(*given))[1])
    exact = adapted("smollm2", "default").double()
    plainly(exact, ROWS).backward()
    loss = ours(model, ROWS, shared=2)
    assert len(calls) == 2
    loss.backward()
    assert len(calls) == 4
    assert_same_gradients(model, exact)


def test_adapters_that_are_switched_off_are_not_fused() -> None:
    model = adapted("smollm2", "default")
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.enable_adapters(False)
    assert fuse(model) == "its adapter is merged into the weights, or switched off"


def test_what_is_not_packed_goes_through_the_library() -> None:
    model = adapted("smollm2", "default")
    ids = torch.tensor([ROWS[0][0]])
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        prepare(model)
        fuse(model)
        torch.testing.assert_close(model(input_ids=ids).logits, expected)
        assert model.generate(ids, max_new_tokens=4, do_sample=False).shape[1] == ids.shape[1] + 4


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: adapted("scaled", "default"), "layers of type Cohere2DecoderLayer are not known"),
        (lambda: adapted("smollm2", "default", lora_dropout=0.1), "its adapter has dropout"),
        (lambda: adapted("smollm2", "default", use_dora=True), "its adapter is decomposed"),
        (lambda: model_of("smollm2").requires_grad_(True), "its norms learn"),
    ],
    ids=["family", "dropout", "dora", "full"],
)
def test_what_cannot_be_fused_says_why_and_stays_as_it_was(make: Any, why: str) -> None:
    model = make()
    assert fuse(model) == why
    assert all("forward" not in vars(layer) for layer in model.get_decoder().layers)
