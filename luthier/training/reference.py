"""What the model says of every row before the first step, kept with the run: an objective compares with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from luthier.core.errors import CheckpointUnreadable
from luthier.storage import ObjectNotFound, Storage
from luthier.training.data import Rows, micro_batches
from luthier.training.forward import Forward
from luthier.training.spec import TrainingSpec


def with_reference(
    storage: Storage,
    spec: TrainingSpec,
    name: str,
    rows: Rows,
    forward: Forward,
    check: Callable[[], None],
    *,
    is_resumed: bool,
) -> Rows:
    """The rows of the file `name` with what the model, as it starts, says of them.

    A run that goes on takes what was kept, for its model is another by now; raises CheckpointUnreadable where that is gone.
    `check` is called between micro-batches and may raise.
    """
    key = f"{spec.run_key}/reference/{name}.safetensors"
    found = _kept(storage, key) if is_resumed else _computed(rows, spec, forward, check)
    if found is None or len(found) != len(rows.rows):
        raise CheckpointUnreadable(
            "What the model said before the first step is not there any more.", hint="Start a new job."
        )
    if not is_resumed and forward.processes.is_first:
        _keep(storage, key, found)
    return replace(
        rows, rows=[replace(row, reference=tuple(said)) for row, said in zip(rows.rows, found.tolist(), strict=True)]
    )


def _computed(rows: Rows, spec: TrainingSpec, forward: Forward, check: Callable[[], None]) -> torch.Tensor:
    forward.model.eval()
    places = {id(row): place for place, row in enumerate(rows.rows)}
    found: dict[int, tuple[float, ...]] = {}
    processes = forward.processes
    groups = micro_batches(rows.rows, spec.micro_batch_tokens, shared=forward.shared, processes=processes.count)
    for batch, _ in processes.dealt(groups):
        check()
        found |= {places[id(row)]: one for row, one in zip(batch, forward.references(batch), strict=True)}
    everywhere = {place: one for part in processes.gathered(found) for place, one in part.items()}
    return torch.tensor([everywhere[place] for place in range(len(places))], dtype=torch.float32)


def _keep(storage: Storage, key: str, found: torch.Tensor) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "reference.safetensors"
        save_file({"reference": found}, path)
        storage.upload(path, key)
    storage.settle(key.rpartition("/")[0])  # checkpoints are worth nothing without it


def _kept(storage: Storage, key: str) -> torch.Tensor | None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "reference.safetensors"
        try:
            storage.download(key, path)
        except ObjectNotFound:
            return None
        try:
            return load_file(path)["reference"]
        except (SafetensorError, KeyError) as damaged:
            raise CheckpointUnreadable(
                "What the model said before the first step is damaged.", hint="Start a new job."
            ) from damaged
