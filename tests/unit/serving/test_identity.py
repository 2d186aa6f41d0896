"""A replica answers with the artifact that was trained, or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.core.errors import LuthierError
from luthier.nets.identity import CANARY, IDENTITY, Identity
from luthier.serving.backends.base import AdapterUnreadable, Backend, backends
from luthier.serving.client import ReplicaClient
from luthier.serving.identity import check_identity, check_model
from luthier.serving.protocol import AdapterRef, Finish, GenerateRequest, Sampling, Turn
from luthier.serving.spec import ReplicaSpec
from luthier.storage import Storage, digest
from luthier.testing import toy_spec
from luthier.training.events import Succeeded
from luthier.training.run import run
from luthier.training.spec import PluginChoice
from tests.unit.serving.toys import toy_replica

WEIGHTS = "adapter_model.safetensors"
SMALL = PluginChoice(name="lora", options={"rank": 4})


class Trained:
    """A storage with the toy and what one run over it made."""

    def __init__(self, folder: Path, method: PluginChoice) -> None:
        self.folder = folder
        self.storage = Storage(folder.as_uri())
        self.spec = toy_spec(self.storage, method=method)
        last = run(self.spec, self.storage)
        assert isinstance(last, Succeeded), last
        self.key = last.artifact_key
        self.ref = AdapterRef(
            id="art-1", key=last.artifact_key, sha256=last.artifact_sha256, identity=last.artifact_identity
        )

    def changed(self, change: Callable[[Path], object], id: str, **fields: Any) -> AdapterRef:
        """A copy of the artifact that was changed, by a ref whose sha256 is right."""
        folder = self.folder / f"adapters/{id}"
        shutil.copytree(self.folder / self.key, folder)
        change(folder)
        told = {"id": id, "key": f"adapters/{id}", "sha256": digest(folder)}
        return self.ref.model_copy(update=told | fields)

    def disguised(self, change: Callable[[dict[str, torch.Tensor]], object], id: str) -> AdapterRef:
        """A copy with other tensors, under the identity that those have: only what the model says can give it away."""
        identity = ""

        def put(folder: Path) -> None:
            nonlocal identity
            tensors = load_file(folder / WEIGHTS)
            change(tensors)
            save_file(tensors, folder / WEIGHTS)
            made = Identity.of(folder, base_sha256=self.spec.weights_sha256)
            (folder / IDENTITY).write_text(made.model_dump_json())
            identity = made.identity

        ref = self.changed(put, id)
        return ref.model_copy(update={"identity": identity})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("storage"), SMALL)


async def ask(client: ReplicaClient, ref: AdapterRef | None) -> int:
    """How many tokens the answer has."""
    request = GenerateRequest(
        adapter=ref, messages=[Turn(role="user", content="ab")], sampling=Sampling(temperature=0, max_tokens=2)
    )
    parts = [part async for part in client.generate(request)]
    assert isinstance(parts[-1], Finish)
    return parts[-1].completion_tokens


async def refused(trained: Trained, ref: AdapterRef, said: str) -> None:
    """A replica refuses an adapter and answers with the true one afterwards."""
    async with toy_replica(trained.folder) as client:
        with pytest.raises(AdapterUnreadable, match=said):
            await ask(client, ref)
        assert (await client.health(timeout=5)).adapters == []
        assert await ask(client, trained.ref)
        assert (await client.health(timeout=5)).adapters == [trained.ref.id]


def rewritten(name: str, **fields: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | fields))

    return change


@pytest.fixture(autouse=True)
def _here(trained: Trained) -> None:
    """The replica of these tests serves models/toy, where the run's base lies too."""
    assert trained.spec.weights == "models/toy"
    shutil.rmtree(trained.folder / "adapters", ignore_errors=True)


async def test_what_was_trained_answers(trained: Trained) -> None:
    async with toy_replica(trained.folder) as client:
        assert await ask(client, trained.ref)


async def test_bytes_that_changed_after_they_were_published_are_refused(trained: Trained) -> None:
    ref = trained.changed(rewritten("adapter_config.json", revision="x"), "art-2")
    await refused(trained, ref, "not the ones it was published with .identity")
    gone = trained.changed(rewritten("adapter_config.json", revision="x"), "art-3", sha256=trained.ref.sha256)
    await refused(trained, gone, "not the ones it was published with")


async def test_an_identity_that_was_written_anew_is_not_the_published_one(trained: Trained) -> None:
    ref = trained.disguised(lambda tensors: tensors.popitem(), "art-2")
    ref = ref.model_copy(update={"identity": trained.ref.identity})
    await refused(trained, ref, "not the ones it was published with .identity")


async def test_an_adapter_of_another_base_is_refused(trained: Trained) -> None:
    await refused(trained, trained.changed(rewritten(IDENTITY, base_sha256="0" * 64), "art-2"), "other base weights")


