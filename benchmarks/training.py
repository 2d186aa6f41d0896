"""Training beside its peers: the same rows, adapter, optimizer and tokens a step, each trainer in its own environment, in turn.

    python -m benchmarks.training                                       # everything; hours, and it goes on where it stopped
    python -m benchmarks.training --data mixed --precision fp32 --rounds 3
    python -m benchmarks.training --data mixed --tokens 1500 --batch 2 --rounds 1 --peer trl --setting "one row"
    python -m benchmarks.training --shape 0.5b
    python -m benchmarks.training --scaling
    python -m benchmarks.training --device cuda --shape 1b --data mixed dpo --precision bf16    # then 8b, --method qlora
    python -m benchmarks.training --report                              # the tables of what is in the records, nothing is run

Trained is LoRA of rank 16 on all linear layers (alpha 32, no dropout) by AdamW at a constant rate, one pass over rows that
are made from a seed: `mixed` lengths, a long `shared` system prompt, and `dpo` with prompts much longer than the answers.
The embedded model is trained, or with `--shape` random numbers in the shape of a larger one. Luthier is run as a user runs
it, `luthier train` with a job file; each peer through its own configuration (see trainers.py). Gradient checkpointing is off
for all, since it makes all slower. Only what the assistant said is learned, but LLaMA-Factory and ms-swift learn one token
more of each answer, the newline behind it, and in dpo TRL does so too. TRL and Luthier compute what the reference says once,
before the first step of dpo; LLaMA-Factory and ms-swift have no such setting and compute it in each step. All take the rows
in the same order, but where a peer packs several rows into one sequence: it takes them in an order of its own.

On a GPU (`--device cuda`; it has not been run on one yet) Luthier compiles, and does not, and stands beside TRL with the default
padding, which is transformers' Trainer over PEFT, and beside TRL with Liger Kernel. Memory is then the GPU's, all of it that is
used: nothing else may run there. The floors are those of processors.

A run is a process of its own. Told are medians over the rounds, with the least and the most:

- steady: tokens a second from the end of the first optimizer step to the end of the last. Tokens are those of the rows as
  Luthier counts them, both sequences of a pair in full, shared prompts each time, without padding, whatever a trainer does.
- whole job: the same tokens over the time from the start of the process to its end, with loading, tokenising, compiling, the
  first step and saving. All that is beside the steady rate, and 300 rows at that rate, is the job of 300 rows, reckoned.
- memory: the most that the process held, and those that it started with it.
- share of the peak: of what torch's own product of large matrices does in the same round, at as many threads, by MKL or by
  oneDNN, whichever does more. The operations of a token are 4 × the weights of the linear layers (forward, and backward to the
  inputs: frozen weights need no more) + 6 × the weights of the adapter + attention, 6 × tokens of the sequence × width of the
  heads together in a layer, and for a learned token 4 × the weights of the head. What a trainer computes beside these, or is
  spared, changes none of them.

The exit code is 1 where a floor is missed, against the fastest setting of the fastest peer: steady 1.4 times in fp32 and 1.6 in
bf16, with a shared prompt 2, dpo 1.8; memory no higher than that setting's; a job of 300 rows no slower than by the quickest.
bf16 is measured only where the processor multiplies it. Measure on a quiet machine: beside other work, threads that wait for
each other lose far more than their share, and the trainers do not lose alike.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from benchmarks.data_sets import Row
from benchmarks.jobs import machine
from benchmarks.trainers import ALPHA, BETA, RANK, Job, Trained
from benchmarks.training_rows import rows_of
from luthier.chat.examples import sequences
from luthier.chat.renderers.base import Renderer, renderer_for
from luthier.chat.tokenizer import Tokenizer
from luthier.formats.base import formats
from luthier.storage import Storage
from luthier.training.data import BatchPlan
from luthier.training.events import Failed, Progress, Started, read_events
from luthier.training.precision import computes_in_bf16, has_gpu

HERE = Path(__file__).parent
TOO_LONG_SECONDS = 3600
WHOLE_JOB_ROWS = 300
MAX_LENGTH = 1024
SEED = 0
TORCH = "2.13.0"

PEERS = {
    "llamafactory": "llamafactory==0.9.5",
    "swift": "ms-swift==4.6.0",
    "trl": "trl==1.16.0",
    "axolotl": "axolotl==0.19.0",
}
ALSO = {"trl": ("peft==0.21.2", "transformers==5.23.0")}
ALSO_ON_GPU = ("bitsandbytes==0.50.2", "liger-kernel==0.8.5")
OVERRIDES = f"torch=={TORCH}\ntorchvision; sys_platform == 'never'\ntorchaudio; sys_platform == 'never'\n"
"""For every peer: the torch that Luthier has, without the packages that are built for that of a GPU and not used for text."""
AS_STORED = {"llamafactory"}
"""Peers that compute in the precision in which the weights are stored unless asked for bf16 or fp16."""
STAND_INS = {"llamafactory": "torchaudio"}
"""A module that a peer imports and, for text, never uses."""

SETTINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "sft": {
        "llamafactory": ("one row", "neat packing"),
        "swift": ("one row",),
        "trl": ("one row", "padding free", "packing", "default padding"),
        "axolotl": ("one row", "packing"),
    },
    "dpo": {"llamafactory": ("one row",), "swift": ("one row",), "trl": ("one row", "padding free", "default padding")},
}
EMBEDDED = "embedded"
TINY = "tiny"
SHAPES = (EMBEDDED, "0.5b", "1b", "8b", TINY)
OURS = "luthier"
AUTOMATIC = "automatic"
ON_GPU = {"trl": ("default padding", "liger")}
"""The peers' settings on a GPU."""
COMPILED = ("compiled = true", "compiled = false")
"""Ours, first the one that peers are compared with: a long job is compiled by itself, a measured run is too short for that."""
DATA = {"mixed": "sft", "shared": "sft", "dpo": "dpo"}
BATCHES = {"mixed": 8, "shared": 8, "dpo": 2}
RATES = {"sft": 2e-4, "dpo": 2e-5}
FLOORS = {"mixed": {"fp32": 1.4, "bf16": 1.6}, "shared": {"fp32": 2.0, "bf16": 2.0}, "dpo": {"fp32": 1.8, "bf16": 1.8}}

