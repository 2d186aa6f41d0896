"""Products of fp32 that oneDNN computes are those that torch computes, whatever lies how in memory."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from luthier.nets import products
from luthier.nets.compiled import choice
from luthier.nets.compiled import products as by_onednn
from luthier.nets.compiled.probes import Shape
from luthier.nets.kernels import own, taken
from luthier.nets.losses import learned_tokens
from luthier.nets.packing import pack, prepare
from luthier.training import forward, precision
from tests.unit.nets.families import model_of

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


def drawn(*size: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (drawn(33, 24), drawn(24, 40)),
        (drawn(24, 33).T, drawn(24, 40)),
        (drawn(33, 24), drawn(40, 24).T),
        (drawn(33, 96)[:, 24:48], drawn(24, 96)[:, 8:48]),
        (drawn(48, 33)[::2].T, drawn(80, 48)[::2, ::2].T),
        (drawn(1, 24), drawn(24, 1)),
        (drawn(0, 24), drawn(24, 40)),
        (drawn(33, 0), drawn(0, 40)),
        (drawn(33, 24).double(), drawn(24, 40).double()),
        (drawn(33, 24).bfloat16(), drawn(24, 40).bfloat16()),
    ],
)
def test_a_product_is_that_of_torch(one: torch.Tensor, other: torch.Tensor) -> None:
    found, expected = by_onednn.times(one, other), own(products.times)(one, other)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    bias = torch.arange(other.shape[1]).to(one.dtype)
    torch.testing.assert_close(
        by_onednn.linear(one, other.T, bias), own(products.linear)(one, other.T, bias), rtol=1e-5, atol=1e-5
    )


def test_every_one_has_a_probe() -> None:
    probed = {ours.__name__ for ours, _ in by_onednn.probes(Shape(model_of("llama"), torch.float32))}
    assert probed == set(by_onednn.kernels()) == {"linear", "times"}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """What is multiplied by oneDNN, on a processor that MKL is said not to know."""
    seen: list[torch.dtype] = []
    genuine = by_onednn.linear

    def linear(x: torch.Tensor, *given: Any) -> torch.Tensor:
        seen.append(x.dtype)
        return genuine(x, *given)

    monkeypatch.setattr(by_onednn, "linear", linear)
    monkeypatch.setattr(precision, "is_narrow_to_mkl", lambda: True)
    return seen


def choose(model: Any, why_plain: str | None = None) -> dict[str, str | None]:
    return forward.chosen_kernels(model, torch.float32, why_eager="the job is short", why_plain=why_plain)


@pytest.mark.parametrize("learns", [True, False])
def test_a_model_that_the_library_computes_goes_through_them(counted: list[torch.dtype], learns: bool) -> None:
    plain, fast = model_of("biases"), model_of("biases")
    for model in (plain, fast):
        prepare(model.requires_grad_(learns))
        model.get_input_embeddings().requires_grad_(True)
    assert choose(fast, "its norms learn")[choice.PRODUCTS] is None
    counted.clear()
    rows = pack([([1, 5, 6, 7, 8, 9], [0.0, 1, 1, 1, 1, 1]), ([2, 3, 4, 9], [1.0] * 4)], torch.device("cpu"))
    for model in (plain, fast):
        learned_tokens(model, rows).logprobs_N.sum().backward()
    layers = sum(type(module) is nn.Linear for module in fast.modules())
    assert len(counted) >= layers * (3 if learns else 2) - 1
    for (name, exact), found in zip(plain.named_parameters(), fast.parameters(), strict=True):
        assert (found.grad is None) == (exact.grad is None), name
        if exact.grad is not None:
            torch.testing.assert_close(found.grad, exact.grad, rtol=1e-4, atol=1e-5)


def test_what_is_mixed_stays_with_the_library(counted: list[torch.dtype]) -> None:
    layer = nn.Sequential(nn.Linear(8, 4))
    exact = copy.deepcopy(layer)
    products.through(layer)
    taken.update({(name, "cpu"): kernel for name, kernel in by_onednn.kernels().items()})
    x = drawn(3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = layer(x), exact(x)
    assert found.dtype == expected.dtype == torch.bfloat16
    assert torch.equal(found, expected)
    assert not counted


def test_where_mkl_takes_the_whole_processor_torch_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "is_narrow_to_mkl", lambda: False)
    assert choice.PRODUCTS not in choose(model_of("llama"))
    assert not taken


@pytest.mark.parametrize(
    ("text", "is_narrow"),
    [
        ("vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2 avx512f\n", True),
        ("vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2\n", False),
        ("vendor_id\t: GenuineIntel\nflags\t\t: fpu avx2 avx512f\n", False),
        ("", False),
    ],
)
def test_which_processors_mkl_knows(tmp_path: Path, text: str, is_narrow: bool) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert precision.is_narrow_to_mkl(tmp_path / "cpuinfo") is is_narrow
    assert precision.is_narrow_to_mkl(tmp_path / "nowhere") is False
