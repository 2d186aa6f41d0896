"""An adapter's files are read without PEFT, mean what they mean to PEFT, and are refused where they fit only in part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import nn

from luthier.nets.loading import load_model
from luthier.serving.adapters import AdapterFiles, read_adapter
from luthier.serving.backends.base import AdapterUnreadable
from luthier.serving.protocol import AdapterRef
from luthier.testing import toy_model

REF = AdapterRef(id="art-1", key="", sha256="")
A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_model(tmp_path_factory.mktemp("base"))


def linear(base: Path) -> dict[str, tuple[int, int]]:
    model = load_model(base, precision="fp32")
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    return {name: (layer.out_features, layer.in_features) for name, layer in layers.items()}


def saved(base: Path, folder: Path, **settings: Any) -> Any:
    """A PEFT model over the toy, its adapter written into `folder`."""
    torch.manual_seed(0)
    chosen: dict[str, Any] = {"r": 4, "lora_alpha": 6} | settings
    peft = get_peft_model(load_model(base, precision="fp32"), LoraConfig(**chosen))
    for name, weight in peft.named_parameters():
        if "lora_" in name and "magnitude" not in name:
            nn.init.normal_(weight, std=0.3)
    peft.save_pretrained(str(folder))
    return peft.eval()


KINDS: list[dict[str, Any]] = [
    {"target_modules": ["q_proj", "down_proj"]},
    {"target_modules": ["self_attn.q_proj", "layers.1.mlp.up_proj"]},
    {"target_modules": r".*layers\.1\..*_proj"},
    {"target_modules": "all-linear", "exclude_modules": ["o_proj"]},
    {"target_modules": ["v_proj"], "use_rslora": True, "r": 8},
    {"target_modules": ["v_proj", "o_proj"], "use_dora": True},
    {"target_modules": ["q_proj", "k_proj"], "rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.0\..*": 3}},
]


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_an_adapter_has_the_places_and_scales_that_it_has_in_peft(
    base: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    peft, layers = saved(base, tmp_path, **settings), linear(base)
    files = read_adapter(tmp_path, REF)
    assert files.config.places(layers) == {name: tuple(tensor.shape) for name, tensor in files.tensors.items()}
    scales = {
        name.removeprefix("base_model.model."): layer.scaling["default"]
        for name, layer in peft.named_modules()
        if isinstance(layer, LoraLayer)
    }
    assert {name: one.scale for name, one in files.beside(layers).items()} == scales


@pytest.mark.parametrize("settings", KINDS, ids=str)
def test_its_matrices_make_the_weights_that_peft_merges(base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    peft = saved(base, tmp_path, **settings)
    plain: Any = load_model(base, precision="fp32")
    for name, one in read_adapter(tmp_path, REF).beside(linear(base)).items():
        weight = plain.get_submodule(name).weight.data
        weight += one.scale * one.B_OR @ one.A_RI
        if one.magnitude_O is not None:
            weight *= (one.magnitude_O / weight.norm(dim=1))[:, None]
    merged = peft.merge_and_unload()
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(tensor, merged.state_dict()[name], rtol=1e-5, atol=1e-6)


def changed(folder: Path, change: Any) -> AdapterFiles:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    return read_adapter(folder, REF)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop(A), "missing: .*lora_A"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "without a place: extra"),
        (
            lambda tensors: tensors.update({A: tensors[A][:, :-1].contiguous()}),
            r"has shape \(4, 31\) instead of \(4, 32\)",
        ),
    ],
    ids=["missing", "extra", "shape"],
)
def test_tensors_without_places_and_places_without_tensors_are_told(
    base: Path, tmp_path: Path, change: Any, said: str
) -> None:
    saved(base, tmp_path, target_modules=["q_proj"])
    with pytest.raises(ValueError, match=said):
        changed(tmp_path, change).beside(linear(base))


@pytest.mark.parametrize("wild", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(base: Path, tmp_path: Path, wild: float) -> None:
    saved(base, tmp_path, target_modules=["q_proj"])
    with pytest.raises(AdapterUnreadable, match=r"not finite: .*lora_A.weight \(1 tensors"):
        changed(tmp_path, lambda tensors: tensors[A].view(-1)[3:4].fill_(wild))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lora_bias": True}, "lora_bias"),
        ({"bias": "lora_only"}, "bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"peft_type": "LOHA"}, "peft_type"),
        ({"r": 0}, "a rank below 1"),
        ({"target_modules": None}, "not a plain LoRA"),
    ],
    ids=str,
)
def test_what_is_more_than_two_matrices_beside_a_layer_is_refused(
    base: Path, tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    saved(base, tmp_path, target_modules=["q_proj"])
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    with pytest.raises(AdapterUnreadable, match=said):
        read_adapter(tmp_path, REF)
