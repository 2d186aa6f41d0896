"""Work on a stored file: checking, counting, repairing, splitting, showing a row. What goes in and out is JSON."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from luthier.chat.tokenizer import TOKENIZER_FILES
from luthier.control.datasets.archives import suffix_of
from luthier.control.datasets.counting import count_file
from luthier.control.datasets.inspection import inspect
from luthier.control.datasets.lengths import summed
from luthier.control.datasets.pictures import Pins
from luthier.control.datasets.preview import preview
from luthier.control.datasets.repairing import repair
from luthier.control.datasets.transforms.split import SplitOptions, split
from luthier.records.source import Source, stored
from luthier.storage import Storage


class Task(BaseModel):
    """A task on one file; `options` are those of its kind."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["inspect", "count", "repair", "split", "preview"]
    key: str
    size: int
    options: dict[str, Any] = Field(default_factory=dict)
    processes: int = 1


def perform(task: Task, storage: Storage) -> dict[str, Any]:
    """Do a task and return what it found. Raises LuthierErrors that the caller is to be told."""
    source = stored(storage, task.key, task.size)
    return _KINDS[task.kind](task, source, storage)


def _inspect(task: Task, source: Source, storage: Storage) -> dict[str, Any]:
    """Options: `category`, `image_hosts`, and `pins`, the folder of the images that are fetched."""
    options = dict(task.options)
    if (prefix := options.pop("pins", None)) is not None:
        options["pins"] = Pins(storage, prefix)
    return inspect(source, processes=task.processes, **options).model_dump(mode="json")


def _count(task: Task, source: Source, storage: Storage) -> dict[str, Any]:
    """Options: `format`, `weights` (the model's folder), `turn_weights`, `result` (where the lengths are written)."""
    folder = storage.folder(task.options["weights"], only=TOKENIZER_FILES)
    counted = count_file(
        source, task.options["format"], folder, processes=task.processes, turn_weights=task.options["turn_weights"]
    )
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "lengths"
        with path.open("wb") as out:
            summary = summed(counted, out)
        storage.upload(path, task.options["result"])
    return asdict(summary)


def _preview(task: Task, source: Source, storage: Storage) -> dict[str, Any]:
    """Options: those of `preview`, and `weights`, the model's folder."""
    options = dict(task.options)
    folder = storage.folder(options.pop("weights"), only=TOKENIZER_FILES)
    return preview(source, options.pop("format"), options.pop("row"), folder, **options).model_dump(mode="json")


def _repair(task: Task, source: Source, storage: Storage) -> dict[str, Any]:
    """Options: `result`, where the repaired file is written. Told with it: the `suffix` that its name must have."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "repaired"
        with path.open("wb") as out:
            changes = repair(source, out)
        return {
            "changes": {**vars(changes), "counts": dict(changes.counts)},
            "file": asdict(storage.upload(path, task.options["result"])),
            "suffix": suffix_of(source),
        }


def _split(task: Task, source: Source, storage: Storage) -> dict[str, Any]:
    """Options: those of the split as `split`, and `training` and `validation`, where the two files are written.

    Told with them: the `suffix` that their names must have.
    """
    options = SplitOptions.model_validate(task.options["split"])
    with tempfile.TemporaryDirectory() as scratch:
        paths = {name: Path(scratch) / name for name in ("training", "validation")}
        with paths["training"].open("wb") as training, paths["validation"].open("wb") as validation:
            division = split(source, options, training, validation)
        files = {name: asdict(storage.upload(path, task.options[name])) for name, path in paths.items()}
    return {"division": division, "suffix": suffix_of(source), **files}


_KINDS = {"inspect": _inspect, "count": _count, "repair": _repair, "split": _split, "preview": _preview}
