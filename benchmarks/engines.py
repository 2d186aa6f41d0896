"""Engines side by side: each makes the same answers of the same prompts, in a process of its own.

`python -m benchmarks.engines WORK`, where WORK is JSON, prints JSON; `benchmarks.serving` puts the work together.
"""

from __future__ import annotations

import json
import random
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RANK = 16
REST_SECONDS = 2  # before each measurement, as a server has between requests: what is done at the start is over by then
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Work:
    """What one process is to do. `storage` is a folder with the model under `weights` and the adapters under adapters/."""

    engine: str
    storage: str
    weights: str
    precision: str
    batches: list[int]
    adapters: int
    """How many of them a batch uses, in turn; 0: the base model alone."""
    prompt_tokens: int
    new_tokens: int
    threads: int
    seed: int
    gguf: str = ""
    arrivals: int = 0
    """How many answers to ask for one after the other while eight are being made, for the time to their first token."""
    memory_minutes: float = 0.0


@dataclass
class Found:
    """Tokens a second by the size of the batch: made while all is done, the reading of the prompts included; made once they
    are read; and read. `own_` is the same of the base model alone in the same process, each batch right after the one with
    adapters: machines change their pace from minute to minute. Times to the first token in milliseconds; (seconds, MiB)
    under load.
    """

    rates: dict[int, float] = field(default_factory=dict)
    made: dict[int, float] = field(default_factory=dict)
    read: dict[int, float] = field(default_factory=dict)
    own_rates: dict[int, float] = field(default_factory=dict)
    own_made: dict[int, float] = field(default_factory=dict)
    own_read: dict[int, float] = field(default_factory=dict)
    first_ms: list[float] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)


class Contender(ABC):
    @abstractmethod
    def __init__(self, work: Work) -> None: ...

    @abstractmethod
    def answer(self, prompts: list[list[int]], adapters: Sequence[str | None], new_tokens: int) -> int:
        """Make an answer of exactly so many tokens to each prompt, greedily, all at once; how many tokens were made."""


class Builtin(Contender):
    """The engine of Luthier by its contract."""

    def __init__(self, work: Work) -> None:
        from luthier.nets.loading import weights_sha256
        from luthier.serving.backends.base import backends, load_adapter
        from luthier.serving.protocol import AdapterRef
        from luthier.serving.spec import ReplicaSpec
        from luthier.storage import Storage, digest

        storage = Storage(Path(work.storage).absolute().as_uri())
        spec = ReplicaSpec.model_validate(
            {
                "replica": "rep-1",
                "base_model": "base",
                "weights": work.weights,
                "weights_sha256": weights_sha256(storage.folder(work.weights)),
                "precision": work.precision,
                "threads": work.threads,
                "adapters": max(1, work.adapters),
                "listen": "",
            }
        )
        self.backend = backends.load(spec.backend).open(spec, storage)
        for id in adapter_ids(work.adapters):
            folder = storage.folder(f"adapters/{id}")
            load_adapter(self.backend, storage, AdapterRef(id=id, key=f"adapters/{id}", sha256=digest(folder)))

    def answer(self, prompts: list[list[int]], adapters: Sequence[str | None], new_tokens: int) -> int:
        for prompt, adapter in zip(prompts, adapters, strict=True):
            self.begin(prompt, adapter, new_tokens)
        made = 0
        while not self.backend.is_idle:
            made += self.step()
        return made

    def begin(self, prompt: list[int], adapter: str | None, new_tokens: int) -> Any:
        from luthier.serving.backends.base import Asked
        from luthier.serving.protocol import Sampling

        asked = Asked(prompt, Sampling(temperature=0, max_tokens=new_tokens), frozenset(), adapter)
        self.backend.begin(asked)
        return asked

    def step(self, until_first: Any = None) -> int | bool:
        """How many tokens a step made; with `until_first` whether one of them is that answer's."""
        said = self.backend.step()
        for one in said:
            if one.error is not None:
                raise one.error
        if until_first is not None:
            return any(one.asked is until_first and one.token is not None for one in said)
        return sum(one.token is not None for one in said)


