"""How soon what was saved can be called: from a checkpoint's row to the first token in the pool, through the API.

    python -m benchmarks.callable                  # 100 checkpoints known, ten jobs one after the other, no trainer beside
    python -m benchmarks.callable --trainer        # the checkpoints of a job that goes on training on the other core

A server with the toy model trains a job with many checkpoints, which are what is known. Then further ones are called as soon as
their row can be read from the database, which is looked into every few milliseconds. Beside it the switch: known checkpoints
asked for at random, more than a replica has places, and each once more when it is there. Prints markdown; the exit code is 1
where half of the calls took a second or more.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sqlite3
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.jobs import machine
from luthier.testing import jsonl, toy_model, toy_rows
from tests.servers import KEY, RunningServer, install_toy, wait_for

BOUND_SECONDS = 1.0
ROWS = 16
BATCH = 4


class Known:
    """The checkpoints of a server, by its database."""

    def __init__(self, server: RunningServer) -> None:
        self._path = server.data / "luthier.db"

    def names(self, *, after: int = 0) -> list[str]:
        """What checkpoints are called, in the order of their rows, without the first so many."""
        with closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True)) as database:
            found = database.execute("SELECT model_name FROM checkpoints ORDER BY id LIMIT -1 OFFSET ?", (after,))
            return [name for (name,) in found]

    def next(self, *, after: int, every: float = 0.005) -> tuple[str, int]:
        """Wait for a row beyond the first so many; the newest one's name, and how many there are now."""
        found = wait_for(lambda: self.names(after=after), seconds=300, every=every)
        return found[-1], after + len(found)


def start_job(server: RunningServer, steps: int, *, seed: int) -> str:
    """A LoRA job with a checkpoint after every step."""
    file = server.client().files.create(file=("rows.jsonl", jsonl(toy_rows(ROWS, seed=seed))), purpose="fine-tune")
    body = {
        "model": "toy",
        "training_file_ids": [file.id],
        "training_type": "efficient_sft",
        "hyper_parameters": {
            "n_epochs": math.ceil(steps * BATCH / ROWS),
            "batch_size": BATCH,
            "save_steps": 1 if steps > ROWS // BATCH else ROWS // BATCH,
            "eval_steps": 1_000_000,
        },
    }
    request = urllib.request.Request(  # noqa: S310
        f"{server.url}/api/v1/fine-tunes",
        json.dumps(body).encode(),
        {"authorization": f"Bearer {KEY}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
        return json.load(response)["output"]["job_id"]


def reach_end(server: RunningServer, job: str) -> None:
    """Wait until a job has succeeded and its trainer is gone."""
    client = server.client()

    def ended() -> Any:
        found = client.fine_tuning.jobs.retrieve(job)
        return found if found.status in ("succeeded", "failed", "cancelled") else None

    found = wait_for(ended, seconds=600)
    if found.status != "succeeded":
        raise SystemExit(f"{job} is {found.status}: {found.error}")
    wait_for(lambda: not server.engines("luthier.training"))


def first_token(client: Any, model: str) -> float:
    """Seconds from asking to the first text, or to the end of an answer without any."""
    began = time.perf_counter()
    turns = [{"role": "user", "content": "abc"}]
    with client.chat.completions.create(
        model=model, messages=turns, temperature=0, max_tokens=8, stream=True
    ) as stream:
        for event in stream:
            if event.choices and (event.choices[0].delta.content or event.choices[0].finish_reason):
                return time.perf_counter() - began
    raise SystemExit(f"{model} answered nothing")


def after_jobs(server: RunningServer, known: Known, samples: int) -> Iterator[float]:
    """Each checkpoint is the only one of its job, whose trainer ends with it."""
    client = server.client()
    for number in range(samples):
        count = len(known.names())
        job = start_job(server, 1, seed=number)
        name, _ = known.next(after=count)
        yield first_token(client, name)
        reach_end(server, job)


def while_training(server: RunningServer, known: Known, samples: int) -> Iterator[float]:
    """The checkpoints of one job that goes on; those that come while one is being asked for are left out."""
    client = server.client()
    count = len(known.names())
    job = start_job(server, 20 * samples, seed=1)
    for _ in range(samples):
        name, count = known.next(after=count)
        yield first_token(client, name)
        time.sleep(0.2)
        count = len(known.names())
    client.fine_tuning.jobs.cancel(job)


def switches(server: RunningServer, names: list[str], samples: int, *, seed: int = 0) -> Iterator[tuple[float, float]]:
    """Of checkpoints in random order: the time to the first token when it was not there, and when it was."""
    client, dice = server.client(), random.Random(seed)  # noqa: S311
    order: list[str] = []
    while len(order) < samples:
        order += dice.sample(names, len(names))
    for name in order[:samples]:
        yield first_token(client, name), first_token(client, name)


def percentile(values: list[float], share: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * share // 100)] if ordered else math.nan


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--known", type=int, default=100, help="checkpoints that are there before")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--switches", type=int, default=200)
    parser.add_argument("--trainer", action="store_true", help="call the checkpoints of a job that goes on")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="callable-") as name:
        folder = Path(name)
        install_toy(folder / "data", toy_model(folder / "toy"))
        server = RunningServer(folder / "data", LUTHIER_LOGS__LEVEL="warning")
        try:
            server.start()
            known = Known(server)
            reach_end(server, start_job(server, asked.known, seed=0))
            names = known.names()
            first_token(server.client(), "toy")  # starts the pool's replica
            measure = while_training if asked.trainer else after_jobs
            switched = list(switches(server, names, asked.switches))
            took = list(measure(server, known, asked.samples))
        finally:
            server.stop()
    cold, warm = ([one[place] for one in switched] for place in (0, 1))
    print(f"    python -m benchmarks.callable {' '.join(sys.argv[1:])}\n\n{machine(1)}; {len(names)} adapters known.\n")
    print("| first token | times | p50 ms | p99 ms |\n|---|---|---|---|")
    beside = "a trainer beside it" if asked.trainer else "no trainer beside it"
    for what, values in {
        f"from the checkpoint's row, {beside}": took,
        "a known adapter, mostly not on the replica": cold,
        "the same again": warm,
    }.items():
        figures = " | ".join(f"{percentile(values, share) * 1000:.0f}" for share in (50, 99))
        print(f"| {what} | {len(values)} | {figures} |")
    costs = [one - other for one, other in switched]
    print(f"\nA switch costs {percentile(costs, 50) * 1000:.0f} ms (p50), {percentile(costs, 99) * 1000:.0f} ms (p99).")
    return 0 if percentile(took, 50) < BOUND_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
