"""Every training method with every objective: what is learned, what is forgotten, what it takes.

    python -m benchmarks.methods_and_objectives --out benchmarks/results/methods.md
    python -m benchmarks.methods_and_objectives --out lora.md --methods lora --objectives sft dpo

Each job has the automatic settings and a process of its own: seconds and peak memory are that process's, with the start
of Python, its evaluations and its checkpoint. Losses are means over learned tokens, a run's own for dpo over pairs.

Stock transformers and PEFT score the base model and what the job left behind: the general set, which shows what was
forgotten, and the held-out rows once more, which shows that others read the artifact as we do (for dpo first the chosen
answers, then the rejected ones). A method that begins with a prefix has another loss before than the base model by itself.
The table is written anew after each job.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path

from benchmarks.data_sets import FITTING, DataSet, cut, make
from benchmarks.jobs import Bench, Outcome, machine
from luthier.formats.base import formats
from luthier.training.methods.base import methods
from luthier.training.objectives.base import objectives
from luthier.training.spec import DataFile, TrainingSpec

HEADS = (
    *("method", "objective, set", "trainable", "rows × epochs, batch, rate", "held-out loss", "pairs in order"),
    *("the same rows by stock libraries", "general loss", "peak MB", "seconds"),
)


def main() -> None:
    asked = _asked()
    bench = Bench(asked.data)
    general = make("general")
    rows: list[tuple[str, ...]] = [HEADS, ("---",) * len(HEADS)]
    for objective in asked.objectives:
        name = asked.sft_set if objective == "sft" else FITTING[objective][0]
        data = cut(make(name), asked.rows)
        files = [bench.file("general", general.format, general.held_out), *_held_out(bench, name, data)]
        before: list[float] = []
        for method in asked.methods:
            given = {"method": method, "objective": objective, "threads": asked.threads, "seed": asked.seed}
            spec = bench.spec(name, data, **given, epochs=asked.epochs)
            before = before or bench.stock_losses(spec, None, files)
            outcome = bench.run(spec)
            after = bench.stock_losses(spec, outcome.artifact_key, files) if outcome.artifact_key else []
            bench.forget(spec)
            rows.append(_row(name, spec, outcome, [f"{b:.3f} → {a:.3f}" for b, a in zip(before, after, strict=False)]))
            asked.out.write_text(_page(rows, asked.threads, asked.seed))
            print(" | ".join(rows[-1]), flush=True)


def _held_out(bench: Bench, name: str, data: DataSet) -> list[DataFile]:
    """Files that stock libraries are asked about: the held-out rows, of pairs first the chosen, then the rejected answers."""
    if formats.load(data.format).kind != "preference":
        return [bench.file(f"{name}-held-out", data.format, data.held_out)]
    return [
        bench.file(
            f"{name}-{answer}", "messages", [{"messages": [*row["messages"], row[answer]]} for row in data.held_out]
        )
        for answer in ("chosen", "rejected")
    ]


def _row(name: str, spec: TrainingSpec, outcome: Outcome, by_stock: list[str]) -> tuple[str, ...]:
    before, after = outcome.evaluations[0], outcome.best  # whose checkpoint is the artifact
    end = "diverged" if outcome.has_diverged else f"{after.loss:.3f}"
    pairs = [one.measures.get("reward_accuracy") for one in (before, after)]
    return (
        spec.method.name,
        f"{spec.objective.name}, {name}",
        f"{outcome.trainable_parameters:,}",
        f"{spec.training.rows} × {spec.epochs}, {spec.batch_size}, {spec.learning_rate:.2g}",
        f"{before.loss:.3f} → {end}",
        " → ".join(f"{share:.0%}" for share in pairs if share is not None),
        "; ".join(by_stock[1:]),
        *(by_stock[:1] or [""]),
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
