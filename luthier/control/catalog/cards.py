"""Cards: what is known of a base model. One file of `cards/` for each that Luthier can bring by itself.

An installed model's card is `models/NAME/card.json` in the storage, beside its weights; a model is installed when it has one.
"""

from __future__ import annotations

import re
import tomllib
from datetime import datetime
from importlib.resources import files

from pydantic import BaseModel, ConfigDict, Field

from luthier.storage import ObjectNotFound, Storage

EMBEDDED = "smollm2-135m-instruct"
"""The model that needs no hub: it comes from a Python package."""

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
"""Names that a base model may have."""


OFFERED = ["lora", "qlora", "full", "ptuning_v2"]
"""Methods of training that a model offers where nobody says otherwise."""


REVISION = 1
"""Of cards that are written now. 0: before there was more than one method; what such a card offers was nobody's choice."""


class Facts(BaseModel):
    """What a person states of a model; the rest is read from its files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    owned_by: str = "local"
    licence: str | None = Field(default=None, description="SPDX name; None where nobody said.")
    methods: list[str] = OFFERED
    kinds: list[str] = ["chat"]


class PackageSource(BaseModel):
    """A GGUF file in a Python package, by the package's name and version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    package: str
    version: str
    file: str
    sha256: str


class ModelCard(Facts):
    """A base model that is installed."""

    name: str
    parameters: int
    context_length: int = Field(description="Tokens that prompt and answer may have together.")
    weights: str = Field(
        description="Storage key of the folder with weights and tokenizer; never changed once written."
    )
    weights_sha256: str
    renderer_sha256: str
    installed_at: datetime
    revision: int = Field(
        default=0, description="Which changes of ours to older cards this one has had; see `REVISION`."
    )


def bundled(name: str) -> tuple[Facts, PackageSource]:
    """The card that ships with Luthier under that name. Raises KeyError."""
    path = files("luthier.control.catalog").joinpath("cards", f"{name}.toml")
    if not path.is_file():
        raise KeyError(name)
    card = tomllib.loads(path.read_text())
    source = PackageSource.model_validate(card.pop("source"))
    return Facts.model_validate(card), source


def installed(storage: Storage, name: str) -> ModelCard | None:
    """The card of that name; None for every other text, also one that no storage key can hold."""
    if not NAME.fullmatch(name):
        return None
    try:
        return ModelCard.model_validate_json(storage.read(card_key(name)))
    except ObjectNotFound:
        return None


def all_installed(storage: Storage) -> list[ModelCard]:
    keys = [key for key in storage.list("models") if key.endswith("/card.json")]
    return [ModelCard.model_validate_json(storage.read(key)) for key in keys]


def card_key(name: str) -> str:
    return f"models/{name}/card.json"