class Generate(Contender):
    """transformers' `generate`; with adapters PEFT's, which takes one for each row of the batch."""

    def __init__(self, work: Work) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        folder = Path(work.storage) / work.weights
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[work.precision]
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True).eval()
        self.model: Any = model.cuda() if torch.cuda.is_available() else model
        self.model.generation_config.eos_token_id = None
        self.model.generation_config.pad_token_id = 0
        ids = adapter_ids(work.adapters)
        if ids:
            from peft import PeftModel

            places = {id: str(Path(work.storage) / "adapters" / id) for id in ids}
            self.model = PeftModel.from_pretrained(self.model, places[ids[0]], adapter_name=ids[0]).eval()
            for id in ids[1:]:
                self.model.load_adapter(places[id], adapter_name=id)
            self.model.set_adapter(ids[0])
        self.is_mixed = len(ids) > 1

    def answer(self, prompts: list[list[int]], adapters: Sequence[str | None], new_tokens: int) -> int:
        import torch

        ids_BT = torch.tensor(prompts, device=self.model.device)
        mixed = {"adapter_names": list(adapters)} if self.is_mixed else {}
        with torch.inference_mode():
            out_BT = self.model.generate(
                input_ids=ids_BT,
                attention_mask=torch.ones_like(ids_BT),
                max_new_tokens=new_tokens,
                do_sample=False,
                **mixed,
            )
        return (out_BT.shape[1] - ids_BT.shape[1]) * len(prompts)


