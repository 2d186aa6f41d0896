"""Every artifact says what it is known by and what it answers to the canary, and none is replaced."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from luthier.core.errors import AlreadyExists
from luthier.nets.canary import Canary, distance
from luthier.nets.identity import CANARY, IDENTITY, Identity
from luthier.nets.loading import load_model
from luthier.storage import Storage, digest
from luthier.testing import toy_spec
from luthier.training.events import Failed, Succeeded
from luthier.training.methods.base import methods
from luthier.training.run import run
from luthier.training.spec import PluginChoice


@pytest.fixture(scope="module", params=methods.names())
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A storage, a spec, the end of its run, and the artifact's folder, for every method."""
    storage = Storage(tmp_path_factory.mktemp("objects").as_uri())
    spec = toy_spec(storage, method=PluginChoice(name=request.param))
    last = run(spec, storage)
    assert isinstance(last, Succeeded), last
    return storage, spec, last, storage.folder(last.artifact_key)


def test_an_artifact_is_known_by_its_bytes_its_tensors_and_its_base(made):
    _, spec, last, folder = made
    kept = Identity.kept(folder)
    assert kept is not None
    assert last.artifact_identity == kept.identity
    assert (kept.base_sha256, kept.renderer_sha256 is None) == (spec.weights_sha256, False)
    tensors = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    assert {name: kind.shape for name, kind in kept.tensors.items()} == {n: tuple(t.shape) for n, t in tensors.items()}
    assert Identity.of(folder, base_sha256=spec.weights_sha256).identity == kept.identity
    assert Identity.of(folder, base_sha256="other").identity != kept.identity
    assert digest(folder) == last.artifact_sha256


def test_the_identity_changes_with_any_byte(made, tmp_path):
    _, spec, last, folder = made
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / CANARY).unlink()
    assert Identity.of(tmp_path, base_sha256=spec.weights_sha256).identity == last.artifact_identity
    settings = next(path for path in tmp_path.glob("*config.json"))
    settings.write_bytes(settings.read_bytes() + b"\n")
    assert Identity.of(tmp_path, base_sha256=spec.weights_sha256).identity != last.artifact_identity


def test_the_canary_is_what_a_stock_library_says_on_the_plain_base(made):
    from peft import PeftModel

    storage, spec, _, folder = made
    canary = Canary.kept(folder)
    assert canary is not None
    assert canary.tells_apart("fp32")
    weights = storage.folder(spec.weights)
    stock: dict[str, Any] = {"base": load_model(weights, precision="fp32")}
    if methods.load(spec.method.name).artifact_kind == "model":
        stock["tuned"] = load_model(folder, precision="fp32")
    else:
        stock["tuned"] = PeftModel.from_pretrained(load_model(weights, precision="fp32"), folder).eval()
    ids = torch.tensor([canary.tokens])
    for name, model in stock.items():
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1]
        said = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0].tolist()
        assert distance(said, getattr(canary, name)) < 1e-4, name


def test_an_artifact_in_anothers_place_is_refused_and_changes_nothing(storage, told):
    spec = toy_spec(storage)
    key = f"{spec.run_key}/checkpoints/0001-00000003/adapter"
    storage.create(f"{key}/{IDENTITY}", b"another's\n")
    storage.create(f"{key}/adapter_model.safetensors", b"another's\n")
    last = run(spec, storage)
    assert isinstance(last, Failed)
    assert last.code == AlreadyExists.code
    assert {storage.read(one) for one in storage.list(key)} == {b"another's\n"}
    assert not any(event.type == "checkpoint_saved" for event in told(spec))


def test_a_checkpoint_of_before_is_gone_on_from(storage, told):
    spec = toy_spec(storage)
    assert run(spec, storage).type == "succeeded"
    folder = f"{spec.run_key}/checkpoints"
    storage.delete(f"{folder}/0001-00000009/manifest.json")
    manifest = json.loads(storage.read(f"{folder}/0001-00000006/manifest.json"))
    del manifest["artifact_identity"]
    storage.write(f"{folder}/0001-00000006/manifest.json", json.dumps(manifest).encode())
    assert run(spec, storage, attempt=2).type == "succeeded"
    assert told(spec, 2)[0].step == 6
