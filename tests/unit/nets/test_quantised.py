"""Weights in 4 bits: what they stand for, what is computed with them, and how bitsandbytes' own layers differ on a CPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from luthier.nets.loading import load_model
from luthier.nets.quantised import Nf4Linear
from luthier.testing import toy_model

CPU = torch.device("cpu")


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(96, 64)


def test_a_weight_takes_little_more_than_four_bits_and_is_near_what_it_was() -> None:
    whole = nn.Linear(1024, 1024, bias=False)
    nn.init.normal_(whole.weight)
    quantised = Nf4Linear(whole, CPU)
    assert quantised.bits.numel() * quantised.bits.element_size() == 1024 * 1024 / 2
    error = (quantised.weight - whole.weight).norm() / whole.weight.norm()
    assert 0.05 < error < 0.12  # of normal numbers in 16 steps
    assert not list(quantised.parameters())


def test_what_is_computed_is_exactly_the_product_with_what_the_bits_stand_for() -> None:
    quantised = Nf4Linear(layer(), CPU)
    plain = nn.Linear(96, 64)
    plain.weight.data, plain.bias.data = quantised.weight.clone(), quantised.bias.data
    inputs = torch.randn(5, 96)
    found, expected = [], []
    for module, into in ((quantised, found), (plain, expected)):
        x = inputs.clone().requires_grad_()
        y = module(x)
        y.square().sum().backward()
        into += [y.detach(), x.grad]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_evaluation_between_steps_changes_neither_numbers_nor_gradients() -> None:
    quantised = Nf4Linear(layer(), CPU)
    x = torch.randn(5, 96, requires_grad=True)
    before = quantised(x)
    with torch.no_grad():
        evaluated = quantised.eval()(x.detach())
    after = quantised.train()(x)
    assert torch.equal(before, evaluated)
    assert torch.equal(before, after)
    after.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_the_same_bits_as_a_stock_loader_makes_for_all_layers_but_the_output(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    folder = toy_model(tmp_path / "toy")
    ours = load_model(folder, precision="fp32", is_quantised=True)
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    stock = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.float32).train()
    layers = {name: module for name, module in ours.named_modules() if isinstance(module, Nf4Linear)}
    assert len(layers) == 2 * 7
    for name, module in layers.items():
        assert torch.equal(module.bits, stock.get_submodule(name).weight.data.view_as(module.bits))
    ids = torch.tensor([[257, 70, 71, 258]])
    torch.testing.assert_close(ours(input_ids=ids).logits, stock(input_ids=ids).logits, rtol=1e-3, atol=1e-3)


def test_the_output_and_the_embeddings_stay_whole(tmp_path: Path) -> None:
    model = load_model(toy_model(tmp_path / "toy"), precision="fp32", is_quantised=True)
    assert type(model.get_output_embeddings()) is nn.Linear
    assert type(model.get_input_embeddings()) is nn.Embedding
    assert model.dtype == torch.float32


def test_without_its_library_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.core.registry import MissingLibrary

    folder = toy_model(tmp_path / "toy")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingLibrary, match="need bitsandbytes") as refused:
        load_model(folder, precision="fp32", is_quantised=True)
    assert "luthier[quantised]" in refused.value.text
