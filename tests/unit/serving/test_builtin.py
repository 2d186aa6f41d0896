"""The built-in backend gives what PEFT gives, and takes no adapter that fits only in part."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.core.errors import InvalidRequest
from luthier.nets.loading import weights_sha256
from luthier.serving.backends.base import AdapterUnreadable
from luthier.serving.backends.builtin import Builtin
from luthier.serving.spec import ReplicaSpec
from luthier.storage import Storage, digest
from luthier.testing import toy_model
from tests.unit.serving.toys import toy_adapter, toy_peft

PROMPT = list(b"Hello")
A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def spec(**changes: str) -> ReplicaSpec:
    return ReplicaSpec(
        **{
            "replica": "rep-1", "base_model": "toy", "weights": "models/toy", "weights_sha256": "", "precision": "fp32",
            "threads": 1, "adapters": 2, "socket": "",
        }
        | changes
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("storage")
    toy_model(folder / "models/toy")
    return folder


@pytest.fixture(scope="module")
def backend(folder: Path) -> Builtin:
    return Builtin.open(spec(weights_sha256=weights_sha256(folder / "models/toy")), Storage(folder.as_uri()))


def logits(backend: Builtin, adapter: str | None) -> torch.Tensor:
    backend._activate(adapter)
    with torch.inference_mode():
        return backend._model(input_ids=torch.tensor([PROMPT])).logits


def test_the_logits_are_those_of_the_model_that_was_trained(backend: Builtin, folder: Path) -> None:
    trained = {f"ckpt-{seed}": toy_peft(folder / "models/toy", seed=seed, rank=rank) for seed, rank in ((1, 4), (2, 8))}
    bare = logits(backend, None)
    for seed, rank in ((1, 4), (2, 8)):
        backend.load_adapter(toy_adapter(folder, f"ckpt-{seed}", seed=seed, rank=rank))
    for adapter, model in trained.items():
        with torch.inference_mode():
            expected = model(input_ids=torch.tensor([PROMPT])).logits
        assert torch.equal(logits(backend, adapter), expected)
        assert not torch.allclose(expected, bare, atol=0.01)
    assert torch.equal(logits(backend, None), bare)
    backend.unload_adapter("ckpt-1")
    with torch.inference_mode():
        assert torch.equal(logits(backend, "ckpt-2"), trained["ckpt-2"](input_ids=torch.tensor([PROMPT])).logits)
    backend.unload_adapter("ckpt-2")
    assert torch.equal(logits(backend, None), bare)
    assert not any("lora_A" in name for name, _ in backend._model.named_parameters())


def renamed(tensors: dict[str, torch.Tensor]) -> None:
    tensors[A.replace("layers.0", "layers.7")] = tensors.pop(A)


def shortened(tensors: dict[str, torch.Tensor]) -> None:
    tensors[A] = tensors[A][:, :-1].contiguous()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop(A), f"missing: {A} \\(1 in all\\)"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), r"without a place: extra \(1 in all\)"),
        (renamed, "missing: .*; without a place: "),
        (shortened, r"has shape \(4, 31\) instead of \(4, 32\)"),
    ],
)
def test_a_file_that_fits_only_in_part_is_refused_whole(
    backend: Builtin, folder: Path, change: Callable[[dict[str, torch.Tensor]], object], said: str
) -> None:
    good = toy_adapter(folder, "ckpt-3", seed=3)
    file = folder / good.key / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    bare = logits(backend, None)
    with pytest.raises(AdapterUnreadable, match=said):
        backend.load_adapter(good.model_copy(update={"sha256": digest(folder / good.key)}))
    assert torch.equal(logits(backend, None), bare)
    assert not any("ckpt-3" in name for name, _ in backend._model.named_parameters())
    backend.load_adapter(toy_adapter(folder, "ckpt-3", seed=3))
    backend.unload_adapter("ckpt-3")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"bias": "all"}, "not a plain LoRA: it has bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "PREFIX_TUNING"}, "peft_type"),
        ({"target_modules": ["absent"]}, "does not fit the base model"),
    ],
)
def test_other_kinds_of_adapters_are_refused(
    backend: Builtin, folder: Path, settings: dict[str, object], said: str
) -> None:
    ref = toy_adapter(folder, "ckpt-4", seed=4)
    file = folder / ref.key / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    with pytest.raises(AdapterUnreadable, match=said):
        backend.load_adapter(ref.model_copy(update={"sha256": digest(folder / ref.key)}))


def test_pickled_weights_are_not_read(backend: Builtin, folder: Path) -> None:
    ref = toy_adapter(folder, "ckpt-5", seed=5)
    file = folder / ref.key / "adapter_model.safetensors"
    torch.save(load_file(file), folder / ref.key / "adapter_model.bin")
    file.unlink()
    with pytest.raises(AdapterUnreadable, match="cannot be read"):
        backend.load_adapter(ref.model_copy(update={"sha256": digest(folder / ref.key)}))


def test_other_base_weights_are_refused(folder: Path) -> None:
    with pytest.raises(InvalidRequest, match="not the ones"):
        Builtin.open(spec(weights_sha256="0" * 64), Storage(folder.as_uri()))
