"""One training job on the embedded model, in a process of its own, and what it came to.

Nothing here imports torch: a child's peak memory is never below its parent's, so the parent has to stay small.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.data_sets import DataSet
from luthier.control.catalog.cards import ModelCard
from luthier.control.catalog.installing import Installer
from luthier.core.clock import SystemClock
from luthier.core.errors import LossDiverged
from luthier.storage import Storage
from luthier.training import defaults
from luthier.training.events import Evaluated, Failed, Started, Succeeded, read_events
from luthier.training.precision import has_gpu, precision
from luthier.training.spec import DataFile, PluginChoice, TrainingSpec

LIBRARIES = ("torch", "transformers", "peft")


@dataclass(frozen=True)
class Evaluation:
    """What the run said of the held-out rows after a step."""

    step: int
    loss: float
    token_accuracy: float
    measures: dict[str, float]


@dataclass(frozen=True)
class Outcome:
    """What a job came to. One that diverged has no artifact."""

    evaluations: tuple[Evaluation, ...]
    trainable_parameters: int
    seconds: float
    peak_mb: float
    artifact_key: str | None
    has_diverged: bool

    @property
    def best(self) -> Evaluation:
        """The evaluation with the lowest loss after the first step; the only one where a run ended before."""
        return min(self.evaluations[1:] or self.evaluations, key=lambda one: one.loss)

    def plain(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def read(cls, plain: dict[str, Any]) -> Outcome:
        return cls(**plain | {"evaluations": tuple(Evaluation(**one) for one in plain["evaluations"])})


class Bench:
    """Where jobs are run: a storage in `data` with the embedded model, which is brought first where it is not there."""

    def __init__(self, data: Path) -> None:
        self.storage = Storage((data.resolve() / "objects").as_uri())
        installer = Installer(self.storage, data.resolve() / "scratch", sys.executable, SystemClock())
        installer.refresh()
        self.card: ModelCard = installer.embedded()

    def file(self, name: str, form: str, rows: list[dict]) -> DataFile:
        data = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
        sha256 = hashlib.sha256(data).hexdigest()
        stored = self.storage.write(f"benchmarks/{name}-{sha256[:12]}.jsonl", data)
        return DataFile(key=stored.key, sha256=sha256, format=form, rows=len(rows), trained_rows=len(rows))

    def spec(
        self, name: str, data: DataSet, *, method: str, objective: str, threads: int, seed: int, **given: Any
    ) -> TrainingSpec:
        """A job on a set, named after what is in it; all that is not `given` is what a user gets who leaves it to us."""
        numbers = defaults.resolve(
            parameters=self.card.parameters,
            context_length=self.card.context_length,
            rows=len(data.training),
            cores=threads,
            method=method,
            objective=objective,
            seed=seed,
            **given,
        ).model_dump()
        steps = numbers["epochs"] * -(-len(data.training) // numbers["batch_size"])
        spec = TrainingSpec(
            job="ftjob-benchmark",
            base_model=self.card.name,
            weights=self.card.weights,
            weights_sha256=self.card.weights_sha256,
            renderer_sha256=self.card.renderer_sha256,
            training=self.file(f"{name}-training", data.format, data.training),
            validation=self.file(f"{name}-held-out", data.format, data.held_out),
            method=PluginChoice(name=method),
            objective=PluginChoice(name=objective),
            keep_checkpoints=1,  # that of a whole model is 1.6 GB: the best will do
            **numbers | {"save_every_steps": steps},
        )
        identity = hashlib.sha256(spec.model_dump_json(exclude_defaults=True).encode()).hexdigest()
        return spec.model_copy(update={"job": f"ftjob-{identity[:16]}"})

    def run(self, spec: TrainingSpec) -> Outcome:
        """Run a job from its beginning. What it wrote stays until `forget`.

        A loss that diverges is an outcome; whatever else ends a job early ends the program.
        """
        self.forget(spec)
        began = time.monotonic()
        with _file(spec.model_dump(mode="json")) as path:
            program = ["luthier.training.program", path, "--storage", self.storage.url, "--log-level", "warning"]
            usage = _run([sys.executable, "-m", *program])
        seconds = time.monotonic() - began
        events = read_events(self.storage, spec.run_key, 1, -1)
        last = events[-1] if events else None
        has_diverged = isinstance(last, Failed) and last.code == LossDiverged.code
        if not has_diverged and not isinstance(last, Succeeded):
            raise SystemExit(f"{spec.job} did not end well: {last}")
        told = [event for event in events if isinstance(event, Evaluated)]
        return Outcome(
            tuple(Evaluation(one.step, one.loss, one.token_accuracy, one.measures) for one in told),
            next((event.trainable_parameters for event in events if isinstance(event, Started)), 0),
            round(seconds, 1),
            round(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6),
            last.artifact_key if isinstance(last, Succeeded) else None,
            has_diverged,
        )

    def stock_losses(self, spec: TrainingSpec, artifact_key: str | None, files: list[DataFile]) -> list[float]:
        """The loss on each file by transformers and PEFT as anybody has them; see benchmarks/stock.py."""
        with _file({"spec": spec.model_dump(mode="json"), "files": [file.model_dump() for file in files]}) as path:
            artifact = ["--artifact", artifact_key] if artifact_key else []
            command = [sys.executable, "-m", "benchmarks.stock", self.storage.url, path, *artifact]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"What {spec.job} made could not be read: {done.stderr}")
            return json.loads(done.stdout)

    def forget(self, spec: TrainingSpec) -> None:
        """Remove everything that a job wrote."""
        self.storage.delete(spec.run_key)


def machine(threads: int) -> str:
    """Where and with what something was measured."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return (
        f"{processor or platform.machine()}, {threads} of {os.cpu_count()} cores, {memory:.0f} GiB, "
        f"{'a GPU' if has_gpu() else 'no GPU'}; {platform.system()}, "
        f"Python {platform.python_version()}, {libraries}; {precision()}"
    )


@contextmanager
def _file(value: Any) -> Iterator[str]:
    """The path of a file with that as JSON, for a while."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(value, file)
        file.flush()
        yield file.name


def _run(command: list[str]) -> Any:
    """Run a program to its end; what it used, of itself alone."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage
