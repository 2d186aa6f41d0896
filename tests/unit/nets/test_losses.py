"""Packing, chosen positions and chunks change nothing: losses and gradients equal those of full logits of each row alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from luthier.core.errors import InvalidRequest
from luthier.nets.losses import learned_tokens, prove_head
from luthier.nets.packing import ATTENTION, pack, prepare
from luthier.nets.prefix import Prefix, put_prefix, seen
from tests.unit.nets.families import KINDS, SMALL, model_of

Sequence = tuple[list[int], list[float]]
SEQUENCES: list[Sequence] = [
    ([1, 5, 6, 7, 8, 9], [1.0, 0, 0, 1, 1, 1]),  # the first token has a weight that cannot be learned
    ([1, 11, 12, 13], [0, 0, 0.5, 1]),
    ([2, 3, 4, 9, 9, 9, 7, 5], [0, 1, 1, 1, 1, 1, 1, 1]),
]


def plainly(model: nn.Module, sequences: list[Sequence]) -> torch.Tensor:
    """The loss of full logits, each sequence by itself."""
    total = torch.zeros((), dtype=next(model.parameters()).dtype)
    for ids, weights in sequences:
        tokens = torch.tensor([ids])
        logits = model(input_ids=tokens, use_cache=False).logits[0, :-1]
        each = nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none")
        total = total + (each * torch.tensor(weights[1:], dtype=total.dtype)).sum()
    return total


def ours(
    model: PreTrainedModel, sequences: list[Sequence], *, chunk: int | None = None, shared: int | None = None
) -> torch.Tensor:
    packed = pack(sequences, torch.device("cpu"), shared=shared)
    return -(learned_tokens(model, packed, chunk=chunk).logprobs_N * packed.weights_N).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_end_to_end_give_what_each_gives_alone(kind: str) -> None:
    model = model_of(kind)
    with torch.no_grad():
        expected = plainly(model, SEQUENCES)
    prepare(model)
    prove_head(model)
    for chunk in (None, 1, 4):
        torch.testing.assert_close(ours(model, SEQUENCES, chunk=chunk), expected, rtol=1e-5, atol=1e-5)
    first = learned_tokens(model, pack(SEQUENCES[:1], torch.device("cpu")))
    logits = model(input_ids=torch.tensor([SEQUENCES[0][0]])).logits[0]
    assert first.correct_N.tolist() == [
        int(logits[place].argmax()) == SEQUENCES[0][0][place + 1] for place in (2, 3, 4)
    ]


BEGINNINGS = st.sampled_from([[], [7, 8, 9], [7, 8, 9, 10, 11], [7, 8, 9, 10, 11, 12, 13], [20] * 6])
TOKENS = st.tuples(BEGINNINGS, st.lists(st.integers(3, 49), min_size=2, max_size=12)).map(
    lambda both: both[0] + both[1]
)
ROWS = st.lists(
    TOKENS.flatmap(
        lambda ids: st.tuples(st.just(ids), st.lists(st.sampled_from([0.0, 1.0]), min_size=len(ids), max_size=len(ids)))
    ),
    min_size=1,
    max_size=5,
).filter(lambda rows: any(any(weights[1:]) for _, weights in rows))


@settings(max_examples=20, deadline=None)
@given(
    rows=ROWS,
    kind=st.sampled_from(["smollm2", "qwen2.5", "qwen3", "glm4"]),
    chunk=st.sampled_from([None, 1, 3, 7]),
    shared=st.sampled_from([None, 1, 3]),
)
def test_gradients_equal_those_of_a_plain_model_in_double_precision(
    rows: list[Sequence], kind: str, chunk: int | None, shared: int | None
) -> None:
    exact, model = model_of(kind).double(), model_of(kind)
    plainly(exact, rows).backward()
    prepare(model)
    ours(model, rows, chunk=chunk, shared=shared).backward()
    differences, sizes = [], []
    for one, other in zip(model.parameters(), exact.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        differences.append((one.grad.double() - other.grad).pow(2).sum())
        sizes.append(other.grad.pow(2).sum())
    assert torch.stack(differences).sum().sqrt() <= 1e-5 * torch.stack(sizes).sum().sqrt()


def test_the_output_layer_sees_only_learned_positions_and_a_chunk_at_a_time() -> None:
    model = model_of("llama")
    prepare(model)
    seen: list[tuple[int, ...]] = []
    model.get_output_embeddings().register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape)))
    learned = sum(sum(map(bool, weights[1:])) for _, weights in SEQUENCES)
    assert learned == 12
    ours(model, SEQUENCES)
    ours(model, SEQUENCES, chunk=5).backward()  # where every chunk is computed again
    assert seen == [(12, 32), (5, 32), (5, 32), (2, 32), (2, 32), (5, 32), (5, 32)]


def test_what_rows_share_and_learn_is_asked_of_the_output_layer_once() -> None:
    model = model_of("llama")
    prepare(model)
    seen: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    rows = [([1, 5, 6, 7, 8, 9], [1.0] * 6), ([1, 5, 6, 7, 4], [0.5] * 5), ([1, 5, 6, 7, 8, 9], [2.0] * 6)]
    together = ours(model, rows, shared=2)
    assert seen == [6]
    torch.testing.assert_close(together, ours(model, rows))
    assert seen == [6, 14]


@pytest.mark.parametrize("kind", ["llama", "scaled", "divided"])
def test_an_output_layer_that_does_not_learn_gives_the_same_gradients(kind: str) -> None:
    exact, model = model_of(kind).double(), model_of(kind)
    for one in (exact, model):
        for parameter in one.get_output_embeddings().parameters():
            parameter.requires_grad_(False)
    plainly(exact, SEQUENCES).backward()
    prepare(model)
    ours(model, SEQUENCES, chunk=5).backward()
    for (name, one), (_, other) in zip(model.named_parameters(), exact.named_parameters(), strict=True):
        if other.grad is not None:
            assert one.grad is not None
            torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_attention_needs_no_matrix_of_all_tokens() -> None:
    model = model_of("llama")
    prepare(model)
    long = [([7] * 4000, [1.0] * 4000)] + [([7] * 10, [1.0] * 10)] * 400
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
        ours(model, long)
    assert max(one.cpu_memory_usage for one in profile.events()) < 8000 * 8000 / 4


def capped() -> PreTrainedModel:
    return Gemma2ForCausalLM(Gemma2Config(**SMALL))


def recurrent() -> PreTrainedModel:
    return MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2))


@pytest.mark.parametrize("make", [capped, recurrent])
def test_a_model_whose_sequences_would_see_each_other_is_refused_and_left_as_it_was(make) -> None:
    model = make()
    before = model.config._attn_implementation
    with pytest.raises(InvalidRequest, match="cannot be laid end to end for a model of type"):
        prepare(model)
    assert model.config._attn_implementation == before != ATTENTION


def test_a_model_that_does_something_else_to_its_logits_is_refused() -> None:
    model = model_of("llama")
    model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: output if inputs[0].ndim == 2 else -output
    )
    with pytest.raises(InvalidRequest, match="does with its logits is not known"):
        prove_head(model)


def test_dropout_of_a_models_own_is_switched_off() -> None:
    models = [
        LlamaForCausalLM(LlamaConfig(**SMALL, attention_dropout=0.5)),
        Phi3ForCausalLM(Phi3Config(**SMALL, resid_pdrop=0.5, embd_pdrop=0.5)),
        GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_head=4, n_layer=2, bos_token_id=1, eos_token_id=2)),
    ]
    for model in models:
        prepare(model.train())
        prove_head(model)
        one, two = (learned_tokens(model, pack(SEQUENCES, torch.device("cpu"))).logprobs_N for _ in range(2))
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (
            lambda: Qwen2MoeForCausalLM(Qwen2MoeConfig(**SMALL, use_sliding_window=True, sliding_window=64)),
            "window of 64",
        ),
        (
            lambda: LlamaForCausalLM(
                LlamaConfig(
                    **SMALL,
                    max_position_embeddings=64,
                    rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
                )
            ),
            "positions change",
        ),
    ],
    ids=["window", "rope"],
)
def test_a_model_that_differs_for_long_sequences_alone_is_refused_for_those(model: Any, why: str) -> None:
    prepare(model(), longest=64)
    with pytest.raises(InvalidRequest, match=why):
        prepare(model(), longest=65)


@pytest.mark.parametrize("positions", [0, 7])
def test_no_matrix_of_positions_is_kept_for_the_backward_pass_not_even_with_a_prefix(positions: int) -> None:
    model = model_of("llama")
    if positions:
        start, shape = seen(model, [3] * positions)
        put_prefix(model, Prefix(start, shape, width=16))
    kept: list[torch.Size] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        learned_tokens(model, pack([([1] + [5] * 299, [1.0] * 300)], torch.device("cpu")), chunk=16)
    assert kept
    assert not [shape for shape in kept if sum(size >= 300 for size in shape) > 1]
