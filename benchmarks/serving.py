"""The built-in engine beside its peers: the same prompts and lengths, greedy, no answer ends early, each engine in turn.

    python -m benchmarks.serving                                     # the embedded model, three rounds
    python -m benchmarks.serving --shape 0.5b --precision bf16       # random numbers in the shape of Qwen2-0.5B
    python -m benchmarks.serving --gguf model-Q8_0.gguf model-BF16.gguf   # beside llama.cpp, where xllamacpp can be imported
    python -m benchmarks.serving --memory-minutes 60 --rounds 1

Measured are tokens a second, with the reading of the prompts and without: the base model by transformers' `generate` and
`generate_batch`, llama.cpp and the built-in engine; with one adapter, and with several mixed in a batch, by PEFT and the built-in
engine. A processor without bf16 instructions makes torch's bf16 slow, so the peers in Python are measured in fp32 too and the
better one counts. Each measurement is a process of its own; told are the medians of the rounds, their ratios, the time to
the first token of answers that arrive while eight are being made, and the share of the machine's memory bandwidth that batch 1
takes. `generate_batch` is measured where `--engines` names it. The exit code is 1 where a floor is missed, with the prompts or
without: twice `generate` at every batch size, four times PEFT's mixed batch and 70 % of the base model's own rate.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.engines import Found, Work, write_adapters, write_shape
from benchmarks.jobs import machine

HERE = Path(__file__).parent
TOO_LONG_SECONDS = 1800
KINDS = {
    "rates": "Tokens made a second, the reading of the prompts included",
    "made": "Tokens made a second once the prompts are read",
    "read": "Tokens of prompts read a second",
}
FLOOR_BASE, FLOOR_MIXED, FLOOR_SHARE = 2.0, 4.0, 0.7


@dataclass(frozen=True)
class Line:
    """One line of the table: an engine on the base model, one adapter or several."""

    engine: str
    precision: str
    adapters: int
    gguf: str = ""

    @property
    def name(self) -> str:
        if self.gguf:
            return f"llama.cpp {Path(self.gguf).stem}"
        engine = "PEFT" if self.engine == "generate" and self.adapters else self.engine
        return f"{engine} {self.precision}"

    @property
    def what(self) -> str:
        return {0: "base", 1: "one adapter"}.get(self.adapters, f"{self.adapters} adapters mixed")


Rates = dict[Line, dict[int, float]]
Shares = dict[int, float]
"""Of the base model's own rate, what mixed adapters leave, by the size of the batch."""


def lines(precision: str, adapters: int, ggufs: list[str]) -> list[Line]:
    slow = ["fp32"] if precision != "fp32" else []
    found = []
    for count in (0, 1, adapters) if adapters else (0,):
        found.append(Line("builtin", precision, count))
        found += [Line("generate", each, count) for each in [precision, *slow]]
        if count == 0:
            found += [Line("generate_batch", each, count) for each in [precision, *slow]]
    if find_spec("xllamacpp"):
        found += [Line("llama.cpp", "", 0, gguf) for gguf in ggufs]
    return found


