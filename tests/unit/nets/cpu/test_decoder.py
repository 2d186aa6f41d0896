"""A compiled pass gives what the library gives, whoever else is in it."""

from __future__ import annotations

import copy
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
    "as wide as pieces": (LlamaForCausalLM, LlamaConfig, {"hidden_size": 288, "head_dim": 36}),
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
            count = min(left, chunk) if left > 12 else min(left, 1)
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


LINEAR = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
LINEAR += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def _adapter(
    model: Any, rank: int, seed: int, names: tuple[str, ...] = LINEAR, *, is_dora: bool = False
) -> dict[str, Thin]:
    dice = torch.Generator().manual_seed(seed)
    adapter = {}
    for number in range(len(model.model.layers)):
        for name in names:
            full = f"model.layers.{number}.{name}"
            linear = model.get_submodule(full)
            factor_O = torch.rand(linear.out_features, generator=dice) + 0.5 if is_dora else None
            a_rI = torch.randn(rank, linear.in_features, generator=dice) * 0.3
            adapter[full] = Thin(a_rI, torch.randn(linear.out_features, rank, generator=dice) * 0.3, factor_O)
    return adapter


def _merged(model: Any, adapter: dict[str, Thin]) -> Any:
    """The model with the adapter in its weights."""
    other = copy.deepcopy(model).float()
    with torch.no_grad():
        for name, thin in adapter.items():
            weight_OI = other.get_submodule(name).weight
            weight_OI += thin.b_Or @ thin.a_rI
            if thin.factor_O is not None:
                weight_OI *= thin.factor_O[:, None]
    return other


@pytest.mark.parametrize("threads", [1, 2])
def test_every_token_goes_through_the_adapter_of_its_sequence(threads: int) -> None:
    model = _model("qwen2, tied")  # with biases, which a DoRA's factor leaves alone
    adapters = {
        0: _adapter(model, 4, seed=1),
        1: _adapter(model, 16, seed=2, names=("self_attn.q_proj", "mlp.down_proj")),
        2: _adapter(model, 9, seed=3, is_dora=True),
    }
    bank = Bank(model, 4)
    for place, adapter in adapters.items():
        bank.put(place, adapter)
    decoder = decoder_of(model, _pool(model), bank, threads=threads)
    assert decoder is not None
    sequences = _sequences([40, 33, 18, 50, 7, 21], [2, 0, -1, 0, 1, 3])  # nothing lies in place 3
    _run(decoder, sequences)
    decoder.close()
    for sequence in sequences:
        alike = _merged(model, adapters.get(sequence.adapter, {}))
        assert _difference(sequence.logits, _library(alike, sequence.ids)) < 1e-4


def test_an_adapter_put_later_is_used_from_the_next_pass_on() -> None:
    model = _model("llama")
    bank = Bank(model, 2)
    decoder = decoder_of(model, _pool(model), bank, threads=1)
    assert decoder is not None
    before, after, cleared = (_sequences([12], [1])[0] for _ in range(3))
    _run(decoder, [before])
    adapter = _adapter(model, 24, seed=1)
    bank.put(1, adapter)
    _run(decoder, [after])
    bank.put(1, {})
    _run(decoder, [cleared])
    decoder.close()
    assert _difference(before.logits, _library(model, before.ids)) < 2e-5
    assert _difference(after.logits, _library(_merged(model, adapter), after.ids)) < 1e-4
    assert torch.equal(torch.stack(before.logits), torch.stack(cleared.logits))