class GenerateBatch(Generate):
    """transformers' continuous batching, as `generate_batch` offers it, with a cache as large as the work needs.

    Left alone it takes most of the machine's memory for its cache, which on a processor costs minutes.
    """

    def __init__(self, work: Work) -> None:
        from transformers import ContinuousBatchingConfig

        super().__init__(work)
        most, page = max(work.batches), 256
        pages = -(-(work.prompt_tokens + work.new_tokens) // page)
        read_at_once = max(512, most * work.prompt_tokens)
        self.settings = ContinuousBatchingConfig(
            page_size=page, num_blocks=(most + 1) * pages, max_batch_tokens=read_at_once
        )

    def answer(self, prompts: list[list[int]], adapters: Sequence[str | None], new_tokens: int) -> int:
        from transformers import GenerationConfig

        settings = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
        done = self.model.generate_batch(prompts, settings, self.settings, persistent_manager=True)
        return sum(len(one.generated_tokens) for one in done.values())


class LlamaCpp(Contender):
    """llama.cpp within this process by the xllamacpp wheel, with a slot for each answer and no prompt cached."""

    def __init__(self, work: Work) -> None:
        import xllamacpp  # pyright: ignore[reportMissingImports]

        most = max(work.batches)
        params = xllamacpp.CommonParams()
        params.model.path = work.gguf
        params.n_parallel = most
        params.n_ctx = most * (work.prompt_tokens + work.new_tokens + 16)
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = work.threads
        params.cache_prompt, params.cache_ram_mib = False, 0
        params.warmup = False
        self.server = xllamacpp.Server(params)
        self.clients = ThreadPoolExecutor(most)

    def answer(self, prompts: list[list[int]], adapters: Sequence[str | None], new_tokens: int) -> int:
        def one(prompt: list[int]) -> int:
            body = {"prompt": prompt, "max_tokens": new_tokens, "n_predict": new_tokens, "temperature": 0}
            done = self.server.handle_completions({**body, "ignore_eos": True, "cache_prompt": False})
            return done["usage"]["completion_tokens"]

        return sum(self.clients.map(one, prompts))


CONTENDERS: dict[str, type[Contender]] = {
    "builtin": Builtin,
    "generate": Generate,
    "generate_batch": GenerateBatch,
    "llama.cpp": LlamaCpp,
}


def adapter_ids(count: int) -> list[str]:
    return [f"ad-{number}" for number in range(count)]


def perform(work: Work) -> Found:
    contender, dice, found = CONTENDERS[work.engine](work), random.Random(work.seed), Found()  # noqa: S311
    vocabulary = json.loads((Path(work.storage) / work.weights / "config.json").read_text())["vocab_size"]

    def prompts(count: int, length: int) -> list[list[int]]:
        return [[dice.randrange(vocabulary) for _ in range(length)] for _ in range(count)]

    def adapters(count: int) -> list[str | None]:
        ids = adapter_ids(work.adapters)
        return [ids[place % len(ids)] if ids else None for place in range(count)]

    contender.answer(prompts(1, work.prompt_tokens), adapters(1), 4)  # what is made at the first use is made now

    def measure(batch: int, used: list[str | None]) -> tuple[float, float, float]:
        seconds = []
        for new_tokens in (1, work.new_tokens):
            asked = prompts(batch, work.prompt_tokens)
            time.sleep(REST_SECONDS)
            began = time.perf_counter()
            made = contender.answer(asked, used, new_tokens)
            seconds.append(time.perf_counter() - began)
            if made != batch * new_tokens:
                raise SystemExit(f"{work.engine} made {made} tokens of {batch * new_tokens}")
        reading, whole = seconds
        once_read = batch * (work.new_tokens - 1) / (whole - reading)
        return batch * work.new_tokens / whole, once_read, batch * work.prompt_tokens / reading

    for batch in work.batches:
        found.rates[batch], found.made[batch], found.read[batch] = measure(batch, adapters(batch))
        if isinstance(contender, Builtin) and work.adapters:
            own = measure(batch, [None] * batch)
            found.own_rates[batch], found.own_made[batch], found.own_read[batch] = own
    if isinstance(contender, Builtin):
        if work.arrivals:
            found.first_ms = first_tokens(contender, work, prompts, adapters)
        if work.memory_minutes:
            found.memory = memory(contender, work, prompts, adapters, dice)
    return found


Prompts = Callable[[int, int], list[list[int]]]
Adapters = Callable[[int], list[str | None]]


def first_tokens(engine: Builtin, work: Work, prompts: Prompts, adapters: Adapters) -> list[float]:
    """Milliseconds from taking an answer in to its first token, while eight others are being made all the time."""
    others: list[Any] = []
    times = []
    for prompt in prompts(work.arrivals, work.prompt_tokens):
        for other in others:
            engine.backend.cancel(other)
        given = zip(prompts(8, work.prompt_tokens), adapters(8), strict=True)
        others = [engine.begin(one, adapter, 4 * work.new_tokens) for one, adapter in given]
        missing = set(map(id, others))
        while missing:
            missing -= {id(one.asked) for one in engine.backend.step() if one.token is not None}
        began = time.perf_counter()
        asked = engine.begin(prompt, adapters(1)[0], 1)
        while not engine.step(until_first=asked):
            pass
        times.append((time.perf_counter() - began) * 1000)
    for other in others:
        engine.backend.cancel(other)
    return times


def memory(
    engine: Builtin, work: Work, prompts: Prompts, adapters: Adapters, dice: random.Random
) -> list[tuple[float, float]]:
    """What the process holds, every few seconds, under answers of all lengths of which some are cancelled."""
    import psutil

    process, began, running = psutil.Process(), time.monotonic(), []
    taken: list[tuple[float, float]] = []
    every = work.memory_minutes * 60 / 40
    while (now := time.monotonic() - began) < work.memory_minutes * 60:
        if now >= len(taken) * every:
            taken.append((now, process.memory_info().rss / 2**20))
        if len(running) < max(work.batches):
            [prompt] = prompts(1, dice.randint(4, 2 * work.prompt_tokens))
            adapter = dice.choice(adapters(max(1, work.adapters)))
            running.append(engine.begin(prompt, adapter, dice.randint(1, 2 * work.new_tokens)))
        if running and dice.random() < 0.01:
            engine.backend.cancel(running.pop(dice.randrange(len(running))))
        ended = {id(one.asked) for one in engine.backend.step() if one.is_last or one.error is not None}
        running = [one for one in running if id(one) not in ended]
    return taken


def write_adapters(storage: Path, weights: str, count: int) -> None:
    """Adapters with random numbers over all linear layers, as PEFT writes them."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    missing = [id for id in adapter_ids(count) if not (storage / "adapters" / id).exists()]
    if not missing:
        return
    model = AutoModelForCausalLM.from_pretrained(storage / weights, dtype=torch.float32, local_files_only=True)
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS, task_type="CAUSAL_LM")
    peft: Any = get_peft_model(model, config)
    for id in missing:
        torch.manual_seed(int(id.removeprefix("ad-")))
        for name, weight in peft.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weight, std=0.02)
        peft.save_pretrained(storage / "adapters" / id)


_LLAMA = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "tie_word_embeddings": True},
    "8b": {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "tie_word_embeddings": False},
}


def write_shape(folder: Path, shape: str) -> Path:
    """A model with random numbers in a known shape: `0.5b` is Qwen2's, `1b` and `8b` are Llama 3's, `toy` the tests' twin."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    from luthier.testing import toy_model

    if folder.exists():
        return folder
    if shape == "toy":
        return toy_model(folder, context=2048)
    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
    )
    torch.manual_seed(0)
    model: Any
    if shape in _LLAMA:
        of_llama: Any = {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256, **_LLAMA[shape]}
        model = LlamaForCausalLM(LlamaConfig(**of_llama, max_position_embeddings=131_072, dtype=torch.bfloat16))
    else:
        model = Qwen2ForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def main() -> None:
    found = perform(Work(**json.loads(sys.argv[1])))
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()
