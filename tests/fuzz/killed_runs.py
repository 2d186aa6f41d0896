"""Training runs that die again and again, of every method; a short form of it runs in the tests.

    python -m tests.fuzz.killed_runs                              # every method, 10 runs each, supervised and preferences
    python -m tests.fuzz.killed_runs --method lora --runs 100

Each run's trainer is killed (SIGKILL) at random moments and started again until it succeeds; its artifact must have the bytes,
and its steps the losses, of a run that nobody disturbed. Prints a line a run; stops at the first that differs.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

from luthier.storage import Storage
from luthier.testing import toy_rows, toy_spec
from luthier.training.events import Evaluated, Progress, read_events
from luthier.training.methods.base import methods
from luthier.training.program import next_attempt
from luthier.training.run import run
from luthier.training.spec import PluginChoice, TrainingSpec
from tests.reference import trl

OPTIONS = {"lora": {"rank": 4, "dropout": 0.2}, "qlora": {"rank": 4, "dropout": 0.2}}
WRITES = ("write", "create", "upload")


class Killed(BaseException):
    """The process is gone: nothing that a run would do about it is done."""


def spec_of(storage: Storage, job: str, method: str, objective: str) -> TrainingSpec:
    changes = {
        "job": job,
        "method": PluginChoice(name=method, options=OPTIONS.get(method, {})),
        "save_every_steps": 2,
        "evaluate_every_steps": 3,
    }
    if objective == "dpo":
        spec = trl.spec_of("dpo", storage)
        return spec.model_copy(update={**changes, "validation": spec.training})
    return toy_spec(storage, validation=toy_rows(4, seed=9), **changes)


def numbers(storage: Storage, spec: TrainingSpec, attempts: int) -> dict[tuple[str, int], tuple[float, float]]:
    """Loss and accuracy by (event, step); what a later attempt told overrules what an earlier one did."""
    events = [event for attempt in range(1, attempts + 1) for event in read_events(storage, spec.run_key, attempt, -1)]
    return {(e.type, e.step): (e.loss, e.token_accuracy) for e in events if isinstance(e, Progress | Evaluated)}


def dying(storage: Storage, spec: TrainingSpec, dice: random.Random, deaths: int, writes: int) -> int:
    """Play a run whose first attempts die at a random one of their writes to the storage; how many attempts it took."""
    for attempt in range(1, deaths + 1):
        left = dice.randrange(writes)

        def counted(self: Storage, *args, _do, **kwargs):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return _do(self, *args, **kwargs)

        with patch.multiple(Storage, **{name: _bound(counted, getattr(Storage, name)) for name in WRITES}):
            try:
                if run(spec, storage, attempt=attempt).type == "succeeded":
                    return attempt
            except Killed:
                continue
    return deaths + 1 if run(spec, storage, attempt=deaths + 1).type == "succeeded" else 0


def _bound(counted, do):
    return lambda self, *args, **kwargs: counted(self, *args, _do=do, **kwargs)


def _killed(storage: Storage, spec: TrainingSpec, dice: random.Random, seconds: float) -> int:
    """The same in processes of their own, killed after a random time."""
    storage.write(f"specs/{spec.job}.json", spec.model_dump_json().encode())
    while True:
        attempt = next_attempt(storage, spec)
        command = [sys.executable, "-m", "luthier.training.program", f"specs/{spec.job}.json"]
        command += ["--storage", storage.url, "--attempt", str(attempt), "--log-level", "error"]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            try:
                process.wait(None if attempt > 8 else dice.uniform(0.3, 1.0) * seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                continue
        if process.returncode:
            raise SystemExit(f"{spec.job}: attempt {attempt} ended with {process.returncode}")
        return attempt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", action="append", choices=methods.names())
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    for method in asked.method or methods.names():
        for objective in ("sft", "dpo"):
            with tempfile.TemporaryDirectory() as folder:
                _check(Storage(Path(folder).as_uri()), method, objective, asked.runs, random.Random(asked.seed))


def _check(storage: Storage, method: str, objective: str, runs: int, dice: random.Random) -> None:
    whole, begun = spec_of(storage, "ftjob-whole", method, objective), time.monotonic()
    _killed(storage, whole, dice, 1e6)
    seconds = time.monotonic() - begun
    expected = numbers(storage, whole, 1)
    for number in range(runs):
        spec = spec_of(storage, f"ftjob-{number}", method, objective)
        attempts = _killed(storage, spec, dice, seconds)
        found = numbers(storage, spec, attempts)
        same = found == expected and _artifact(storage, spec, attempts) == _artifact(storage, whole, 1)
        print(f"{method} {objective} run {number}: {attempts} attempts, {'equal' if same else 'DIFFERENT'}", flush=True)
        if not same:
            raise SystemExit(1)


def _artifact(storage: Storage, spec: TrainingSpec, attempt: int) -> str:
    last = read_events(storage, spec.run_key, attempt, -1)[-1]
    assert last.type == "succeeded"
    return last.artifact_sha256


if __name__ == "__main__":
    main()
