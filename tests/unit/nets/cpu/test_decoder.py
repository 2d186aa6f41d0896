"""A compiled pass gives what the library gives, whoever else is in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from luthier.nets.cpu.decoder import Decoder, decoder_of
from luthier.nets.paged.bank import Bank, Thin
from luthier.nets.paged.batch import BLOCK, PagedBatch
from luthier.nets.paged.pool import Pool

SHAPE: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 48,
    "intermediate_size": 100,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"head_dim": 12}),
    "llama of long contexts": (
        LlamaForCausalLM,
        LlamaConfig,
        {
            "head_dim": 40,
            "attention_bias": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "mistral": (MistralForCausalLM, MistralConfig, {"head_dim": 64, "sliding_window": None}),
    "qwen2, tied": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True, "hidden_size": 64}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 128}),
    "wide": (LlamaForCausalLM, LlamaConfig, {"hidden_size": 96, "intermediate_size": 4500, "num_attention_heads": 2}),
}


def _model(name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    kind, config, more = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = kind(config(**SHAPE | more | changes)).eval()
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases that change something
                torch.nn.init.normal_(parameter, 0.7, 0.2)
    return model.to(dtype)


def _pool(model: Any, blocks: int = 64) -> Pool:
    attention = model.model.layers[0].self_attn
    return Pool.of(
        layers=len(model.model.layers),
        heads=attention.k_proj.out_features // attention.head_dim,
        width=attention.head_dim,
        blocks=blocks,
        dtype=attention.k_proj.weight.dtype,
        device=torch.device("cpu"),
    )


@dataclass
class Sequence:
    """Tokens, of which `done` have gone through a pass, and the blocks where they lie."""

    ids: list[int]
    blocks: list[int]
    adapter: int = -1
    done: int = 0
    logits: list[torch.Tensor] = field(default_factory=list)

    def slots(self, first: int, last: int) -> list[int]:
        return [self.blocks[i // BLOCK] * BLOCK + i % BLOCK for i in range(first, last)]


def _sequences(lengths: list[int], adapters: list[int] | None = None, seed: int = 0) -> list[Sequence]:
    """Sequences of drawn tokens, their blocks from all over a pool."""
    dice = np.random.default_rng(seed)
    free = list(dice.permutation(64))
    adapters = adapters or [-1] * len(lengths)
    return [
        Sequence(dice.integers(0, 259, n).tolist(), [int(free.pop()) for _ in range(-(-n // BLOCK))], adapter)
        for n, adapter in zip(lengths, adapters, strict=True)
    ]


def _batch(parts: list[tuple[Sequence, int]]) -> PagedBatch:
    """The next tokens, so many of each sequence; the logits of all are wanted, from the last to the first."""
    ids, positions, slots, bounds = [], [], [], [0]
    widest = max(len(sequence.blocks) for sequence, _ in parts)
    for sequence, count in parts:
        first, last = sequence.done, sequence.done + count
        ids += sequence.ids[first:last]
        positions += range(first, last)
        slots += sequence.slots(first, last)
        bounds.append(len(ids))
    return PagedBatch(
        ids_N=np.array(ids),
        positions_N=np.array(positions),
        slots_N=np.array(slots),
        bounds=np.array(bounds),
        lengths_S=np.array([sequence.done + count for sequence, count in parts]),
        tables_SB=np.array([sequence.blocks + [10**6] * (widest - len(sequence.blocks)) for sequence, _ in parts]),
        adapters_S=np.array([sequence.adapter for sequence, _ in parts]),
        rows_R=np.arange(len(ids))[::-1].copy(),
    )


def _go(decoder: Decoder, parts: list[tuple[Sequence, int]]) -> None:
    """One pass; every sequence gets the logits of its tokens."""
    batch = _batch(parts)
    logits_NV = decoder.logits(batch).flip(0)
    for (sequence, count), first in zip(parts, batch.bounds, strict=False):
        sequence.logits += logits_NV[first : first + count]
        sequence.done += count


def _run(decoder: Decoder, sequences: list[Sequence], chunk: int = 24) -> None:
    """Everything, in chunks that begin one pass after the other: prompts beside single tokens."""
    for turn in range(1000):
        parts = []
        for sequence in sequences[: turn + 1]:
            left = len(sequence.ids) - sequence.done
            count = min(left, chunk) if left > 5 else min(left, 1)
            if count:
                parts.append((sequence, count))
        if not parts and turn >= len(sequences):
            return
        if parts:
            _go(decoder, parts)


def _library(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model.float()(torch.tensor([ids])).logits[0]


def _difference(ours: list[torch.Tensor], theirs_NV: torch.Tensor) -> float:
    return float((torch.stack(ours) - theirs_NV).norm() / theirs_NV.norm())


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_prompts_and_single_tokens_side_by_side_come_out_as_from_the_library(name: str, threads: int) -> None:
    model = _model(name)
    decoder = decoder_of(model, _pool(model), Bank(model, 1), threads=threads)
    assert decoder is not None
    sequences = _sequences([60, 1, 17, 130, 33])
    _run(decoder, sequences)
    decoder.close()
    for sequence in sequences:
        assert _difference(sequence.logits, _library(model, sequence.ids)) < 2e-5
