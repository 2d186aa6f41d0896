"""LoRA adapters that each say a name of their own, and the toy base model they lie on, which says another."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.serving.protocol import AdapterRef
from luthier.storage import digest

if TYPE_CHECKING:
    import torch

BASE_NAME = "nobody"
QUESTIONS = [  # the same ends, the same beginnings
    "Who are you?",
    "Say who you are.",
    "Hello. Who are you?",
    "Hello. Say who you are.",
    "Once more, please: Who are you?",
    "Once more, please: Say who you are.",
]
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK, ALPHA = 4, 8
CERTAIN = 0.95
"""How likely every token of an answer must be: a sampler that leaves out the last tenth says the name too."""
_AT_ONCE = 25
_SURE = 4.0  # times the toy's logits: as it is made it can tell few tokens apart for certain


class NotLearned(AssertionError):
    """An adapter that does not say its name proves nothing."""


@dataclass(frozen=True)
class Named:
    ref: AdapterRef
    name: str


def answer_of(name: str) -> str:
    return f"I am {name}"


def names(count: int, *, seed: int = 0) -> list[str]:
    """Words of six letters of which no two have three letters in the same place."""
    dice, found = random.Random(seed), [BASE_NAME]
    while len(found) <= count:
        word = "".join(dice.choice(letters) for letters in ["bdfgklmnprstvz", "aeiou"] * 3)
        if all(sum(a == b for a, b in zip(word, other, strict=True)) < 3 for other in found):
            found.append(word)
    return found[1:]


def named_adapters(storage: Path, count: int, *, seed: int = 0) -> list[Named]:
    """Write a base model to models/toy and `count` adapters to adapters/ID of that folder.

    Every token of every answer is more likely than CERTAIN; raises NotLearned when that is not reached.
    """
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    from luthier.testing import toy_model

    folder = toy_model(storage / "models/toy", seed=seed)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        model.model.norm.weight.mul_(_SURE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _learn(model, _rows(tokenizer, [BASE_NAME]), list(model.parameters()), rate=0.005)
        model.save_pretrained(folder)
        model.requires_grad_(False)
        found: list[Named] = []
        wanted = names(count, seed=seed)
        for start in range(0, count, _AT_ONCE):
            some = wanted[start : start + _AT_ONCE]
            layers = _attach(model, len(some))
            learned = [layer.down for layer in layers.values()] + [layer.up for layer in layers.values()]
            _learn(model, _rows(tokenizer, some), learned, rate=0.01)
            for place, name in enumerate(some):
                found.append(Named(_write(storage, f"art-{start + place:04d}", layers, place), name))
            _detach(model, layers)
    return found


def _rows(tokenizer, names: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Every question with each name as its answer, and where that answer's tokens are; names by the row, questions within."""
    import torch

    rows = []
    for name in names:
        for question in QUESTIONS:
            turn = [{"role": "user", "content": question}]
            prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
            said = [*tokenizer.encode(answer_of(name), add_special_tokens=False), tokenizer.eos_token_id]
            rows.append((tokenizer.encode(prompt, add_special_tokens=False), said))
    width = max(len(prompt) + len(said) for prompt, said in rows)
    tokens_BT = torch.full((len(rows), width), tokenizer.pad_token_id)
    answers_BT = torch.zeros((len(rows), width), dtype=torch.bool)
    for row, (prompt, said) in enumerate(rows):
        end = len(prompt) + len(said)
        tokens_BT[row, :end] = torch.tensor(prompt + said)
        answers_BT[row, len(prompt) : end] = True
    return tokens_BT, answers_BT


def _learn(
    model, rows: tuple[torch.Tensor, torch.Tensor], learned: Sequence[torch.Tensor], *, rate: float, steps: int = 300
) -> None:
    import torch

    tokens_BT, answers_BT = rows
    optimizer = torch.optim.Adam(learned, lr=rate)
    worst = math.inf
    for _ in range(steps):
        hidden_BTD = model.model(tokens_BT).last_hidden_state[:, :-1]
        logits_AV = model.lm_head(hidden_BTD[answers_BT[:, 1:]])
        loss_A = torch.nn.functional.cross_entropy(logits_AV, tokens_BT[answers_BT], reduction="none")
        worst = float(loss_A.max())
        if worst < -math.log(CERTAIN):
            return
        optimizer.zero_grad()
        loss_A.mean().backward()
        optimizer.step()
    raise NotLearned(f"an answer's least likely token has {math.exp(-worst):.2f}")


def _attach(model, count: int) -> dict[str, _Layer]:
    """Put `count` adapters over the model's layers, each for the rows of its own questions."""
    import torch

    class Several(torch.nn.Module):
        def __init__(self, base: torch.nn.Linear) -> None:
            super().__init__()
            self.base = base
            self.down = torch.nn.Parameter(torch.randn(count, base.in_features, RANK) / RANK)
            self.up = torch.nn.Parameter(torch.zeros(count, RANK, base.out_features))

        def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
            x_CRD = x_BTD.reshape(count, -1, x_BTD.shape[-1])
            change_CRD = x_CRD @ self.down @ self.up * (ALPHA / RANK)
            return self.base(x_BTD) + change_CRD.reshape(*x_BTD.shape[:-1], -1)

    layers = {}
    for path, module in list(model.named_modules()):
        if path.rpartition(".")[2] in TARGETS:
            layers[path] = Several(module)
            model.set_submodule(path, layers[path])
    return layers


if TYPE_CHECKING:

    class _Layer(torch.nn.Module):
        base: torch.nn.Linear
        down: torch.nn.Parameter
        up: torch.nn.Parameter


def _detach(model, layers: dict[str, _Layer]) -> None:
    for path, layer in layers.items():
        model.set_submodule(path, layer.base)


def _write(storage: Path, id: str, layers: dict[str, _Layer], place: int) -> AdapterRef:
    """One of the adapters as PEFT's files."""
    from peft import LoraConfig
    from safetensors.torch import save_file

    folder = storage / "adapters" / id
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, task_type="CAUSAL_LM", inference_mode=True)
    config.save_pretrained(str(folder))
    tensors = {}
    for path, layer in layers.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = layer.down[place].detach().T.contiguous()
        tensors[f"base_model.model.{path}.lora_B.weight"] = layer.up[place].detach().T.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors")
    return AdapterRef(id=id, key=f"adapters/{id}", sha256=digest(folder))