def measured(work: Work) -> Found:
    """The work, in a process of its own."""
    threads = {name: str(work.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.engines", json.dumps(asdict(work))],
        capture_output=True,
        text=True,
        env={**os.environ, **threads, **quiet},
        cwd=HERE.parent,
        timeout=TOO_LONG_SECONDS + work.memory_minutes * 60,
    )
    if done.returncode:
        raise SystemExit(f"{work.engine} failed:\n{done.stderr[-4000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    for kind in (*KINDS, *(f"own_{kind}" for kind in KINDS)):
        found[kind] = {int(batch): rate for batch, rate in found[kind].items()}
    return Found(**found)


def best(rates: Rates, engine: str, adapters: int, batch: int) -> float:
    """The best median of an engine in whatever precision; NaN where it was not measured."""
    found = [each[batch] for line, each in rates.items() if (line.engine, line.adapters) == (engine, adapters)]
    return max(found, default=math.nan)


def shares_of(measurements: dict[Line, list[Found]], kind: str, adapters: int) -> Shares:
    """The medians over the rounds of what was measured side by side in one process; {} where no adapters are."""
    if not adapters:
        return {}
    [rounds] = [found for line, found in measurements.items() if (line.engine, line.adapters) == ("builtin", adapters)]
    batches = getattr(rounds[0], kind)
    return {
        batch: statistics.median(getattr(one, kind)[batch] / getattr(one, f"own_{kind}")[batch] for one in rounds)
        for batch in batches
    }


def missed(rates: Rates, shares: Shares, batches: list[int], adapters: int) -> list[str]:
    """The floors that are not kept, in words."""
    found = []
    for batch in batches:
        base, mixed = (
            best(rates, "builtin", count, batch) / best(rates, "generate", count, batch) for count in (0, adapters)
        )
        floors = [("base beside generate", base, FLOOR_BASE)]
        if adapters and batch > 1:  # one answer mixes nothing
            floors.append(("mixed beside PEFT mixed", mixed, FLOOR_MIXED))
            floors.append(("mixed beside our base", shares[batch], FLOOR_SHARE))
        for what, ratio, floor in floors:
            if not ratio >= floor:
                found.append(f"{what}, batch {batch}: {ratio:.2f} times, the floor is {floor:g}")
    return found


def grows(memory: list[tuple[float, float]]) -> bool:
    """Whether the last quarter holds over a tenth more than the second: the first one fills what is kept."""
    quarter = len(memory) // 4
    if not quarter:
        return False
    early, late = memory[quarter : 2 * quarter], memory[-quarter:]
    return statistics.mean(held for _, held in late) > 1.1 * statistics.mean(held for _, held in early)


def bandwidth(threads: int) -> float:
    """Bytes a second that so many threads read from memory, best of several passes over half a GiB."""
    code = (
        "import time, torch; torch.set_num_threads({0}); x = torch.ones(2**27)\n"
        "def once():\n    t = time.perf_counter(); x.sum(); return time.perf_counter() - t\n"
        "print(x.nbytes / min(once() for _ in range(8)))"
    )
    done = subprocess.run([sys.executable, "-c", code.format(threads)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def weight_bytes(folder: Path, precision: str) -> int:
    """Of all weights, each counted once, in a precision."""
    import struct

    count = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            [length] = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        count += sum(math.prod(one["shape"]) for name, one in header.items() if name != "__metadata__")
    return count * (4 if precision == "fp32" else 2)


def percentile(values: list[float], share: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * share // 100)] if ordered else math.nan


def report(
    asked: argparse.Namespace, rates: dict[str, Rates], shares: dict[str, Shares], first_ms: dict[int, list[float]]
) -> list[str]:
    """Print all but memory; the floors that are missed."""
    print(f"    python -m benchmarks.serving {' '.join(sys.argv[1:])}\n\n{machine(asked.threads)}.")
    print(f"{asked.prompt_tokens} tokens of prompt, {asked.new_tokens} new, medians of {asked.rounds} rounds.")
    for kind, title in KINDS.items():
        print(f"\n{title}:\n")
        _tables(asked, rates[kind], shares[kind])
    for count, times in first_ms.items():
        what = "base" if not count else f"{count} adapters"
        told = f"p50 {percentile(times, 50):.0f} ms, p99 {percentile(times, 99):.0f} ms ({len(times)} arrivals)"
        print(f"\nFirst token while eight are answered, {what}: {told}.")
    if 1 in asked.batches:
        reads, held = bandwidth(asked.threads), weight_bytes(asked.folder / asked.weights, asked.precision)
        share = best(rates["made"], "builtin", 0, 1) * held / reads
        print(
            f"\nMemory is read at {reads / 1e9:.1f} GB/s; batch 1, once its prompt is read, takes {share:.0%} of that:"
        )
        print(f"{held / 1e6:.0f} MB a token.")
    found = [
        f"{KINDS[kind]}: {one}"
        for kind in ("rates", "made")
        for one in missed(rates[kind], shares[kind], asked.batches, asked.adapters)
    ]
    print("\n" + ("\n".join(f"- Missed. {one}" for one in found) or "All floors are kept."))
    return found


def _tables(asked: argparse.Namespace, rates: Rates, shares: Shares) -> None:
    heads = [f"batch {batch}" for batch in asked.batches]
    print(f"| what | engine | {' | '.join(heads)} |\n|---|---|{'---|' * len(heads)}")
    for line, found in rates.items():
        print(f"| {line.what} | {line.name} | {' | '.join(f'{found[batch]:.1f}' for batch in asked.batches)} |")
    print(f"\n| built-in beside | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
    for line in rates:
        if line.engine != "builtin":
            ours = [best(rates, "builtin", line.adapters, batch) for batch in asked.batches]
            ratios = [one / rates[line][batch] for one, batch in zip(ours, asked.batches, strict=True)]
            print(f"| {line.what}: {line.name} | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |")
    if shares:
        told = " | ".join(f"{shares[batch]:.2f}" for batch in asked.batches)
        print(f"| its own base in the same process, with {asked.adapters} mixed | {told} |")


def main() -> int:
    asked = _asked()
    asked.folder, asked.weights = _model(asked)
    write_adapters(asked.folder, asked.weights, asked.adapters)
    measurements: dict[Line, list[Found]] = {}
    for number in range(asked.rounds):
        for line in lines(asked.precision, asked.adapters, asked.gguf):
            if line.engine not in (*asked.engines, "llama.cpp"):
                continue
            measurements.setdefault(line, []).append(measured(_work(asked, line, number)))
            print(f"{time.strftime('%H:%M:%S')} round {number + 1}: {line.what}, {line.name}", file=sys.stderr)
    rates = {
        kind: {
            line: {batch: statistics.median(getattr(one, kind)[batch] for one in found) for batch in asked.batches}
            for line, found in measurements.items()
        }
        for kind in KINDS
    }
    first_ms = {
        line.adapters: [each for one in found for each in one.first_ms]
        for line, found in measurements.items()
        if line.engine == "builtin"
    }
    shares = {kind: shares_of(measurements, kind, asked.adapters) for kind in KINDS}
    faults = report(asked, rates, shares, first_ms)
    if asked.memory_minutes:
        faults += _memory(asked)
    return 1 if faults else 0


def _memory(asked: argparse.Namespace) -> list[str]:
    """Measure and print what the process holds over time; the fault where it grows."""
    line = Line("builtin", asked.precision, asked.adapters)
    held = measured(_work(asked, line, 0, memory_minutes=asked.memory_minutes)).memory
    print("\n| minute | MiB |\n|---|---|")
    for seconds, mebibytes in held[:: max(1, len(held) // 10)]:
        print(f"| {seconds / 60:.1f} | {mebibytes:,.0f} |")
    return ["memory grows"] if grows(held) else []


def _work(asked: argparse.Namespace, line: Line, number: int, **changes: Any) -> Work:
    settled: dict[str, Any] = {
        "engine": line.engine,
        "storage": str(asked.folder),
        "weights": asked.weights,
        "precision": line.precision,
        "batches": asked.batches,
        "adapters": line.adapters,
        "prompt_tokens": asked.prompt_tokens,
        "new_tokens": asked.new_tokens,
        "threads": asked.threads,
        "seed": number,
        "gguf": line.gguf,
        "arrivals": asked.arrivals,
    }
    return Work(**settled | changes)


def _model(asked: argparse.Namespace) -> tuple[Path, str]:
    """A storage's folder, and the model's key in it."""
    if asked.shape:
        folder = asked.data / f"serving-{asked.shape}"
        write_shape(folder / "models/base", asked.shape)
        return folder, "models/base"
    from luthier.control.catalog.installing import Installer
    from luthier.core.clock import SystemClock
    from luthier.storage import Storage

    objects = asked.data.absolute() / "objects"
    card = Installer(Storage(objects.as_uri()), asked.data / "scratch", sys.executable, SystemClock()).embedded()
    return objects, card.weights


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parent / ".luthier", help="folder that models are kept in")
    parser.add_argument("--shape", choices=["0.5b", "toy"], help="random numbers instead of the embedded model")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--adapters", type=int, default=16, help="mixed in a batch; 0: the base alone")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--arrivals", type=int, default=20, help="answers whose first token is timed under load, a round"
    )
    parser.add_argument(
        "--engines",
        nargs="+",
        choices=["builtin", "generate", "generate_batch"],
        default=["builtin", "generate"],
        help="to measure; generate_batch may take many minutes on a processor",
    )
    parser.add_argument("--gguf", nargs="*", default=[], help="files for llama.cpp")
    parser.add_argument("--memory-minutes", type=float, default=0)
    asked = parser.parse_args()
    if not {"builtin", "generate"} <= {*asked.engines}:
        parser.error("--engines must name builtin and generate: the floors are told by them")
    if asked.adapters < 0 or asked.adapters == 1:
        parser.error("--adapters must be 0 or at least 2")
    if asked.new_tokens < 2:
        parser.error("--new-tokens must be 2 or more: the first comes with the reading of the prompt")
    return asked


if __name__ == "__main__":
    sys.exit(main())
