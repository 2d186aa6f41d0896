"""Base models are brought in whole or not at all; names lead to what may be called, each project's own."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from sqlalchemy import select, update

from luthier.control.catalog import cards
from luthier.control.catalog.cards import EMBEDDED, OFFERED, ModelCard, bundled, installed
from luthier.control.catalog.installing import Installer
from luthier.control.catalog.service import Trained, artifact_id
from luthier.control.catalog.tables import ModelRow
from luthier.core import registry
from luthier.core.clock import FakeClock
from luthier.core.errors import (
    AlreadyExists,
    InvalidParameter,
    InvalidRequest,
    MethodNotAllowed,
    ModelNotDeployed,
    ModelNotFound,
)
from luthier.serving.protocol import AdapterRef
from luthier.storage import Storage
from luthier.training.methods.base import methods
from tests.unit.control.conftest import ADA, BOB, House


@pytest.fixture
def storage() -> Storage:
    return Storage("memory://")


@pytest.fixture
def installer(storage: Storage, tmp_path: Path) -> Installer:
    return Installer(storage, tmp_path / "scratch", "python-that-is-not-there", FakeClock())


@pytest.fixture
def folder(toy_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_folder, tmp_path / "toy"))


def test_a_folder_is_brought_in_with_a_card_and_nothing_that_is_not_needed(installer, storage, folder: Path) -> None:
    (folder / "README.md").write_text("not needed")
    (folder / "original").mkdir()
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    card = installer.add("toy", str(folder))
    assert installed(storage, "toy") == card
    assert (card.parameters, card.context_length, card.methods) == (26880, 512, OFFERED)
    kept = {key.removeprefix(f"{card.weights}/") for key in storage.list(card.weights)}
    assert {"model.safetensors", "tokenizer.json", "config.json", "chat_template.jinja"} <= kept
    assert not {name for name in kept if name.endswith((".md", ".bin"))}


def test_a_name_is_given_once_unless_it_is_replaced(installer: Installer, storage: Storage, folder: Path) -> None:
    first = installer.add("toy", str(folder))
    with pytest.raises(AlreadyExists, match="'toy'"):
        installer.add("toy", str(folder))
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    second = installer.add("toy", str(folder), replace=True)
    assert second.weights != first.weights
    assert storage.list(first.weights)  # tuned models still stand on it


def test_a_card_follows_how_conversations_are_written_now(tmp_path: Path, folder: Path) -> None:
    storage = Storage((tmp_path / "objects").as_uri())
    installer = Installer(storage, tmp_path / "scratch", "python-that-is-not-there", FakeClock())
    card = installer.add("toy", str(folder))
    older = card.model_copy(update={"renderer_sha256": "0" * 64})
    storage.write("models/toy/card.json", older.model_dump_json().encode())
    installer.refresh()
    assert installed(storage, "toy") == card
    storage.delete(f"{card.weights}/tokenizer.json")
    storage.write("models/toy/card.json", older.model_dump_json().encode())
    installer.refresh()  # its jobs will be refused with the reason
    assert installed(storage, "toy") == older


def test_a_card_of_an_older_version_offers_the_methods_there_are_now(tmp_path: Path, folder: Path) -> None:
    storage = Storage((tmp_path / "objects").as_uri())
    installer = Installer(storage, tmp_path / "scratch", "python-that-is-not-there", FakeClock())
    card = installer.add("toy", str(folder))
    for kept, found in ((["lora"], ["lora", "qlora", "full", "ptuning_v2"]), (["full"], ["full"])):
        older = card.model_copy(update={"methods": kept})
        storage.write("models/toy/card.json", older.model_dump_json(exclude={"revision"}).encode())
        installer.refresh()
        renewed = installed(storage, "toy")
        assert renewed is not None
        assert renewed.methods == found
        restricted = renewed.model_copy(update={"methods": ["lora"]})
        storage.write("models/toy/card.json", restricted.model_dump_json().encode())
        installer.refresh()  # what an operator chose since then stays
        assert installed(storage, "toy") == restricted


REFUSED = {
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "pickled weights only": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "no \\*.safetensors",
    ),
    "code of its own": (
        lambda folder: (folder / "config.json").write_text('{"auto_map": {"AutoModel": "evil.Model"}}'),
        "auto_map",
    ),
    "a config that is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "not JSON"),
    "no context length": (lambda folder: (folder / "config.json").write_text("{}"), "max_position_embeddings"),
    "no template": (lambda folder: (folder / "chat_template.jinja").unlink(), "No renderer"),
    "weights that are none": (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "safetensors"),
    "a tokenizer that is none": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_that_cannot_be_served_safely_is_refused_and_nothing_is_kept(
    installer: Installer, storage: Storage, folder: Path, case: str
) -> None:
    spoil, said = REFUSED[case]
    spoil(folder)
    with pytest.raises(InvalidRequest, match=said):
        installer.add("toy", str(folder))
    assert storage.list("") == []


@pytest.mark.parametrize("name", ["", "Toy", "a/b", "../up", "toy\n", "-toy", "x" * 64, "toy model"])
def test_a_name_that_is_no_name_is_refused(installer: Installer, folder: Path, name: str) -> None:
    with pytest.raises(InvalidParameter, match="name"):
        installer.add(name, str(folder))


def test_a_place_that_is_neither_folder_nor_hub_id_is_refused(installer: Installer) -> None:
    with pytest.raises(InvalidParameter, match="neither a folder on this machine nor a hub id"):
        installer.add("toy", "/no/such/folder")


def test_the_card_that_ships_with_us_is_whole() -> None:
    facts, source = bundled(EMBEDDED)
    assert facts.licence == "Apache-2.0"
    assert len(source.sha256) == 64
    with pytest.raises(KeyError):
        bundled("nothing")


async def publish(
    house: House, name: str, kind: str = "fine_tuned", project: str = ADA.project, method: str = "lora"
) -> AdapterRef:
    artifact = AdapterRef(id=artifact_id(), key=f"runs/{name}", sha256="s", identity="i")
    trained = Trained(job="ftjob-1", method=method, base_model="toy", weights="models/toy/w", weights_sha256="w")
    async with house.parts.db.write() as session:
        house.parts.services.catalog.publish(session, project, name, kind, trained, 3, artifact)
    return artifact


async def test_a_name_leads_to_the_base_model_or_to_an_adapter_on_it(house: House) -> None:
    catalog = house.parts.services.catalog
    artifact = await publish(house, "toy-ada")
    base, tuned = await catalog.resolve(ADA, "toy"), await catalog.resolve(ADA, "toy-ada")
    assert (base.base_model, base.adapter) == ("toy", None)
    assert (tuned.base_model, tuned.weights_sha256, tuned.adapter) == ("toy", "w", artifact)
    assert (await catalog.get(ADA, "toy-ada")).owned_by == ADA.project


@pytest.mark.parametrize(
    ("method", "kind", "answers"),
    [
        ("lora", "adapter", True),
        ("qlora", "adapter", True),
        ("full", "model", False),
        ("ptuning_v2", "adapter", False),
        ("gone", None, False),
    ],
)
async def test_only_what_a_shared_replica_can_use_answers_at_once(
    house: House, method: str, kind: str | None, answers: bool
) -> None:
    catalog = house.parts.services.catalog
    for place, name in (("fine_tuned", "toy-ada"), ("checkpoint", "toy-ada-step-3")):
        await publish(house, name, kind=place, method="lora" if kind is None else method)
        if kind is None:  # a plugin that is not installed any more
            async with house.parts.db.write() as session:
                await session.execute(update(ModelRow).values(method=method))
        listed = await catalog.get(ADA, name)
        assert (listed.kind, listed.method, listed.is_callable) == (place, method, answers)
        if answers:
            assert (await catalog.resolve(ADA, name)).adapter is not None
            continue
        with pytest.raises(ModelNotDeployed, match=f"was made by {method}; it must be deployed") as refused:
            await catalog.resolve(ADA, name)
        assert refused.value.param == "model"
    async with house.parts.db.read() as session:
        kinds = set(await session.scalars(select(ModelRow.artifact_kind)))
    assert kinds == {kind or "adapter"}
    assert [model.name for model in await catalog.list(ADA)] == ["toy", "toy-ada"]


async def test_a_tuned_model_that_is_called_again_and_again_reads_no_card_and_lists_no_plugins(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = house.parts.services.catalog
    await publish(house, "toy-ada")
    catalog._cards.seconds = 60.0
    first = await catalog.resolve(ADA, "toy-ada")

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("it was looked for again")

    monkeypatch.setattr(cards, "installed", fail)
    monkeypatch.setattr(registry, "entry_points", fail)
    monkeypatch.setattr(methods, "names", fail)
    monkeypatch.setattr(methods, "_files", fail)
    assert [await catalog.resolve(ADA, "toy-ada") for _ in range(2)] == [first, first]


async def test_a_model_that_was_asked_for_too_early_is_there_a_second_after_it_was_added(house: House) -> None:
    catalog = house.parts.services.catalog
    assert catalog._cards.seconds <= 1
    catalog._cards.seconds = 0.05
    with pytest.raises(ModelNotFound):
        await catalog.resolve(ADA, "tiny")
    house.parts.installer.add("tiny", str(house.parts.storage.folder((await _card(house)).weights)))
    await asyncio.sleep(0.06)
    assert (await catalog.resolve(ADA, "tiny")).base_model == "tiny"


async def test_a_list_shows_base_models_and_ones_own_tuned_models_but_no_checkpoints(house: House) -> None:
    await publish(house, "toy-ada")
    await publish(house, "toy-ada-step-3", kind="checkpoint")
    await publish(house, "toy-bob", project=BOB.project)
    assert [model.name for model in await house.parts.services.catalog.list(ADA)] == ["toy", "toy-ada"]
    assert (await house.parts.services.catalog.resolve(ADA, "toy-ada-step-3")).adapter is not None


async def test_numbered_pages_of_models_go_on_from_base_models_to_ones_own(house: House) -> None:
    house.parts.installer.add("tiny", str(house.parts.storage.folder((await _card(house)).weights)))
    tuned = [f"toy-{number}" for number in range(4)]
    for name in tuned:
        await publish(house, name)
    await publish(house, "toy-bob", project=BOB.project)
    catalog = house.parts.services.catalog
    everything = [model.name for model in await catalog.list(ADA)]
    assert everything == ["tiny", "toy", *tuned]
    for size in (1, 3, 4, 10):
        pages = [await catalog.numbered(ADA, number, size) for number in range(1, 8)]
        assert [model.name for page in pages for model in page.items] == everything
        assert {page.total for page in pages} == {6}


async def _card(house: House) -> ModelCard:
    return await house.parts.services.catalog.trainable("toy", "lora")


async def test_another_projects_model_is_not_there(house: House) -> None:
    catalog = house.parts.services.catalog
    await publish(house, "toy-bob", project=BOB.project)
    for asked in (catalog.resolve(ADA, "toy-bob"), catalog.get(ADA, "toy-bob"), catalog.delete(ADA, "toy-bob")):
        with pytest.raises(ModelNotFound, match="no model 'toy-bob'") as refused:
            await asked
        assert (refused.value.param, refused.value.hint) == ("model", "Base models: toy.")
    assert (await catalog.get(BOB, "toy-bob")).name == "toy-bob"


async def test_a_deleted_model_answers_no_more_and_base_models_cannot_be_deleted(house: House) -> None:
    catalog = house.parts.services.catalog
    await publish(house, "toy-ada")
    await catalog.delete(ADA, "toy-ada")
    for asked in (catalog.resolve(ADA, "toy-ada"), catalog.get(ADA, "toy-ada"), catalog.delete(ADA, "toy-ada")):
        with pytest.raises(ModelNotFound):
            await asked
    with pytest.raises(InvalidRequest, match="base model"):
        await catalog.delete(ADA, "toy")


@pytest.mark.parametrize("name", ["", "/", "..", "toy/../toy", "a//b", "toy/", "\n", "x" * 5000, "谢谢", "toy\x7f"])
async def test_a_name_that_nothing_can_have_is_a_model_that_is_not_there(house: House, name: str) -> None:
    with pytest.raises(ModelNotFound):
        await house.parts.services.catalog.resolve(ADA, name)


async def test_only_a_base_model_with_that_method_can_be_trained(house: House) -> None:
    catalog = house.parts.services.catalog
    await publish(house, "toy-ada")
    for method in ("lora", "qlora", "full", "ptuning_v2"):
        assert (await catalog.trainable("toy", method)).name == "toy"
    storage = house.parts.storage
    card = json.loads(storage.read("models/toy/card.json")) | {"methods": ["lora", "full"]}
    storage.write("models/toy/card.json", json.dumps(card).encode())
    with pytest.raises(MethodNotAllowed, match="does not offer the method 'qlora'; it offers lora, full"):
        await catalog.trainable("toy", "qlora")
    with pytest.raises(ModelNotFound):
        await catalog.trainable("toy-ada", "lora")


def test_a_card_says_what_was_read_from_the_files(installer: Installer, storage: Storage, folder: Path) -> None:
    card = json.loads(installer.add("toy", str(folder)).model_dump_json())
    assert len(card["weights_sha256"]) == len(card["renderer_sha256"]) == 64
    assert card["licence"] is None
