"""Twins and factories for our tests and for plugin authors: a toy model that trains in a second, its rows and spec,
an executor whose processes are functions, and a whole server in a folder."""

from __future__ import annotations

import json
import random
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from luthier.core.clock import Clock
from luthier.core.settings import ExecutorSection, Section, ServerSection, Settings
from luthier.executors.base import Cores, Executor, Handle, Launch, Observation, State
from luthier.storage import Storage
from luthier.training.spec import DataFile, PluginChoice, TrainingSpec

if TYPE_CHECKING:
    from luthier.app import Parts

_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def toy_model(folder: Path, *, seed: int = 0, context: int = 512) -> Path:
    """Write a Llama of two layers with a byte tokenizer and a ChatML template into `folder`, and return it.

    27,000 parameters, `context` tokens that it reads, fp32 safetensors; the same seed gives the same weights.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = toy_tokenizer(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.2,  # wide enough that its logits can come to say something
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder, safe_serialization=True)
    return folder


def toy_tokenizer(folder: Path) -> Any:
    """Write only the toy's tokenizer into `folder`: one token a byte, and the markers of ChatML. Needs no torch."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bare = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(letters)}, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bare.decoder = decoders.ByteLevel()
    markers = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    bare.add_special_tokens([AddedToken(marker, special=True, normalized=False) for marker in markers])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=_CHATML,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def toy_rows(count: int = 12, *, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of the messages format, of different lengths, with a rule that can be learned: say the word back, twice."""
    dice = random.Random(seed)
    rows = []
    for _ in range(count):
        word = "".join(dice.choice("abcd") for _ in range(dice.randint(1, 6)))
        turns = [("user", word), ("assistant", f"{word} {word}")]
        rows.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    return rows


def toy_pairs(count: int = 12, *, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of the preferred_output format: to say the word back twice is better than once."""
    dice = random.Random(seed)
    rows = []
    for _ in range(count):
        word = "".join(dice.choice("abcd") for _ in range(dice.randint(1, 6)))
        answers = {
            name: [{"role": "assistant", "content": content}]
            for name, content in {"preferred_output": f"{word} {word}", "non_preferred_output": word}.items()
        }
        rows.append({"input": {"messages": [{"role": "user", "content": word}]}, **answers})
    return rows


def toy_texts(count: int = 12, *, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of the text format."""
    dice = random.Random(seed)
    return [{"text": " ".join(["".join(dice.choice("abcd") for _ in range(4))] * 3)} for _ in range(count)]


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    """Rows as the bytes of a file, one a line."""
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def toy_spec(
    storage: Storage,
    *,
    rows: list[dict[str, Any]] | None = None,
    validation: list[dict[str, Any]] | None = None,
    **changes: Any,
) -> TrainingSpec:
    """Store a toy model and its data, and return a spec that trains it in 9 steps; `changes` replace its fields."""
    from luthier.nets.loading import weights_sha256

    method: PluginChoice = changes.get("method", PluginChoice(name="lora"))

    with TemporaryDirectory() as name:
        folder = toy_model(Path(name))
        for path in folder.iterdir():
            storage.upload(path, f"models/toy/{path.name}")
        weights = weights_sha256(folder)

    def stored(key: str, data: list[dict[str, Any]]) -> DataFile:
        return DataFile(key=key, sha256=storage.write(key, jsonl(data)).sha256)

    settled: dict[str, Any] = {
        "job": "ftjob-toy",
        "base_model": "toy",
        "weights": "models/toy",
        "weights_sha256": weights,
        "training": stored("files/train", toy_rows() if rows is None else rows),
        "validation": None if validation is None else stored("files/valid", validation),
        "max_length": 64,
        "epochs": 3,
        "batch_size": 4,
        "micro_batch_tokens": 96,
        "learning_rate": 0.01,
        "seed": 1,
        "precision": "fp32",
        "threads": 1,
        "evaluate_every_steps": 3,
        "save_every_steps": 3,
        "share_prefixes": not method.options.get("dropout"),
        "fused": True,
    }
    return TrainingSpec(**settled | changes)


@dataclass
class InlineProcess:
    """A launch that is a function in a thread. `stopping` is set when it is asked to end; what it prints is its log."""

    launch: Launch
    stopping: threading.Event = field(default_factory=threading.Event)
    output: list[str] = field(default_factory=list)
    exit_code: int | None = None
    is_killed: bool = False
    asked_at: float | None = None
    thread: threading.Thread | None = None
    cores: Cores = ()

    def print(self, line: str) -> None:
        self.output.append(line + "\n")


class InlineExecutor(Executor):
    """Runs `script(process)` in a thread of its own instead of a process; what it returns is the exit code.

    A script that raises ends with 1 and its traceback in the log. A stop sets `process.stopping`; the force after it
    cannot end a thread, so it only stops counting as running. `started` has every launch, in order; `cores` of a process are
    those that it was given last.
    """

    def __init__(self, script: Callable[[InlineProcess], int], *, cores: int = 2) -> None:
        self.script = script
        self.started: list[Launch] = []
        self._cores = cores
        self._processes: dict[str, InlineProcess] = {}
        self._lock = threading.Lock()

    @property
    def cores(self) -> int:
        return self._cores

    def start(self, launch: Launch) -> Handle:
        with self._lock:
            if launch.name not in self._processes:
                self.started.append(launch)
                process = self._processes[launch.name] = InlineProcess(launch, cores=launch.cores)
                process.thread = threading.Thread(target=self._run, args=(process,), name=launch.name, daemon=True)
                process.thread.start()
        return {"name": launch.name}

    def move(self, handle: Handle, cores: Cores) -> None:
        if (process := self._processes.get(handle["name"])) is not None:
            process.cores = cores

    def observe(self, handle: Handle) -> Observation:
        process = self._processes.get(handle.get("name", ""))
        if process is None:
            return Observation(State.UNKNOWN)
        if process.is_killed:
            return Observation(State.ENDED)
        assert process.thread is not None
        if process.thread.is_alive():
            return Observation(State.RUNNING)
        return Observation(State.ENDED, process.exit_code)

    def stop(self, handle: Handle, *, grace_seconds: float) -> None:
        process = self._processes[handle["name"]]
        if process.asked_at is None:
            process.asked_at = time.monotonic()
            process.stopping.set()
        elif time.monotonic() >= process.asked_at + grace_seconds and self.observe(handle).state is State.RUNNING:
            process.is_killed = True

    def logs(self, name: str, *, last_bytes: int = 20_000) -> str:
        process = self._processes.get(name)
        whole = "".join(process.output).encode() if process else b""
        return whole[max(0, len(whole) - last_bytes) :].decode(errors="replace")

    def join(self, name: str, *, within_seconds: float = 60) -> Observation:
        """Wait until the process of that launch has ended, and say how."""
        thread = self._processes[name].thread
        assert thread is not None
        thread.join(within_seconds)
        return self.observe({"name": name})

    def _run(self, process: InlineProcess) -> None:
        try:
            process.exit_code = self.script(process)
        except Exception:
            process.print(traceback.format_exc())
            process.exit_code = 1


def toy_parts(folder: Path, executor: Executor, clock: Clock | None = None, **sections: Section) -> Parts:
    """The parts of a server that keeps everything in `folder` and starts its processes by `executor`; nothing runs yet.

    `sections` replace those of the settings; neither the environment nor a luthier.toml is read.
    """
    from luthier.app import assemble
    from luthier.control.datasets.workshop import InlineWorkshop

    server = ServerSection.model_validate({"data": folder})
    settled: dict[str, Any] = {"server": server, "executor": ExecutorSection(name="local", cores=executor.cores)}
    return assemble(Settings.model_construct(None, **settled | sections), clock, executor, InlineWorkshop)
