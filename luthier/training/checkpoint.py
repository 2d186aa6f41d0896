"""Checkpoints: saved whole or not at all, resumed bit for bit, their artifact servable as it lies.

    runs/<job>/checkpoints/<attempt>-<step>/
        adapter/                  the artifact, in its method's own format
          identity.json           what it is known by; written first and never replaced
          canary.json             what it and its base say of a fixed conversation, where that can be told
        optimizer.safetensors     both moments and the count of every parameter
        state.json                where the run was, and of which spec, data and renderer
        manifest.json             sha256 of every object above; written last, so without it there is no checkpoint

Nothing is pickled. Each attempt has folders of its own, so an older one that is still alive overwrites nothing; what is
stored under a key stays what it is.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from luthier.core import logs
from luthier.core.errors import AlreadyExists, CheckpointUnreadable, LuthierError, Unavailable
from luthier.nets.identity import CANARY, IDENTITY, Identity
from luthier.storage import Storage, digest
from luthier.training.canary import CanaryRecorder
from luthier.training.methods.base import Method
from luthier.training.optim import Optimizer
from luthier.training.processes import Processes
from luthier.training.spec import TrainingSpec, Value
from luthier.training.watch import Standing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ARTIFACT = "adapter"
_FOLDER = re.compile(r"(\d{4,})-(\d{8,})")
_log = logs.get("training")


class Metrics(Value):
    """What a checkpoint is worth: the last step's means, and the validation's where one ended at this step."""

    train_loss: float
    train_token_accuracy: float
    valid_loss: float | None = None
    valid_token_accuracy: float | None = None


class State(Value):
    """Where the run was. Order of rows and random numbers follow from the spec and the step, so they need no state."""

    version: int = 1
    step: int
    is_settled: bool = True
    """Whether what follows a step was done: its evaluation, and the checkpoint that is due then. Not where a pause came first."""
    trained_tokens: int
    metrics: Metrics
    standing: Standing = Standing()
    loss_scale: dict[str, float] = Field(default_factory=dict)
    """Of a run in fp16: torch's own state of it."""
    spec_sha256: str
    data_sha256: str
    renderer_sha256: str


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint in the storage."""

    key: str
    attempt: int
    artifact_sha256: str
    state: State
    artifact_identity: str | None = None
    """None for one that was saved before artifacts had identities."""

    @property
    def artifact_key(self) -> str:
        return f"{self.key}/{ARTIFACT}"


class Checkpoints:
    """The checkpoints of one job, as one attempt at it sees them."""

    def __init__(
        self,
        storage: Storage,
        spec: TrainingSpec,
        attempt: int,
        method: Method,
        processes: Processes | None = None,
        *,
        renderer_sha256: str,
        canary: CanaryRecorder | None = None,
    ) -> None:
        """Without `canary` artifacts are saved without one."""
        self._storage = storage
        self._spec = spec
        self._attempt = attempt
        self._method = method
        self._processes = processes or Processes()
        self._renderer_sha256 = renderer_sha256
        self._canary = canary
        self.damaged: list[str] = []
        """Checkpoints that `resume` passed over."""

    def save(
        self,
        model: PreTrainedModel,
        optimizer: Optimizer,
        *,
        step: int,
        trained_tokens: int,
        metrics: Metrics,
        standing: Standing,
        is_settled: bool = True,
    ) -> Checkpoint:
        """Write a checkpoint; it exists when this returns, and not before. The model is in evaluation mode afterwards.

        Every process of the run calls this; the first one writes. Raises AlreadyExists where another artifact lies in its
        place, of which nothing was changed then.
        """
        key = f"{self._spec.run_key}/checkpoints/{self._attempt:04d}-{step:08d}"
        state = State(
            step=step,
            is_settled=is_settled,
            trained_tokens=trained_tokens,
            metrics=metrics,
            standing=standing,
            loss_scale=optimizer.loss_scale(),
            spec_sha256=_sha256_of(self._spec),
            data_sha256=self._spec.training.sha256,
            renderer_sha256=self._renderer_sha256,
        )
        if not (self._processes.is_first or self._processes.is_sharded):
            return Checkpoint(key, self._attempt, "", state)
        numbers = self._processes.collected(self._method.numbers(model))
        moments = self._processes.collected(optimizer.tensors())
        canary = self._canary.record(model, self._processes) if self._canary is not None else None
        if not self._processes.is_first:
            return Checkpoint(key, self._attempt, "", state)
        with TemporaryDirectory() as name:
            folder = Path(name)
            (folder / ARTIFACT).mkdir()
            self._method.write(model, numbers, folder / ARTIFACT, base_model=self._spec.base_model)
            identity = self._identify(folder / ARTIFACT, f"{key}/{ARTIFACT}")
            if canary is not None:
                (folder / ARTIFACT / CANARY).write_text(canary.model_dump_json() + "\n")
            save_file(moments, folder / "optimizer.safetensors")
            (folder / "state.json").write_text(state.model_dump_json(indent=2) + "\n")
            files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
            objects = {part: self._storage.upload(path, f"{key}/{part}").sha256 for part, path in sorted(files.items())}
            artifact_sha256 = digest(folder / ARTIFACT)
        manifest = {
            "version": 1,
            "artifact_sha256": artifact_sha256,
            "artifact_identity": identity,
            "objects": objects,
        }
        self._storage.settle(key)
        self._storage.write(f"{key}/manifest.json", json.dumps(manifest, indent=2).encode() + b"\n")
        self._storage.settle(key)
        return Checkpoint(key, self._attempt, artifact_sha256, state, identity)

    def resume(self, model: nn.Module) -> tuple[Checkpoint, dict[str, Tensor]] | None:
        """Put the newest complete checkpoint of this or an older attempt into the model; None: there is none.

        Gives it with the optimizer's tensors, for `Optimizer.restore`.

        One that is damaged is passed over for the one before, and named in `damaged`. Raises CheckpointUnreadable when a
        whole one does not belong to this spec.
        """
        for key, attempt in self._newest_first():
            with self._opened(key) as opened:
                if opened is None:
                    self.damaged.append(key)
                    continue
                folder, manifest, state = opened
                self._check(key, state)
                self._method.restore(model, folder / ARTIFACT)
                moments = load_file(folder / "optimizer.safetensors")
                return _described(key, attempt, manifest, state), moments
        return None

    def surplus(self, saved: Sequence[Checkpoint]) -> list[Checkpoint]:
        """Those of `saved` that need not stay: all but the best and the last, as the spec's `keep_checkpoints` says."""
        if self._spec.keep_checkpoints is None or not self._processes.is_first:
            return []

        def rank(one: Checkpoint) -> tuple[float, int]:
            loss, step = one.state.metrics.valid_loss, one.state.step
            return (math.inf, -step) if loss is None else (loss, step)  # of equal losses the first is the best

        kept = {one.key for one in sorted(saved, key=rank)[: self._spec.keep_checkpoints]} | {saved[-1].key}
        return [one for one in saved if one.key not in kept]

    def delete(self, gone: Sequence[Checkpoint]) -> None:
        """Delete checkpoints. The manifest goes first, so that what is left of a deletion that was cut off is none."""
        for one in gone:
            self._storage.delete(f"{one.key}/manifest.json")
            self._storage.delete(one.key)

    def sweep(self) -> None:
        """Delete what older attempts left unfinished: folders without a manifest."""
        root = f"{self._spec.run_key}/checkpoints"
        folders: dict[str, bool] = {}
        for key in self._storage.list(root):
            folder, _, part = key.removeprefix(f"{root}/").partition("/")
            folders[folder] = folders.get(folder, False) or part == "manifest.json"
        for folder, is_complete in folders.items():
            named = _FOLDER.fullmatch(folder)
            if named and not is_complete and int(named[1]) < self._attempt:
                self._storage.delete(f"{root}/{folder}")

    def all(self) -> list[Checkpoint]:
        """The newest complete checkpoint of every step, in their order; one whose description is damaged is left out."""
        found: dict[int, Checkpoint] = {}
        for key, attempt in reversed(self._newest_first()):
            try:
                manifest = json.loads(self._storage.read(f"{key}/manifest.json"))
                state = State.model_validate_json(self._storage.read(f"{key}/state.json"))
                found[state.step] = _described(key, attempt, manifest, state)
            except Unavailable:
                raise
            except (LuthierError, ValueError, KeyError, TypeError) as damage:
                _log.warning("checkpoint passed over", key=key, why=str(damage))
        return list(found.values())

    def at_step(self, step: int) -> Checkpoint | None:
        """The newest complete checkpoint of a step; None where there is none, or it is damaged."""
        for key, attempt in self._newest_first():
            if key.endswith(f"-{step:08d}"):
                with self._opened(key) as opened:
                    if opened is not None:
                        _, manifest, state = opened
                        return _described(key, attempt, manifest, state)
        return None

    def _newest_first(self) -> list[tuple[str, int]]:
        """Folders with a manifest and their attempts, by step, then attempt."""
        root = f"{self._spec.run_key}/checkpoints"
        found: list[tuple[int, int, str]] = []
        for key in self._storage.list(root):
            folder = key.removeprefix(f"{root}/").removesuffix("/manifest.json")
            if key.endswith("/manifest.json") and (named := _FOLDER.fullmatch(folder)):
                found.append((int(named[2]), int(named[1]), f"{root}/{folder}"))
        return [(key, attempt) for _, attempt, key in sorted(found, reverse=True) if attempt <= self._attempt]

    @contextmanager
    def _opened(self, key: str) -> Iterator[tuple[Path, dict[str, Any], State] | None]:
        """A verified copy on this machine, its manifest and the state; None when the checkpoint is damaged."""
        with TemporaryDirectory() as name:
            folder = Path(name)
            try:
                manifest = json.loads(self._storage.read(f"{key}/manifest.json"))
                for part, sha256 in manifest["objects"].items():
                    self._storage.download(f"{key}/{part}", folder / part)
                    with (folder / part).open("rb") as file:
                        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                            raise CheckpointUnreadable(f"{part} is damaged.")
                state = State.model_validate_json((folder / "state.json").read_bytes())
                _described(key, 0, manifest, state)
                opened = folder, manifest, state
            except Unavailable:
                raise  # a storage that does not answer says nothing about the checkpoint
            except (LuthierError, ValidationError, ValueError, KeyError, TypeError, AttributeError) as damage:
                _log.warning("checkpoint passed over", key=key, why=str(damage))
                opened = None
            yield opened

    def _identify(self, folder: Path, key: str) -> str:
        """Write what an artifact is known by beside its files, and at once into the storage: from now on the key is its own.

        Raises AlreadyExists when the key is another artifact's.
        """
        known = Identity.of(folder, base_sha256=self._spec.weights_sha256, renderer_sha256=self._renderer_sha256)
        data = known.model_dump_json(indent=2).encode() + b"\n"
        try:
            self._storage.create(f"{key}/{IDENTITY}", data)
        except AlreadyExists:
            if self._storage.read(f"{key}/{IDENTITY}") != data:
                raise
        (folder / IDENTITY).write_bytes(data)
        return known.identity

    def _check(self, key: str, state: State) -> None:
        if (state.spec_sha256, state.renderer_sha256) != (_sha256_of(self._spec), self._renderer_sha256):
            raise CheckpointUnreadable(
                f"The checkpoint {key} was made by another spec or renderer than this job's.",
                hint="A job keeps its spec: start a new job for a new one.",
            )


def _described(key: str, attempt: int, manifest: dict[str, Any], state: State) -> Checkpoint:
    """Raises KeyError or TypeError for a manifest that is damaged."""
    return Checkpoint(key, attempt, str(manifest["artifact_sha256"]), state, manifest.get("artifact_identity"))


def _sha256_of(spec: TrainingSpec) -> str:
    """Fields at their defaults are left out, so that a field added later does not orphan running jobs."""
    return hashlib.sha256(spec.model_dump_json(exclude_defaults=True).encode()).hexdigest()