SCALING_LENGTHS = (64, 128, 256, 512, 900)
SCALING_RANKS = (4, 16, 64)
SCALING_BATCH_TOKENS = (768, 1024, 2048, 4096)

NOT_RUN = {
    "ms-swift 4.6.0, packing and padding_free": 'refused: "requires a flash attention implementation"',
    "LLaMA-Factory 0.9.5, neat packing of dpo": 'refused: "cannot be set as True except SFT"',
    "ms-swift 4.6.0, dpo with the reference precomputed": "refused: precompute_ref_log_probs is not supported",
    "unsloth 2026.10.7": 'import: "Unsloth cannot find any torch accelerator? You need a GPU."',
    "torchtune 0.6.1": f"import beside torch {TORCH}: No module named 'torchao.dtypes.nf4tensor'",
    "xtuner 0.2.0": "its engine imports torchvision, whose package for this torch is built for a GPU: "
    "operator torchvision::nms does not exist",
    "litgpt 0.5.13": "not tried beyond its start: its rows have one question and one answer, in forms of its own",
    "axolotl 0.19.0, dpo": "not tried",
}
"""Trainers and settings that are not measured, and why: on a processor, by the packages of a registry."""


@dataclass(frozen=True)
class Case:
    """What is trained. Cases that differ in nothing but the trainer are compared."""

    data: str
    shape: str
    precision: str
    tokens: int
    batch: int
    threads: int
    device: str = "cpu"
    method: str = "lora"

    @property
    def objective(self) -> str:
        return DATA.get(self.data, "sft")

    def __str__(self) -> str:
        model = f"random numbers in the shape {self.shape}" if self.shape != EMBEDDED else "the embedded model"
        where = f"{self.threads} threads" if self.device == "cpu" else "GPU"
        how = "" if self.method == "lora" else f"{self.method}, "
        return f"{how}{self.data}, {model}, {self.precision}, {self.batch} rows a step, {where}"


@dataclass(frozen=True)
class Record:
    """One run, as it is kept. `steps` are the seconds until the end of each step, the tokens until then and its loss.

    `learned` are the tokens that the trainer learned, 0 where that cannot be seen, `peak` the operations a second of a large
    product in the same round; `fault` says what ended a run early.
    """

    case: Case
    trainer: str
    setting: str
    round: int
    at: str
    rows: int
    row_tokens: int
    learned: int
    operations: float
    steps: list[tuple[float, int, float]]
    seconds: float
    memory: int
    peak: float
    libraries: dict[str, str]
    fault: str = ""

    @property
    def name(self) -> str:
        return f"{self.trainer}, {self.setting}"

    @property
    def counted(self) -> float:
        """Tokens that the trainer saw, as a share of those of the rows: 1 but for the words of its template."""
        return self.steps[-1][1] / self.row_tokens

    @property
    def steady(self) -> float:
        """Tokens a second, from the second step on."""
        (began, before, _), (ended, after, _) = self.steps[0], self.steps[-1]
        return (after - before) / self.counted / (ended - began) if ended > began else math.nan

    @property
    def whole(self) -> float:
        return self.row_tokens / self.seconds

    @property
    def seconds_of_many(self) -> float:
        """Of the whole job if it had 300 rows: what is not steady stays, the rest goes at the steady rate."""
        beside = self.seconds - self.row_tokens / self.steady
        return beside + WHOLE_JOB_ROWS * self.row_tokens / self.rows / self.steady

    @property
    def share(self) -> float:
        return self.steady * self.operations / self.row_tokens / self.peak

    @classmethod
    def read(cls, line: str) -> Record:
        plain = json.loads(line)
        return cls(**plain | {"case": Case(**plain["case"]), "steps": [tuple(step) for step in plain["steps"]]})