@pytest.mark.parametrize("where", ["ref", "files"])
async def test_an_adapter_of_another_renderer_is_refused(trained: Trained, where: str) -> None:
    if where == "ref":
        ref = trained.ref.model_copy(update={"renderer_sha256": "0" * 64})
    else:
        ref = trained.changed(rewritten(IDENTITY, renderer_sha256="0" * 64), "art-2")
    await refused(trained, ref, "another renderer")


def first(tensors: dict[str, torch.Tensor]) -> str:
    return min(name for name in tensors if "lora_A" in name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop(first(tensors)), "missing: "),
        (lambda tensors: tensors.update(extra=torch.zeros(2)), "without a place: extra"),
        (lambda tensors: tensors.update({first(tensors): tensors[first(tensors)][:, 1:].contiguous()}), "has shape"),
        (lambda tensors: tensors[first(tensors)].view(-1)[:1].fill_(float("nan")), "not finite"),
    ],
    ids=["missing", "extra", "shape", "nan"],
)
async def test_tensors_that_do_not_fit_are_refused_under_a_right_identity(
    trained: Trained, change: Callable[[dict[str, torch.Tensor]], object], said: str
) -> None:
    await refused(trained, trained.disguised(change, "art-2"), said)


def zeroed(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if "lora_B" in name:
            tensor.zero_()


def turned(tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        if "lora_B" in name:
            tensor.neg_()


@pytest.mark.parametrize(
    ("change", "said"), [(zeroed, "answers as the base model does"), (turned, "nats a token from what was trained")]
)
async def test_an_adapter_that_answers_otherwise_than_it_was_trained_to_is_refused(
    trained: Trained, change: Callable[[dict[str, torch.Tensor]], object], said: str
) -> None:
    await refused(trained, trained.disguised(change, "art-2"), said)


async def test_an_id_with_other_bytes_is_refused_after_it_was_evicted_too(trained: Trained) -> None:
    other = trained.changed(lambda folder: (folder / CANARY).unlink(), "art-2")
    async with toy_replica(trained.folder) as client:  # it has room for one
        assert await ask(client, trained.ref)
        impostor = other.model_copy(update={"id": trained.ref.id})
        with pytest.raises(AdapterUnreadable, match="never reused"):
            await ask(client, impostor)
        assert await ask(client, other)
        assert (await client.health(timeout=5)).adapters == ["art-2"]
        with pytest.raises(AdapterUnreadable, match="never reused"):
            await ask(client, impostor)
        assert await ask(client, trained.ref)


async def test_an_adapter_of_before_identities_and_canaries_is_known_by_its_bytes(trained: Trained) -> None:
    def aged(folder: Path) -> None:
        (folder / IDENTITY).unlink()
        (folder / CANARY).unlink()

    ref = trained.changed(aged, "art-2", identity=None)
    async with toy_replica(trained.folder) as client:
        assert await ask(client, ref)
    await refused(trained, trained.changed(aged, "art-3"), "published with an identity, and its files have none")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("whole"), PluginChoice(name="full"))


def opened(trained: Trained, weights: str) -> Backend:
    from luthier.nets.loading import weights_sha256

    spec = ReplicaSpec(
        replica="rep-1", base_model="toy", weights=weights, precision="fp32", threads=1, adapters=1, listen="",
        weights_sha256=weights_sha256(trained.folder / weights), cache_bytes=2**22,
    )  # fmt: skip
    return backends.load("builtin").open(spec, trained.storage)


def test_a_whole_model_answers_as_it_was_trained_to_and_with_its_renderer(whole: Trained) -> None:
    folder = whole.folder / whole.key
    kept = Identity.kept(folder)
    assert kept is not None
    assert kept.renderer_sha256 is not None
    backend, fingerprint = opened(whole, whole.key), kept.renderer_sha256
    check_model(backend, folder, renderer_sha256=fingerprint, precision="fp32")
    with pytest.raises(AdapterUnreadable, match="another renderer"):
        check_model(backend, folder, renderer_sha256="0" * 64, precision="fp32")
    base = opened(whole, whole.spec.weights)
    with pytest.raises(LuthierError, match="as the base model does"):
        check_model(base, folder, renderer_sha256=fingerprint, precision="fp32")
    check_model(base, whole.folder / whole.spec.weights, renderer_sha256=fingerprint, precision="fp32")
    backend.close()
    base.close()


@pytest.mark.parametrize(
    ("here", "said"), [({"renderer_sha256": "0" * 64}, "another renderer"), ({"base_sha256": "0" * 64}, "other base")]
)
def test_a_prefix_is_held_to_its_base_and_its_renderer(tmp_path: Path, here: dict[str, str], said: str) -> None:
    prefix = Trained(tmp_path, PluginChoice(name="ptuning_v2"))
    kept = Identity.kept(tmp_path / prefix.key)
    assert kept is not None
    assert kept.renderer_sha256 is not None
    known = {"base_sha256": prefix.spec.weights_sha256, "renderer_sha256": kept.renderer_sha256}
    check_identity(tmp_path / prefix.key, prefix.ref, **known)
    with pytest.raises(AdapterUnreadable, match=said):
        check_identity(tmp_path / prefix.key, prefix.ref, **known | here)
