"""How good automatic learning rates are: the held-out loss of jobs at shares and multiples of each.

    python -m benchmarks.learning_rates --results rates.jsonl
    python -m benchmarks.learning_rates --results rates.jsonl --method full --sets extraction
    python -m benchmarks.learning_rates --results rates.jsonl --method lora --objective dpo
    python -m benchmarks.learning_rates --results rates.jsonl --table

Everything but the rate is as it is chosen automatically, and the same. Each job is a process of its own. Its outcome is
one line of the results file, so that a run that was interrupted goes on where it ended: a job whose spec (data included)
is there already is not run again. Take another file once the code that trains has changed. `--table` prints all that is in
the file, in markdown.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.data_sets import FITTING, NAMES, cut, make
from benchmarks.jobs import Bench, Evaluation, Outcome, machine
from luthier.training.methods.base import methods
from luthier.training.objectives.base import objectives

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


def main() -> None:
    asked = _asked()
    if not asked.table:
        bench = Bench(asked.data)
        known = {line["job"] for line in _read(asked.results)}
        for name in asked.sets or FITTING[asked.objective]:
            data = cut(make(name), asked.rows)
            for factor in asked.factors:
                spec = bench.spec(
                    name,
                    data,
                    method=asked.method,
                    objective=asked.objective,
                    threads=asked.threads,
                    seed=asked.seed,
                    epochs=asked.epochs,
                    learning_rate_multiplier=factor,
                )
                if spec.job in known:
                    print(f"{name} x {factor:g}: known", flush=True)
                    continue
                outcome = bench.run(spec)
                bench.forget(spec)
                line = {
                    "job": spec.job,
                    "set": name,
                    "factor": factor,
                    **{"method": spec.method.name, "objective": spec.objective.name},
                    "rows": len(data.training),
                    **spec.model_dump(include={"learning_rate", "epochs", "batch_size", "seed"}),
                    "machine": machine(asked.threads),
                    "at": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
                    "outcome": outcome.plain(),
                }
                with asked.results.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                print(f"{name} x {factor:g}: {_cell(outcome)}, {outcome.seconds:.0f} s", flush=True)
    print(table(_read(asked.results)))


def table(lines: Iterable[dict[str, Any]]) -> str:
    """Markdown: a line for each set, method, objective and set of numbers; of a job that was run twice the last."""
    groups: dict[tuple, dict[float, tuple[float, Outcome]]] = {}
    machines: dict[str, None] = {}
    for line in lines:
        group = tuple(line[part] for part in ("set", "method", "objective", "rows", "epochs", "batch_size", "seed"))
        groups.setdefault(group, {})[line["factor"]] = line["learning_rate"], Outcome.read(line["outcome"])
        machines[line["machine"]] = None
    factors = sorted({factor for group in groups.values() for factor in group})
    heads = ["set", "method", "objective", "rows × epochs, batch", "before", *(f"× {factor:g}" for factor in factors)]
    rows = [[*heads, "auto rate", "auto above the best"]]
    rows.append(["---"] * len(rows[0]))
    for (name, method, objective, count, epochs, batch, _), jobs in groups.items():
        before = next((one.evaluations[0] for _, one in jobs.values() if one.evaluations), None)
        rows.append([name, method, objective, f"{count} × {epochs}, {batch}", _shown(before) if before else ""])
        rows[-1] += [_cell(jobs[factor][1]) if factor in jobs else "" for factor in factors]
        rows[-1] += [f"{jobs[1.0][0]:.2g}", _above_best(jobs)] if 1.0 in jobs else ["", ""]
    told = [
        "Held-out loss at the end; in brackets the lowest on the way, where that is lower; for dpo the share of pairs."
    ]
    return "\n".join(["", *told, "", *(f"| {' | '.join(row)} |" for row in rows), "", *machines])


def _above_best(jobs: dict[float, tuple[float, Outcome]]) -> str:
    """How far the loss of the automatic rate's result, its best checkpoint, is above the lowest of all rates, and at which."""
    ended = {factor: outcome.best.loss for factor, (_, outcome) in jobs.items() if not outcome.has_diverged}
    if 1.0 not in ended:
        return "it diverged"
    best = min(ended, key=lambda factor: ended[factor])
    return f"{ended[1.0] / ended[best] - 1:.1%} (× {best:g})"


def _cell(outcome: Outcome) -> str:
    if outcome.has_diverged:
        return "diverged"
    last, best = outcome.evaluations[-1], outcome.best
    return _shown(last) + (f" ({best.loss:.4f} at {best.step})" if best.loss < last.loss else "")


def _shown(one: Evaluation) -> str:
    accuracy = one.measures.get("reward_accuracy")
    return f"{one.loss:.4f}" + ("" if accuracy is None else f", {accuracy:.0%}")


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _asked() -> argparse.Namespace:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--results", type=Path, required=True, help="file of JSON lines, continued where it exists")
    arguments.add_argument("--table", action="store_true", help="only print what the file holds")
    arguments.add_argument("--method", default="lora", choices=methods.names())
    arguments.add_argument("--objective", default="sft", choices=objectives.names())
    arguments.add_argument("--sets", nargs="+", choices=NAMES[:-1], help="default: all that fit the objective")
    arguments.add_argument("--factors", nargs="+", type=float, default=FACTORS, help="multiples of the automatic rate")
    arguments.add_argument("--seed", type=int, default=17)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--epochs", type=int, help="default: automatic")
    arguments.add_argument("--rows", type=int, help="only the first of each set, to try the program out")
    arguments.add_argument("--data", type=Path, default=Path(".luthier"), help="folder with the embedded model")
    return arguments.parse_args()


if __name__ == "__main__":
    main()