class Records:
    """A file with a line for each run, to which is only appended. A run that failed is there as well: it is made again once
    its line is taken out.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.is_file() else []
        self.all = [Record.read(line) for line in lines if line]

    def has(self, case: Case, trainer: str, setting: str, round: int) -> bool:
        asked = (case, trainer, setting, round)
        return any((one.case, one.trainer, one.setting, one.round) == asked for one in self.all)

    def add(self, record: Record) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(record)) + "\n")
        self.all.append(record)


@dataclass(frozen=True)
class Material:
    """The rows of a case, their tokens, and the operations of training them."""

    rows: list[Row]
    tokens: int
    learned: int
    operations: float


class Model:
    """Weights in a folder. `name` is what a job file of Luthier calls them."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self._renderer: Renderer = renderer_for(Tokenizer(folder))
        self._config: dict[str, Any] = json.loads((folder / "config.json").read_text())

    def material(self, case: Case) -> Material:
        """As many rows as have about the tokens that are asked for, a multiple of a step's and no fewer than of three steps."""
        form = formats.load("chosen_rejected" if case.objective == "dpo" else "messages")
        made, rows, found = rows_of(case.data, SEED), [], []
        while len(rows) < 3 * case.batch or sum(len(one.tokens) for one in found) < case.tokens:
            rows += (some := [next(made) for _ in range(case.batch)])
            values = [one.value for one in form.read([b"".join(json.dumps(row).encode() + b"\n" for row in some)])]  # pyright: ignore[reportAttributeAccessIssue]
            found += [one for row in sequences(values, self._renderer) for one in row]
        lengths = [len(one.tokens) for one in found]
        learned = sum(weight > 0 for one in found for weight in one.weights)
        return Material(rows, sum(lengths), learned, self._operations(lengths, learned))

    def _operations(self, lengths: list[int], learned: int) -> float:
        """As the head of this file says."""
        config = self._config
        width, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
        head = config.get("head_dim") or width // config["num_attention_heads"]
        queries, keys = head * config["num_attention_heads"], head * config["num_key_value_heads"]
        shapes = [(width, queries), *[(width, keys)] * 2, (queries, width), *[(width, inner)] * 2, (inner, width)]
        linear = layers * sum(a * b for a, b in shapes)
        adapter = layers * sum(RANK * (a + b) for a, b in shapes)
        attention = sum(6 * length**2 * queries * layers for length in lengths)
        return sum(lengths) * (4 * linear + 6 * adapter) + attention + 4 * learned * width * config["vocab_size"]


_TINY = """
import torch
from transformers import AutoConfig, AutoModelForCausalLM
config = AutoConfig.from_pretrained(sys.argv[1])
config.num_hidden_layers = 2
torch.manual_seed(0)
AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(sys.argv[2])
"""


_COPY = """
import sys, torch
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).save_pretrained(sys.argv[2])
"""


