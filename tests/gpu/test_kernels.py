"""On a machine with a GPU: every kernel beside our own operation in float64 on its CPU, forward and backward, and whole models.

    make gpu

runs them, and tells tokens a second of a model in the shape of Llama 3.2 1B, compiled and not. It needs the extras `engine` and
`gpu`. Elsewhere these tests are skipped.
"""

from __future__ import annotations

import copy
import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.nets import kernels
from luthier.nets.compiled import attention, choice, small
from luthier.nets.compiled.probes import Probe, Shape
from luthier.nets.kernels import own
from luthier.nets.layers import fuse
from luthier.nets.losses import learned_tokens
from luthier.nets.packing import pack, prepare

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.timeout(600),  # of which most goes into compiling
]

DEVICE = torch.device("cuda")
SIZES = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8},
    "0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14, "num_key_value_heads": 2},
}
VOCABULARY = 128_256
NEAR = {torch.float32: 1e-3, torch.bfloat16: 0.03}  # of the largest number


def shape(size: str, dtype: torch.dtype) -> Shape:
    config = LlamaConfig(**SIZES[size], vocab_size=VOCABULARY)
    config.sliding_window = 64
    model: Any = SimpleNamespace(config=config, device=DEVICE)
    return Shape(model, dtype)


def exactly(given: Any) -> Any:
    """The same numbers in float64 on the CPU."""
    if isinstance(given, nn.Module):
        return copy.deepcopy(given).cpu().double()
    if not isinstance(given, Tensor):
        return given
    moved = given.detach().cpu()
    return (moved.double() if moved.is_floating_point() else moved).requires_grad_(given.requires_grad)


def assert_like_ours(kernel: Any, probe: Probe, near: float) -> None:
    ours, given = probe
    found = choice._said(kernel, given)
    expected = choice._said(own(ours), tuple(exactly(one) for one in given))
    for one, exact in zip(found, expected, strict=True):
        assert one.shape == exact.shape
        assert (one.cpu().double() - exact.double()).abs().max() <= near * exact.double().abs().max(), ours.__name__


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("room", [attention, small], ids=["attention", "small"])
def test_kernels_give_what_ours_give_in_float64(room: Any, size: str, dtype: torch.dtype) -> None:
    of = shape(size, dtype)
    found = room.kernels()
    for probe in room.probes(of):
        assert_like_ours(found[probe[0].__name__], probe, NEAR[dtype])


@pytest.mark.parametrize("dtype", NEAR)
def test_the_head_gives_what_ours_gives_in_float64(dtype: torch.dtype) -> None:
    head = pytest.importorskip("luthier.nets.compiled.head", reason="Liger Kernel is not installed")
    for probe in head.probes(shape("1b", dtype)):
        assert_like_ours(head.kernels()["frozen_head"], probe, NEAR[dtype])


@pytest.mark.parametrize("shared", [None, 8])
def test_a_model_with_all_of_them_learns_as_plain_peft_in_float64(shared: int | None) -> None:
    pytest.importorskip("liger_kernel", reason="Liger Kernel is not installed")
    torch.manual_seed(0)
    small_one = SIZES["1b"] | {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}
    config = LlamaConfig(**small_one | {"num_key_value_heads": 2}, num_hidden_layers=2, vocab_size=500)
    model: Any = LlamaForCausalLM(config).eval().requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"), model, "default")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    exact = copy.deepcopy(model).double()
    model.to(DEVICE)
    prepare(model)
    why_plain = fuse(model)
    told = choice.choose(model, torch.float32, why_eager=None, why_plain=why_plain)
    assert (why_plain, told) == (None, dict.fromkeys((choice.ATTENTION, choice.SMALL, choice.HEAD)))

    dice = random.Random(0)
    begins = [dice.randrange(500) for _ in range(50)]
    rows = [(begins + [dice.randrange(500) for _ in range(length)], [1.0] * (50 + length)) for length in (90, 170, 40)]
    packed = pack(rows, DEVICE, shared=shared)
    found = -learned_tokens(model, packed).logprobs_N.sum()
    found.backward()
    expected = torch.zeros((), dtype=torch.float64)
    for ids, _ in rows:
        logits = exact(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]
        expected = expected + nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum")
    expected.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-3)
    for (name, one), (_, other) in zip(model.named_parameters(), exact.named_parameters(), strict=True):
        if other.grad is not None:
            assert (one.grad.cpu().double() - other.grad).norm() <= 5e-3 * other.grad.norm(), name


@pytest.fixture(autouse=True)
def _nothing_taken() -> Any:
    kernels.taken.clear()
    yield
    kernels.taken.clear()
