"""What the model says of every row before the first step, kept with the run: an objective compares with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from luthier.core.errors import CheckpointUnreadable
from luthier.storage import ObjectNotFound, Storage
from luthier.training.data import Rows, micro_batches, packed
from luthier.training.objectives.base import Objective
from luthier.training.spec import TrainingSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def with_reference(
    storage: Storage,
    spec: TrainingSpec,
    name: str,
    rows: Rows,
    objective: Objective,
    model: PreTrainedModel,
    check: Callable[[], None],
    *,
    is_resumed: bool,
) -> Rows:
    """The rows of the file `name` with what the model, as it starts, says of them.

    A run that goes on takes what was kept, for its model is another by now; raises CheckpointUnreadable where that is gone.
    `check` is called between micro-batches and may raise.
    """
    key = f"{spec.run_key}/reference/{name}.safetensors"
    found = _kept(storage, key) if is_resumed else _computed(rows, objective, model, spec, check)
    if found is None or len(found) != len(rows.rows):
        raise CheckpointUnreadable(
            "What the model said before the first step is not there any more.", hint="Start a new job."
        )
    if not is_resumed:
        _keep(storage, key, found)
    return replace(
        rows, rows=[replace(row, reference=tuple(said)) for row, said in zip(rows.rows, found.tolist(), strict=True)]
    )


@torch.no_grad()
def _computed(
    rows: Rows, objective: Objective, model: PreTrainedModel, spec: TrainingSpec, check: Callable[[], None]
) -> torch.Tensor:
    model.eval()
    places = {id(row): place for place, row in enumerate(rows.rows)}
    found: list[tuple[float, ...]] = [()] * len(rows.rows)
    for batch in micro_batches(rows.rows, spec.micro_batch_tokens):
        check()
        said = objective.references(model, packed(batch, model.device), batch)
        for row, one in zip(batch, said, strict=True):
            found[places[id(row)]] = one
    return torch.tensor(found, dtype=torch.float32)


def _keep(storage: Storage, key: str, found: torch.Tensor) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "reference.safetensors"
        save_file({"reference": found}, path)
        storage.upload(path, key)


def _kept(storage: Storage, key: str) -> torch.Tensor | None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "reference.safetensors"
        try:
            storage.download(key, path)
        except ObjectNotFound:
            return None
        return load_file(path)["reference"]
