"""Every training method with every objective: what is learned, what is forgotten, what it takes.

    python -m benchmarks.methods_and_objectives --out benchmarks/results/methods.md
    python -m benchmarks.methods_and_objectives --out lora.md --methods lora --objectives sft dpo

Each job has the automatic settings and a process of its own: seconds and peak memory are that process's, with the start
of Python, its evaluations and its checkpoint. Losses are means over learned tokens, for dpo over pairs. The general set
is scored by stock transformers and PEFT on what the job left behind, and so, except for dpo, are the held-out rows once more:
beside the run's own loss, this shows that others read the artifact as we do. The table is written anew after each job.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path

from benchmarks.data_sets import FITTING, cut, make
from benchmarks.jobs import Bench, Outcome, machine
from luthier.training.methods.base import methods
from luthier.training.objectives.base import objectives
from luthier.training.spec import TrainingSpec

HEADS = (
    *("method", "objective, set", "trainable", "rows × epochs, batch, rate", "held-out loss", "by stock libraries"),
    *("pairs in order", "general loss", "peak MB", "seconds"),
)


def main() -> None:
    asked = _asked()
    bench = Bench(asked.data)
    general = make("general")
    rows: list[tuple[str, ...]] = [HEADS, ("---",) * len(HEADS)]
    known_before: float | None = None
    for objective in asked.objectives:
        name = asked.sft_set if objective == "sft" else FITTING[objective][0]
        data = cut(make(name), asked.rows)
        for method in asked.methods:
            spec = bench.spec(
                *(name, data),
                method=method,
                objective=objective,
                threads=asked.threads,
                seed=asked.seed,
                epochs=asked.epochs,
            )
            assert spec.validation is not None
            files = [bench.file("general", general.format, general.held_out)]
            if known_before is None:
                (known_before,) = bench.stock_losses(spec, None, files)
            if objective != "dpo":
                files.append(spec.validation)
            outcome = bench.run(spec)
            stock = bench.stock_losses(spec, outcome.artifact_key, files) if outcome.artifact_key else []
            bench.forget(spec)
            rows.append(_row(name, spec, outcome, known_before, *stock))
            asked.out.write_text(_page(rows, asked.threads, asked.seed))
            print(" | ".join(rows[-1]), flush=True)


def _row(
    name: str,
    spec: TrainingSpec,
    outcome: Outcome,
    known_before: float,
    known_after: float | None = None,
    held_out: float | None = None,
) -> tuple[str, ...]:
    before, after = outcome.evaluations[0], outcome.evaluations[-1]
    end = "diverged" if outcome.has_diverged else f"{after.loss:.3f}"
    pairs = [one.measures.get("reward_accuracy") for one in (before, after)]
    return (
        spec.method.name,
        f"{spec.objective.name}, {name}",
        f"{outcome.trainable_parameters:,}",
        f"{spec.training.rows} × {spec.epochs}, {spec.batch_size}, {spec.learning_rate:.2g}",
        f"{before.loss:.3f} → {end}",
        "" if held_out is None else f"{held_out:.3f}",
        " → ".join(f"{share:.0%}" for share in pairs if share is not None),
        "" if known_after is None else f"{known_before:.3f} → {known_after:.3f}",
        f"{outcome.peak_mb:,}",
        f"{outcome.seconds:.0f}",
    )


def _page(rows: list[tuple[str, ...]], threads: int, seed: int) -> str:
    command = f"python -m benchmarks.methods_and_objectives {shlex.join(sys.argv[1:])}"
    told = f"`{command}`, {time.strftime('%Y-%m-%d', time.gmtime())}, seed {seed}. {machine(threads)}."
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(["# Methods and objectives", "", told, "", *lines, ""])


def _asked() -> argparse.Namespace:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, required=True, help="markdown file that is written")
    arguments.add_argument("--methods", nargs="+", choices=methods.names(), default=methods.names())
    arguments.add_argument("--objectives", nargs="+", choices=objectives.names(), default=objectives.names())
    arguments.add_argument("--sft-set", choices=FITTING["sft"], default="extraction")
    arguments.add_argument("--seed", type=int, default=17)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--epochs", type=int, help="default: automatic")
    arguments.add_argument("--rows", type=int, help="only the first of each set, to try the program out")
    arguments.add_argument("--data", type=Path, default=Path(".luthier"), help="folder with the embedded model")
    return arguments.parse_args()


if __name__ == "__main__":
    main()
