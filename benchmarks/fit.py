"""`luthier train --plan` beside what really happens: peak memory and seconds a step, predicted and measured.

    python benchmarks/fit.py
    python benchmarks/fit.py --methods lora --budgets 1024 --checkpointing off --steps 4

The embedded model on rows of the demo. For each setting the job is planned first; then it runs for a few steps in a fresh
process, which tells its peak (resident set; on a GPU what torch allocated) and how long its steps took, the first apart. Run
it on a quiet machine: both are measured, and both are disturbed by what else goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import mean

from luthier.control.catalog.cards import ModelCard
from luthier.control.catalog.installing import Installer
from luthier.core.clock import SystemClock
from luthier.core.settings import Settings
from luthier.demo import scoring
from luthier.storage import Storage
from luthier.training import defaults
from luthier.training.events import Progress, RunEvent
from luthier.training.fit import forecast
from luthier.training.spec import DataFile, PluginChoice, TrainingSpec

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=ROOT / ".luthier", help="data folder that has the model, or gets it"
    )
    parser.add_argument("--methods", nargs="+", default=["lora", "full"])
    parser.add_argument("--checkpointing", nargs="+", choices=["off", "on"], default=["off", "on"])
    parser.add_argument("--budgets", nargs="+", type=int, default=[512, 2048], help="tokens of a micro-batch")
    parser.add_argument("--batch-size", type=int, default=16, help="rows of a step")
    parser.add_argument("--steps", type=int, default=6, help="steps of the real run, at least 2")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)  # what a fresh process is told to do
    asked = parser.parse_args()
    if asked.run is not None:
        print(json.dumps(played(asked.run)))
        return
    data = asked.data.absolute()
    installer = Installer(Storage((data / "objects").as_uri()), data / "scratch", sys.executable, SystemClock())
    card = installer.embedded()
    print(f"{card.name}, {asked.steps} steps of {asked.batch_size} rows; {machine()}\n")
    print(
        "| method | checkpointing | tokens | GiB planned | measured | error | s a step planned | measured | error | planning |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for method, checkpointing, budget in itertools.product(asked.methods, asked.checkpointing, asked.budgets):
        with tempfile.TemporaryDirectory(dir=data) as folder:
            line = compared(Path(folder), installer.storage, card, asked, method, checkpointing, budget)
        print("| " + " | ".join(line) + " |", flush=True)


def compared(
    folder: Path,
    models: Storage,
    card: ModelCard,
    asked: argparse.Namespace,
    method: str,
    checkpointing: str,
    budget: int,
) -> Iterator[str]:
    """One line of the table."""
    storage = Storage(folder.as_uri())
    (folder / card.weights).parent.mkdir(parents=True)
    (folder / card.weights).symlink_to(models.folder(card.weights).resolve())
    spec = spec_of(storage, card, asked, method, checkpointing, budget)
    began = time.monotonic()
    planned = forecast(spec, storage, scratch=folder / "scratch")
    planning = time.monotonic() - began
    assert planned.as_written is not None, "the longest row alone does not fit into this machine's memory"
    (folder / "spec.json").write_text(spec.model_dump_json())
    done = subprocess.run(
        [sys.executable, __file__, "--run", str(folder / "spec.json")], stdout=subprocess.PIPE, text=True, check=True
    )
    real = json.loads(done.stdout.strip().splitlines()[-1])
    peak, seconds = planned.as_written.peak_bytes, planned.as_written.seconds_per_step
    yield from (method, checkpointing, f"{budget:,}")
    yield from (gigabytes(peak), gigabytes(real["peak_bytes"]), error(peak, real["peak_bytes"]))
    yield from (f"{seconds:.2f}", f"{real['seconds_per_step']:.2f}", error(seconds, real["seconds_per_step"]))
    yield f"{planning:.0f} s"


def spec_of(
    storage: Storage, card: ModelCard, asked: argparse.Namespace, method: str, checkpointing: str, budget: int
) -> TrainingSpec:
    def stored(name: str, rows: int) -> DataFile:
        lines = scoring.data(name).read_bytes().splitlines(keepends=True)
        there = storage.write(f"files/{name}", b"".join(lines[:rows]))
        return DataFile(key=there.key, sha256=there.sha256)

    rows = asked.steps * asked.batch_size
    numbers = defaults.resolve(
        parameters=card.parameters,
        context_length=card.context_length,
        rows=rows,
        cores=Settings.read().cores,
        method=method,
        epochs=1,
        batch_size=asked.batch_size,
        seed=1,
    )
    fields = {
        "job": "ftjob-fit",
        "base_model": card.name,
        "weights": card.weights,
        "weights_sha256": card.weights_sha256,
        "training": stored("train.jsonl", rows),
        "validation": stored("validation.jsonl", 32),
        "method": PluginChoice(name=method),
        "gradient_checkpointing": checkpointing == "on",
        **numbers.model_dump(),
        "micro_batch_tokens": budget,
    }
    return TrainingSpec.model_validate(fields)


def played(path: Path) -> dict[str, float]:
    """Run the job of a spec in this process, and say what it took."""
    from luthier.training.program import execute

    steps: list[float] = []
    last = time.monotonic()

    def take(event: RunEvent) -> None:
        nonlocal last
        now = time.monotonic()
        if isinstance(event, Progress):
            steps.append(now - last)
        last = now

    code = execute(TrainingSpec.model_validate_json(path.read_bytes()), Storage(path.parent.as_uri()), 1, take)
    assert code == 0, "the run failed"
    return {"peak_bytes": peak_bytes(), "seconds_per_step": mean(steps[1:])}


def peak_bytes() -> int:
    """The most memory that this process has had."""
    import resource

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def gigabytes(size: float) -> str:
    return f"{size / 1024**3:.2f}"


def error(planned: float, real: float) -> str:
    return f"{planned / real - 1:+.0%}"


def machine() -> str:
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    return f"{platform.machine()}, {Settings.read().cores} cores, {libraries}"


if __name__ == "__main__":
    main()
