"""What a trainer and a replica take from each other: a job of a server beside answers of its pool, and two trainers at once.

    python -m benchmarks.cores --data FOLDER             # a job with as many threads as cores, and one client who asks on and on
    python -m benchmarks.cores --data FOLDER --trainers  # two such jobs by `luthier.training.program`, without a server

The embedded model lies in the folder, or is brought there first. Prints markdown.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.data_sets import cut, make
from benchmarks.jobs import Bench, machine
from luthier.core.settings import Settings
from luthier.storage import Storage
from luthier.testing import jsonl
from luthier.training.events import Progress, read_events
from tests.servers import RunningServer, wait_for

ROWS = 48
TOKENS = 32
"""Of an answer."""


def steps(storage: Storage, run_key: str) -> list[Progress]:
    return [event for event in read_events(storage, run_key, 1, -1) if isinstance(event, Progress)]


def speed(taken: list[Progress]) -> float:
    """Learned tokens a second from the end of the first step to the end of the last."""
    first, last = taken[0], taken[-1]
    return (last.trained_tokens - first.trained_tokens) / (last.elapsed_seconds - first.elapsed_seconds)


def answered(client: Any, model: str, until: Any) -> float:
    """Answers a second of one client who asks on, until that is so."""
    count, began = 0, time.monotonic()
    while not until():
        turns = [{"role": "user", "content": f"Tell me of the number {count}."}]
        client.chat.completions.create(model=model, messages=turns, temperature=0, max_tokens=TOKENS)
        count += 1
    return count / (time.monotonic() - began)


def beside_answers(data: Path, model: str, seconds: float) -> None:
    server = RunningServer(data, LUTHIER_LOGS__LEVEL="warning")
    try:
        server.start()
        client = server.client()
        began = time.monotonic()
        answered(client, model, lambda: time.monotonic() - began > 1)  # starts the replica
        began = time.monotonic()
        alone = answered(client, model, lambda: time.monotonic() - began > seconds)
        rows = jsonl(cut(make("facts"), ROWS).training)
        file = client.files.create(file=("rows.jsonl", rows), purpose="fine-tune")
        asked: Any = {"n_epochs": 20, "batch_size": 8}
        job = client.fine_tuning.jobs.create(model=model, training_file=file.id, hyperparameters=asked, seed=1)
        storage = Storage((data / "objects").absolute().as_uri())
        run = f"runs/{job.id}"
        answered(client, model, lambda: steps(storage, run))
        began, before = time.monotonic(), len(steps(storage, run))
        beside = answered(client, model, lambda: time.monotonic() - began > 2.5 * seconds)
        taken = steps(storage, run)[before - 1 :]
        client.fine_tuning.jobs.cancel(job.id)
        wait_for(lambda: not server.engines("luthier.training"))
    finally:
        server.stop()
    print("| | learned tokens/s | answers/s |\n|---|---|---|")
    print(f"| answers alone | | {alone:.2f} |\n| a job beside them | {speed(taken):.0f} | {beside:.2f} |")


def two_trainers(bench: Bench) -> None:
    specs = []
    for name in ("a", "b"):
        options: dict[str, Any] = {"epochs": 1, "batch_size": 8}
        data = cut(make("facts"), ROWS)
        spec = bench.spec(
            "facts", data, method="lora", objective="sft", threads=Settings.read().cores, seed=1, **options
        )
        spec = spec.model_copy(update={"job": f"{spec.job}-{name}", "validation": None, "samples": 0, "patience": None})
        bench.forget(spec)
        bench.storage.write(f"{spec.run_key}/spec.json", spec.model_dump_json().encode())
        specs.append(spec)
    program = [sys.executable, "-m", "luthier.training.program"]
    options = ["--storage", bench.storage.url, "--attempt", "1", "--log-level", "error"]
    processes = [subprocess.Popen([*program, f"{spec.run_key}/spec.json", *options]) for spec in specs]
    for process in processes:
        process.wait()
    print("| two trainers at once | learned tokens/s |\n|---|---|")
    for number, spec in enumerate(specs, 1):
        print(f"| {number} | {speed(steps(bench.storage, spec.run_key)):.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of a server, or an empty one")
    parser.add_argument("--seconds", type=float, default=12.0, help="that answers are counted alone")
    parser.add_argument("--trainers", action="store_true", help="two trainers without a server")
    asked = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    bench = Bench(asked.data)
    print(f"    python -m benchmarks.cores {' '.join(sys.argv[1:])}\n\n{machine(Settings.read().cores)}.\n")
    if asked.trainers:
        two_trainers(bench)
    else:
        beside_answers(asked.data, bench.card.name, asked.seconds)


if __name__ == "__main__":
    main()