class Bench:
    """Where runs are made: a data folder of Luthier's, and a folder with an environment for each peer."""

    def __init__(self, data: Path, environments: Path) -> None:
        self._data, self._environments = data.absolute(), environments.expanduser().absolute()
        self._storage = Storage((self._data / "objects").as_uri())
        self.model = cache(self._model)
        self.material = cache(lambda case: self.model(case.shape).material(case))

    def _model(self, shape: str) -> Model:
        from luthier.control.catalog.installing import Installer
        from luthier.core.clock import SystemClock

        installer = Installer(self._storage, self._data / "scratch", sys.executable, SystemClock())
        installer.refresh()
        card = installer.embedded()
        embedded = self._storage.folder(card.weights)
        if shape == EMBEDDED:
            return Model(embedded, card.name)
        folder = self._data / f"training-{shape}"
        if not (folder / "model.safetensors").is_file():
            code = _TINY if shape == TINY else "write_shape(Path(sys.argv[2]), sys.argv[3])"
            code = f"import sys\nfrom pathlib import Path\nfrom benchmarks.engines import write_shape\n{code}"
            subprocess.run([sys.executable, "-c", code, embedded, folder, shape], check=True, cwd=HERE.parent)
        _copy_tokenizer(embedded, folder)  # any will do for random numbers
        return Model(folder, str(folder))

    def _weights(self, case: Case, peer: str) -> Path:
        """What a peer gets: the model's, or a copy in the case's precision where it computes in that of the file."""
        folder = self.model(case.shape).folder
        if peer not in AS_STORED or case.precision == "bf16":
            return folder
        copy = self._data / f"training-{case.shape}-{case.precision}"
        if not (copy / "tokenizer.json").is_file():
            subprocess.run([sys.executable, "-c", _COPY, folder, copy], check=True)
            _copy_tokenizer(folder, copy)
        return copy

    def run(self, case: Case, trainer: str, setting: str, number: int) -> Record:
        """One run. Luthier's setting is what is written beside the rest in its job file, as a line of it."""
        material, model = self.material(case), self.model(case.shape)
        python = self._environment(trainer, case.device) if trainer != OURS else Path(sys.executable)
        with tempfile.TemporaryDirectory() as scratch:
            if trainer == OURS:
                trained, spent = self._ours(case, setting, model, material, Path(scratch))
            else:
                trained, spent = _peers(
                    case, trainer, setting, python, self._weights(case, trainer), material, Path(scratch)
                )
        return Record(
            case=case,
            trainer=trainer,
            setting=setting,
            round=number,
            at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            rows=len(material.rows),
            row_tokens=material.tokens,
            learned=trained.steps[-1][2] if trained.steps else 0,
            operations=material.operations,
            steps=[(seconds, tokens, loss) for seconds, tokens, _, loss in trained.steps],
            seconds=round(spent.seconds, 2),
            memory=spent.memory,
            peak=matmul_peak(case.precision, case.threads, number, case.device),
            libraries=trained.libraries,
            fault=spent.fault,
        )

    def _ours(self, case: Case, setting: str, model: Model, material: Material, scratch: Path) -> tuple[Trained, Spent]:
        """`luthier train` with a job file in which is written what all trainers have in common; the rest is automatic."""
        data = scratch / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in material.rows))
        steps = len(material.rows) // case.batch
        options = {} if setting == AUTOMATIC else tomllib.loads(setting)
        rank = options.pop("rank", RANK)
        job = {
            "base_model": model.name,
            "training": data.name,
            "method": case.method,
            "objective": case.objective,
            "max_length": MAX_LENGTH,
            "epochs": 1,
            "batch_size": case.batch,
            "learning_rate": RATES[case.objective],
            "warmup_ratio": 0.0,
            "schedule": "constant",
            "seed": SEED,
            "precision": case.precision,
            "threads": case.threads,
            "save_every_steps": steps,
            "evaluate_every_steps": steps,
            "samples": 0,
            **options,
        }
        tables = {"method_options": {"rank": rank, "alpha": rank * ALPHA / RANK, "dropout": 0.0}}
        if case.objective == "dpo":
            tables["objective_options"] = {"beta": BETA}
        lines = [f"{name} = {json.dumps(value)}" for name, value in job.items()]
        for name, table in tables.items():
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
        (scratch / "job.toml").write_text("\n".join(lines) + "\n")
        before = set(self._jobs())
        found = Trained()
        try:
            spent = spend(
                [sys.executable, "-m", "luthier", "train", str(scratch / "job.toml"), "--data", str(self._data)],
                _environ(scratch, case),
                HERE.parent,
                case.device,
            )
            for name in set(self._jobs()) - before:
                events = read_events(self._storage, f"runs/{name}", 1, -1)
                told = [event for event in events if isinstance(event, Progress)]
                found.steps = [
                    (event.at.timestamp() - spent.began, event.trained_tokens, material.learned, event.loss)
                    for event in told
                ]
                found.libraries = next((event.libraries for event in events if isinstance(event, Started)), {})
                if events and isinstance(events[-1], Failed):
                    spent = replace(spent, fault=events[-1].message)
        finally:
            for name in set(self._jobs()) - before:
                self._storage.delete(f"runs/{name}")
        if not found.steps and not spent.fault:
            spent = replace(spent, fault="the same job had run before: delete its folder in objects/runs")
        return found, spent

    def _jobs(self) -> Iterator[str]:
        folder = self._data / "objects/runs"
        yield from (path.name for path in folder.iterdir()) if folder.is_dir() else ()

    def _environment(self, peer: str, device: str) -> Path:
        """The interpreter of a peer's environment, made where it is not there as it should be."""
        folder = self._environments / (peer if device == "cpu" else f"{peer}-{device}")
        python, stamp = folder / "bin/python", folder / "installed.txt"
        wanted = [PEERS[peer], *ALSO.get(peer, ()), *(() if device == "cpu" else ALSO_ON_GPU)]
        told = "\n".join([*wanted, OVERRIDES, STAND_INS.get(peer, "")])
        if stamp.is_file() and stamp.read_text() == told:
            return python
        print(f"making the environment of {peer} in {folder}", file=sys.stderr)
        uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
        as_pip = {"UV_FIND_LINKS": "PIP_FIND_LINKS", "UV_DEFAULT_INDEX": "PIP_INDEX_URL", "SSL_CERT_FILE": "PIP_CERT"}
        env = {name: os.environ[pip] for name, pip in as_pip.items() if os.environ.get(pip)} | os.environ
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        overrides = folder.parent / "overrides.txt"
        overrides.write_text(OVERRIDES)
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True, env=env)
        install = [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", str(python)]
        subprocess.run([*install, "--override", str(overrides), *wanted], check=True, env=env)
        if peer in STAND_INS:
            [packages] = folder.glob("lib/python*/site-packages")
            (packages / f"{STAND_INS[peer]}.py").write_text(
                '"""Stands where another package would, for an import."""\n'
            )
        stamp.write_text(told)
        return python


def _copy_tokenizer(source: Path, target: Path) -> None:
    for path in (*source.glob("tokenizer*.json"), *source.glob("chat_template.jinja")):
        shutil.copy(path, target)


def _peers(
    case: Case, peer: str, setting: str, python: Path, weights: Path, material: Material, scratch: Path
) -> tuple[Trained, Spent]:
    """A peer on the same rows, in the order in which Luthier takes them."""
    rows = len(material.rows)
    plan = BatchPlan(rows, SEED, case.batch, 1)
    order = [place for step in range(1, plan.total_steps + 1) for place in plan.rows_of(step)]
    data = scratch / "rows.jsonl"
    data.write_text("".join(json.dumps(_written_for(peer, material.rows[place])) + "\n" for place in order))
    job = Job(
        peer=peer,
        setting=setting,
        objective=case.objective,
        model=str(weights),
        data=str(data),
        out=str(scratch),
        precision=case.precision,
        threads=case.threads,
        rows=rows,
        batch=case.batch,
        step_tokens=material.tokens * case.batch / rows,
        max_length=MAX_LENGTH,
        learning_rate=RATES[case.objective],
        seed=SEED,
        began=time.time(),
        device=case.device,
        method=case.method,
    )
    command = [str(python), "-P", str(HERE / "trainers.py"), json.dumps(asdict(job))]
    spent = spend(command, _environ(scratch, case), scratch, case.device)
    told = scratch / "trained.json"
    if not told.is_file():
        return Trained(), replace(spent, fault=spent.fault or "it wrote nothing")
    return Trained(**json.loads(told.read_text())), spent


def _written_for(peer: str, row: Row) -> Row:
    """A row in the form that a peer reads; chat rows are read by all as they are."""
    if "chosen" not in row or peer == "llamafactory":
        return row
    if peer == "trl":
        return {"prompt": row["messages"], "chosen": [row["chosen"]], "rejected": [row["rejected"]]}
    return {"messages": [*row["messages"], row["chosen"]], "rejected_response": row["rejected"]["content"]}


def _environ(scratch: Path, case: Case) -> dict[str, str]:
    """That of a run: as many threads as asked for, no GPU unless one is, nothing fetched, no rows that an earlier run read."""
    caches = {name: str(scratch / "cache") for name in ("HF_HOME", "HF_DATASETS_CACHE", "MODELSCOPE_CACHE")}
    count = {name: str(case.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    if case.device == "cpu":
        count["CUDA_VISIBLE_DEVICES"] = ""
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "DISABLE_VERSION_CHECK": "1",
        "WANDB_DISABLED": "1",
    }
    return {**os.environ, "PYTHONPATH": str(HERE.parent), **caches, **count, **quiet}


@dataclass(frozen=True)
class Spent:
    """What a process took. `memory` are bytes; `fault` is the end of what it said where it ended badly."""

    began: float
    seconds: float
    memory: int
    fault: str = ""


def spend(command: list[str], env: dict[str, str], folder: Path, device: str = "cpu") -> Spent:
    """Run a program to its end. `memory` is that of the device."""
    most = 0
    with tempfile.TemporaryFile("w+") as said:
        began, clock = time.time(), time.monotonic()
        process = subprocess.Popen(
            command, env=env, cwd=folder, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT
        )
        try:
            while True:
                done, status, usage = os.wait4(process.pid, os.WNOHANG)
                seconds = time.monotonic() - clock
                if done:
                    break
                if seconds > TOO_LONG_SECONDS:
                    process.kill()
                most = max(most, held_together(process.pid) if device == "cpu" else held_on_gpu())
                time.sleep(0.2)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        last = said.read()[-3000:]
    resident = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    memory = max(most, resident) if device == "cpu" else most
    return Spent(began, seconds, memory, last if process.returncode else "")


def held_together(pid: int) -> int:
    """Bytes that a process and those that it started hold, what several share counted once; 0 where it is alone, whose
    own highest is known more exactly when it has ended.
    """
    try:
        root = psutil.Process(pid)
        others = root.children(recursive=True)
        if not others or platform.system() != "Linux":
            return 0
        return sum(one.memory_full_info().pss for one in (root, *others))
    except psutil.Error:  # one of them has just ended
        return 0


def held_on_gpu() -> int:
    """Bytes of the first GPU that are used, by whomever."""
    query = ["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.run(query, capture_output=True, text=True, check=True).stdout) * 1024**2


@cache
def matmul_peak(precision: str, threads: int, number: int, device: str) -> float:
    """Operations a second of a product of two large square matrices, the best of several; once a round, in its own process."""
    size = 2048 if device == "cpu" else 8192
    wait = "" if device == "cpu" else "; torch.cuda.synchronize()"
    dtype = {"fp32": "float32", "bf16": "bfloat16"}[precision]
    products = ["x @ y"]
    if device == "cpu":
        products.append("torch.ops.mkldnn._linear_pointwise(x, y, None, 'none', [], '')")
    code = (
        f"import time, torch; torch.set_num_threads({threads})\n"
        f"x, y = torch.randn(2, {size}, {size}, dtype=torch.{dtype}, device='{device}')\n"
        f"def once(product):\n    t = time.perf_counter(); product(){wait}; return time.perf_counter() - t\n"
        f"products = [{', '.join(f'lambda: {one}' for one in products)}]\n"
        f"print(2 * {size}**3 / min(once(product) for product in products for _ in range(12)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def scaling(asked: argparse.Namespace) -> dict[str, dict[str, tuple[Case, str]]]:
    """Runs of Luthier alone, by what changes and then by its values: the case and the setting."""
    precision = next((one for one in asked.precision if _is_multiplied(one)), "fp32")
    plain = Case("mixed", asked.shape, precision, asked.tokens, asked.batch or BATCHES["mixed"], asked.threads)
    lengths = {f"even-{length}": length for length in SCALING_LENGTHS}
    return {
        "tokens of a row": {str(length): (replace(plain, data=data), AUTOMATIC) for data, length in lengths.items()},
        "rank": {str(rank): (plain, AUTOMATIC if rank == RANK else f"rank = {rank}") for rank in SCALING_RANKS},
        "micro_batch_tokens": {str(each): (plain, f"micro_batch_tokens = {each}") for each in SCALING_BATCH_TOKENS},
        "rows of a step": {str(rows): (replace(plain, batch=rows), AUTOMATIC) for rows in (1, 2, 4, 8, 16)},
        "threads": {str(each): (replace(plain, threads=each), AUTOMATIC) for each in range(1, asked.threads + 1)},
        "model": {shape: (replace(plain, shape=shape), AUTOMATIC) for shape in (EMBEDDED, "0.5b")},
    }


def report_scaling(tables: dict[str, dict[str, tuple[Case, str]]], records: list[Record]) -> None:
    for what, values in tables.items():
        print(f"\n| {what} | steady tokens/s | GB | of the peak | runs |\n|---|---|---|---|---|")
        for value, (case, setting) in values.items():
            if some := runs_of(records, case).get((OURS, setting)):
                gigabytes = _spread([run.memory / 1e9 for run in some], 2)
                steady, share = _spread([run.steady for run in some]), middle(some, "share")
                print(f"| {value} | {steady} | {gigabytes} | {share:.0%} | {len(some)} |")


# The tables


Runs = dict[tuple[str, str], list[Record]]
"""The runs of a case that ended well, by trainer and setting."""


def runs_of(records: list[Record], case: Case) -> Runs:
    found: Runs = {}
    for one in records:
        if one.case == case and not one.fault and len(one.steps) > 1:
            found.setdefault((one.trainer, one.setting), []).append(one)
    return found


def middle(runs: list[Record], what: str) -> float:
    return statistics.median(getattr(one, what) for one in runs)


def best_peer(runs: Runs) -> tuple[str, str] | None:
    """The setting with the highest steady median that is not ours; None where no peer has run."""
    peers = [key for key in runs if key[0] != OURS]
    return max(peers, key=lambda key: middle(runs[key], "steady"), default=None)


def missed(case: Case, runs: Runs) -> list[str]:
    """The floors that are not kept, in words; none where one side was not measured."""
    ours, peer = runs.get((OURS, COMPILED[0])), best_peer(runs)
    if ours is None or peer is None or case.device != "cpu":
        return []
    theirs, faults = runs[peer], []
    ratio, floor = middle(ours, "steady") / middle(theirs, "steady"), FLOORS[case.data][case.precision]
    if not ratio >= floor:
        faults.append(f"{case}: {ratio:.2f} times {', '.join(peer)}, the floor is {floor:g}")
    held = middle(ours, "memory") / middle(theirs, "memory")
    if not held <= 1:
        faults.append(f"{case}: {held:.2f} times the memory of {', '.join(peer)}")
    longer = middle(ours, "seconds_of_many") / min(
        middle(some, "seconds_of_many") for key, some in runs.items() if key[0] != OURS
    )
    if not longer <= 1:
        faults.append(
            f"{case}: a job of {WHOLE_JOB_ROWS} rows takes {longer:.2f} times as long as by the quickest peer"
        )
    return faults


def report(cases: list[Case], records: list[Record]) -> list[str]:
    """Print what was measured; the floors that are missed."""
    faults: list[str] = []
    for case in cases:
        runs = runs_of(records, case)
        if runs:
            _print_case(case, runs)
            faults += missed(case, runs)
        for fault in (one for one in records if one.case == case and one.fault):
            print(f"\n{fault.name}, round {fault.round + 1}, did not end well: {_shortly(fault.fault)}")
    print("\n" + ("\n".join(f"- Missed. {one}" for one in faults) or "No floor that was measured is missed."))
    _print_libraries(records)
    if NOT_RUN:
        print("\n| not run | why |\n|---|---|")
        for name, why in NOT_RUN.items():
            print(f"| {name} | {why} |")
    return faults


def _print_case(case: Case, runs: Runs) -> None:
    one = next(iter(runs.values()))[0]
    print(f"\n## {case}\n\n{one.rows} rows, {one.row_tokens:,} tokens, {len(one.steps)} steps.\n")
    heads = (
        "steady tokens/s",
        "times",
        "whole job tokens/s",
        "times",
        f"{WHOLE_JOB_ROWS} rows, s",
        "GB",
        "of the peak",
    )
    print(f"| trainer, setting | runs | {' | '.join(heads)} |\n|---|---|{'---|' * len(heads)}")
    ours = runs.get((OURS, COMPILED[0]))
    for key, some in sorted(runs.items(), key=lambda pair: (pair[0][0] != OURS, -middle(pair[1], "steady"))):
        cells = []
        for what in ("steady", "whole"):
            ratio = f"{middle(ours, what) / middle(some, what):.2f}" if ours else ""
            cells += [_spread([getattr(run, what) for run in some]), ratio]
        cells += [
            f"{middle(some, 'seconds_of_many'):.0f}",
            _spread([run.memory / 1e9 for run in some], 2),
            f"{middle(some, 'share'):.0%}",
            f"{some[0].learned:,}" if some[0].learned else "",
        ]
        print(f"| {', '.join(key)} | {len(some)} | {' | '.join(cells)} |")
    _print_losses(runs)


def _print_losses(runs: Runs) -> None:
    """The losses of the steps, of each trainer's first run; packed rows come in another order, so the steps differ."""
    steps = max(len(some[0].steps) for some in runs.values())
    print(f"\n| loss of step | {' | '.join(str(step + 1) for step in range(steps))} |\n|---|{'---|' * steps}")
    for key, some in runs.items():
        losses = [f"{loss:.4f}" for *_, loss in some[0].steps]
        print(f"| {', '.join(key)} | {' | '.join([*losses, *[''] * (steps - len(losses))])} |")


def _print_libraries(records: list[Record]) -> None:
    latest = {one.trainer: one.libraries for one in records if one.libraries}
    for trainer, found in latest.items():
        print(f"\n{trainer}: {', '.join(f'{name} {number}' for name, number in found.items())}")


def _spread(values: list[float], digits: int = 0) -> str:
    told = f"{statistics.median(values):.{digits}f}"
    return told if len(values) == 1 else f"{told} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _shortly(fault: str) -> str:
    lines = [line for line in fault.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def main() -> int:
    asked = _asked()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what is being run ends as well
    records = Records(asked.records)
    cases = [
        Case(
            data,
            asked.shape,
            precision,
            asked.tokens,
            asked.batch or BATCHES[data] * (1 if asked.device == "cpu" else 8),
            asked.threads,
            asked.device,
            asked.method,
        )
        for precision in asked.precision
        for data in asked.data
    ]
    print(f"    python -m benchmarks.training {' '.join(sys.argv[1:])}\n\n{machine(asked.threads)}.")
    if asked.scaling:
        return _scale(asked, records)
    for case in [case for case in cases if not _is_multiplied(case.precision)]:
        print(f"\n{case}: not measured, this processor does not multiply bf16.")
        cases.remove(case)
    if not asked.report:
        bench = Bench(asked.models, asked.environments)
        for turn in _turns(cases, asked):
            _take(bench, records, *turn)
    return 1 if report(cases, records.all) else 0


def _scale(asked: argparse.Namespace, records: Records) -> int:
    tables = scaling(asked)
    if not asked.report:
        bench = Bench(asked.models, asked.environments)
        turns = dict.fromkeys(turn for values in tables.values() for turn in values.values())
        for number in range(asked.rounds):
            for case, setting in turns:
                _take(bench, records, case, number, OURS, setting)
    report_scaling(tables, records.all)
    return 0


def _take(bench: Bench, records: Records, case: Case, number: int, trainer: str, setting: str) -> None:
    """A run, and its record; nothing where there is one."""
    if records.has(case, trainer, setting, number):
        return
    records.add(record := bench.run(case, trainer, setting, number))
    told = _shortly(record.fault) if record.fault else f"{record.steady:.0f} tokens/s"
    print(f"{time.strftime('%H:%M:%S')} {case}, round {number + 1}: {record.name}: {told}", file=sys.stderr)


def _is_multiplied(precision: str) -> bool:
    """Whether this machine computes in it itself."""
    return precision == "fp32" or computes_in_bf16() or has_gpu()


def _turns(cases: list[Case], asked: argparse.Namespace) -> Iterator[tuple[Case, int, str, str]]:
    """Every run, a round after the other: in a round each trainer's settings once."""
    for case in cases:
        for number in range(asked.rounds):
            if OURS in asked.peer:
                ours = [setting for setting in COMPILED if setting in (asked.setting or ())] or COMPILED
                yield from ((case, number, OURS, setting) for setting in ours)
            peers = SETTINGS[case.objective] if case.device == "cpu" else ON_GPU
            for peer, settings in peers.items():
                for setting in settings:
                    if peer in asked.peer and (not asked.setting or setting in asked.setting):
                        yield case, number, peer, setting


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", nargs="+", choices=[OURS, *PEERS], default=[OURS, *PEERS], help="trainers to run")
    parser.add_argument("--setting", nargs="+", help="only these; ours are both taken where none of them is named")
    parser.add_argument("--data", nargs="+", choices=[*DATA], default=[*DATA])
    parser.add_argument("--shape", choices=SHAPES, default=EMBEDDED, help="tiny: to try the program out")
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--method", choices=["lora", "qlora"], default="lora", help="qlora: of the peers only TRL")
    parser.add_argument(
        "--tokens", type=int, help="of a run, about; absent: 12,000, of a larger shape 4,000, on a GPU 400,000"
    )
    parser.add_argument(
        "--batch", type=int, help="rows of an optimizer step; absent: 8, of dpo 2; on a GPU 8 times as many"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--records", type=Path, default=Path("training.jsonl"), help="file that runs are appended to")
    parser.add_argument("--models", type=Path, default=HERE.parent / ".luthier", help="folder with the embedded model")
    parser.add_argument(
        "--environments", type=Path, default=Path("~/.cache/luthier/peers"), help="folder of the peers' environments"
    )
    parser.add_argument(
        "--scaling", action="store_true", help="Luthier alone, by length, rank, batch, threads and model"
    )
    parser.add_argument("--report", action="store_true", help="run nothing")
    asked = parser.parse_args()
    if asked.method == "qlora":
        asked.peer = [one for one in asked.peer if one in (OURS, "trl")]
    usual = 12_000 if asked.shape == EMBEDDED else 4_000
    asked.tokens = asked.tokens or (usual if asked.device == "cpu" else 400_000)
    return asked


if __name__ == "__main__":
    sys.exit(main())
