"""luthier train: a whole job from its spec, with no server, no database and no network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.text import Text

from luthier.cli.console import TrainingBar, literal, out
from luthier.cli.serve import Data, settings_with
from luthier.core import logs
from luthier.core.errors import InvalidParameter
from luthier.storage import Storage
from luthier.training import events
from luthier.training.events import claim_attempt
from luthier.training.spec import TrainingSpec


def train(
    spec: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The spec, as JSON.")],
    storage: Annotated[
        str | None, typer.Option(help="Storage that its keys lie in; absent: the data folder's.")
    ] = None,
    data: Data = None,
) -> None:
    """Run one training job in this process; a job that was interrupted goes on from its last checkpoint."""
    from luthier.training.program import execute

    settings = settings_with(data)
    logs.configure("warning")
    folder = settings.server.data
    opened = Storage(storage or settings.storage_url, cache=folder / "cache")
    job = _read(spec)
    with TrainingBar("training") as bar:
        code = execute(job, opened, claim_attempt(opened, job.run_key), lambda event: _show(bar, event))
    raise typer.Exit(code)


def _read(path: Path) -> TrainingSpec:
    """Every fault of a spec is told at once."""
    try:
        return TrainingSpec.model_validate_json(path.read_bytes())
    except ValidationError as wrong:
        faults = [(".".join(map(str, e["loc"])) or "spec", e["msg"]) for e in wrong.errors()]
        told = "".join(f"\n  {field}: {message}" for field, message in faults)
        raise InvalidParameter(str(path), f"{len(faults)} faults{told}") from wrong


def _show(bar: TrainingBar, event: events.RunEvent) -> None:
    match event:
        case events.Started():
            bar.note(
                f"{event.rows} rows, {len(event.dropped)} dropped, {event.trainable_parameters:,} trainable parameters"
            )
        case events.Progress():
            bar.step(event.step, event.total_steps, event.loss, event.tokens_per_second, event.seconds_left)
        case events.Evaluated():
            bar.note(f"step {event.step}: validation loss {event.loss:.4f}, token accuracy {event.token_accuracy:.3f}")
        case events.CheckpointSaved():
            bar.note(f"checkpoint at step {event.step}: {event.key}")
        case events.Succeeded():
            out.print(f"The adapter lies in the storage at {event.artifact_key}")
        case events.Failed():
            out.print(Text.assemble(("failed", "bold red"), literal(f" ({event.code}): {event.message}")))
        case events.Cancelled():
            out.print(f"stopped after step {event.step}; the checkpoints stay")