def test_weights_of_sixteen_bits_are_read_as_they_are() -> None:
    model = _model("qwen3", torch.bfloat16)
    bank = Bank(model, 1)
    adapter = {
        name: Thin(thin.a_rI.bfloat16().float(), thin.b_Or.bfloat16().float())
        for name, thin in _adapter(model, 8, seed=5).items()
    }
    bank.put(0, adapter)
    decoder = decoder_of(model, _pool(model), bank, threads=2)
    assert decoder is not None
    sequences = _sequences([40, 70], [-1, 0])
    _run(decoder, sequences)
    decoder.close()
    exact = copy.deepcopy(model).float()
    assert _difference(sequences[0].logits, _library(exact, sequences[0].ids)) < 0.01  # keys and values are rounded
    assert _difference(sequences[1].logits, _library(_merged(exact, adapter), sequences[1].ids)) < 0.01


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("llama of long contexts", torch.float32),
        ("llama of long contexts", torch.bfloat16),
        ("wide", torch.bfloat16),
        ("as wide as pieces", torch.float32),
    ],
)
def test_not_a_bit_depends_on_strangers_or_threads(name: str, dtype: torch.dtype) -> None:
    model = _model(name, dtype)
    bank = Bank(model, 3)
    for place in range(3):
        bank.put(place, _adapter(model, 8, seed=place, is_dora=place == 2))
    lengths, adapters = [40, 9, 77, 25, 66, 13, 18, 31, 50, 6], [0, -1, 2, 0, 1, -1, 2, 1, 0, 2]
    lengths, adapters = [*lengths, *[30] * 8], [*adapters, *[0, 1, 2, -1] * 2]  # whose last tokens come side by side
    rows = []
    for threads, is_alone in ((1, True), (1, False), (2, False)):
        decoder = Decoder(model, _pool(model), bank, threads=threads)
        sequences = _sequences(lengths, adapters)
        for sequence in sequences if is_alone else [None]:
            _run(decoder, [sequence] if sequence else sequences)
        decoder.close()
        rows.append(torch.cat([torch.stack(sequence.logits) for sequence in sequences]))
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[0], rows[2])


def test_not_a_bit_depends_on_the_ranks_of_strangers() -> None:
    model = _model("llama")
    bank = Bank(model, 2)
    bank.put(0, _adapter(model, 8, seed=0))
    decoder = Decoder(model, _pool(model), bank, threads=1)
    before, after = (_sequences([40], [0])[0] for _ in range(2))
    _run(decoder, [before])
    bank.put(1, _adapter(model, 24, seed=1))
    _run(decoder, [after])
    decoder.close()
    assert torch.equal(torch.stack(before.logits), torch.stack(after.logits))


def test_a_prompt_in_chunks_gives_the_bits_of_a_prompt_at_once() -> None:
    model = _model("llama")
    decoder = Decoder(model, _pool(model), Bank(model, 1), threads=1)
    whole, parts = (_sequences([200])[0] for _ in range(2))
    _run(decoder, [whole], chunk=200)
    _run(decoder, [parts], chunk=7)
    decoder.close()
    assert torch.equal(torch.stack(whole.logits), torch.stack(parts.logits))


def test_other_models_are_left_to_the_library() -> None:
    def of(model: Any, dtype: torch.dtype = torch.float32) -> Decoder | None:
        pool = Pool.of(layers=2, heads=2, width=12, blocks=4, dtype=dtype, device=torch.device("cpu"))
        return decoder_of(model, pool, Bank(model, 1), threads=1)

    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 128}
    layered = _model("llama")
    layered.model.layers[1].mlp.up_proj = torch.nn.Sequential(layered.model.layers[1].mlp.up_proj)
    assert of(_model("llama", rope_parameters=rope)) is None
    assert of(_model("mistral", sliding_window=64)) is None
    assert of(_model("llama", hidden_act="gelu")) is None
    assert of(_model("llama", torch.float16), torch.float16) is None
    assert of(_model("llama", intermediate_size=98)) is None
    assert of(layered) is None


def test_a_pass_that_comes_out_otherwise_than_the_librarys_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model("llama")
    monkeypatch.setattr(
        "luthier.nets.cpu.decoder._library_logits", lambda model, ids_N, layers: torch.ones(len(ids_N), 259)
    )
    assert decoder_of(model, _pool(model), Bank(model, 1), threads=1) is None


def test_too_many_tokens_and_adapters_of_other_layers_are_refused() -> None:
    model = _model("llama")
    bank = Bank(model, 1)
    decoder = Decoder(model, _pool(model), bank, threads=1)
    (long,) = _sequences([decoder.most + 1])
    with pytest.raises(ValueError, match="512 tokens"):
        decoder.logits(_batch([(long, len(long.ids))]))
    bank.put(0, {"lm_head": Thin(torch.ones(4, 48), torch.ones(259, 4))})
    with pytest.raises(ValueError, match="lm_head"):
        decoder.logits(_batch([(long, 1)]))
    decoder.close()
