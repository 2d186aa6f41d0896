"""A pass over many sequences gives each what it gets alone: its own keys, its own adapter."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from luthier.core.errors import InvalidRequest, NoCapacity
from luthier.nets.paged.bank import Bank, Thin
from luthier.nets.paged.batch import BLOCK, PagedBatch, Part
from luthier.nets.paged.model import PagedModel
from luthier.nets.paged.pool import Pool
from tests.unit.nets.families import KINDS, SMALL, model_of

TARGETS = ("q_proj", "v_proj", "o_proj", "down_proj", "gate_up_proj")


def paged_of(model: PreTrainedModel, places: int = 4) -> PagedModel:
    return PagedModel(model, Pool.for_model(model, bytes_at_most=2**20), Bank(model, places))


def plainly(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def adapter_of(model: PreTrainedModel, *, rank: int, is_decomposed: bool = False) -> dict[str, Thin]:
    layers = {name: layer for name, layer in model.named_modules() if name.endswith(TARGETS)}
    assert layers
    return {
        name: Thin(
            torch.randn(rank, layer.in_features) * 0.3,
            torch.randn(layer.out_features, rank) * 0.3,
            torch.rand(layer.out_features) + 0.5 if is_decomposed else None,
        )
        for name, layer in layers.items()
    }


def merged(model: PreTrainedModel, adapter: dict[str, Thin]) -> PreTrainedModel:
    """A copy whose weights have an adapter in them."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for name, thin in adapter.items():
            weight = changed.get_submodule(name).weight
            weight += thin.b_Or @ thin.a_rI
            if thin.factor_O is not None:
                weight *= thin.factor_O[:, None]
    return changed


def together(
    paged: PagedModel, sequences: list[list[int]], places: list[int], *, seed: int
) -> list[list[tuple[int, torch.Tensor]]]:
    """The logits after the ends of chunks of every sequence, beside the chunks' ends, computed in a random interleaving."""
    dice = random.Random(seed)
    blocks = list(range(paged.pool.blocks))
    dice.shuffle(blocks)
    tables = [[blocks.pop() for _ in range(-(-len(ids) // BLOCK))] for ids in sequences]
    done, found = [0] * len(sequences), [[] for _ in sequences]
    while any(at < len(ids) for at, ids in zip(done, sequences, strict=True)):
        chosen = [n for n, ids in enumerate(sequences) if done[n] < len(ids) and dice.random() < 0.7]
        if not chosen:
            continue
        parts, wanted = [], []
        for n in chosen:
            end = min(len(sequences[n]), done[n] + dice.choice((1, 1, 3, 20)))
            is_wanted = dice.random() < 0.8 or end == len(sequences[n])
            parts.append(Part(sequences[n][done[n] : end], end, tables[n], places[n], is_wanted))
            wanted += [(n, end)] if is_wanted else []
            done[n] = end
        for (n, end), said in zip(wanted, paged.logits(PagedBatch.of(parts)), strict=True):
            found[n].append((end, said))
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_every_sequence_gets_what_it_gets_alone(kind: str, precision: torch.dtype) -> None:
    model, dice = model_of(kind).to(precision), random.Random(1)
    sequences = [[dice.randrange(50) for _ in range(length)] for length in (1, 15, 16, 17, 33, 60)]
    alone = [plainly(model, ids).float() for ids in sequences]
    found = together(paged_of(model), sequences, [-1] * 6, seed=2)
    tolerance = 1e-4 if precision == torch.float32 else 0.05
    for expected, said in zip(alone, found, strict=True):
        assert said
        for end, logits in said:
            assert (logits - expected[end - 1]).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("kind", ["llama", "window"])
def test_all_at_once_and_one_after_the_other_are_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does where each sequence has one new token, done here."""
    model, dice = model_of(kind), random.Random(1)
    sequences = [[dice.randrange(50) for _ in range(length)] for length in (2, 17, 33)]
    found = []
    for at_once in (False, True):
        paged, tables = paged_of(copy.deepcopy(model)), [[5, 1, 9], [0, 2, 7], [3, 8, 4]]
        read = [Part(ids[:-1], len(ids) - 1, table) for ids, table in zip(sequences, tables, strict=True)]
        paged.logits(PagedBatch.of(read))
        monkeypatch.setattr("luthier.nets.paged.model._Run.is_one_each", at_once)
        last = [Part(ids[-1:], len(ids), table) for ids, table in zip(sequences, tables, strict=True)]
        found.append(paged.logits(PagedBatch.of(last)))
        monkeypatch.undo()
    assert torch.allclose(*found, atol=1e-4)


def test_what_nobody_uses_any_more_takes_no_room() -> None:
    model = model_of("llama")
    bank = Bank(model, places=2)
    bank.put(0, adapter_of(model, rank=32, is_decomposed=True))
    bank.put(1, adapter_of(model, rank=2))
    bank.put(0, {})
    assert {places.rank for places in bank.layers.values()} == {32}
    bank.put(1, {})
    assert not bank.layers


def test_layers_that_only_an_adapter_of_before_changed_are_as_the_model_has_them() -> None:
    model = model_of("llama")
    first, second, third = (adapter_of(model, rank=rank) for rank in (4, 2, 3))
    attention = [{name: thin for name, thin in one.items() if "attn" in name} for one in (second, third)]
    sequences, places = [[3, 4, 5, 6], [7, 8, 9]], [0, 1]
    alone = [plainly(merged(model, one), ids) for one, ids in zip(attention, sequences, strict=True)]
    paged = paged_of(copy.deepcopy(model))
    paged.bank.put(0, first)
    plain_of(paged, [1, 2], 0)
    paged.bank.put(0, {})
    for place, adapter in enumerate(attention):
        paged.bank.put(place, adapter)
    for expected, said in zip(alone, together(paged, sequences, places, seed=3), strict=True):
        for end, logits in said:
            assert torch.allclose(logits, expected[end - 1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["llama", "qwen2.5", "glm4"])
@pytest.mark.parametrize("is_decomposed", [False, True])
def test_every_sequence_gets_its_own_adapter(kind: str, is_decomposed: bool) -> None:
    model, dice = model_of(kind), random.Random(1)
    adapters = [adapter_of(model, rank=rank, is_decomposed=is_decomposed and rank > 2) for rank in (2, 4, 11)]
    models = [merged(model, adapter) for adapter in adapters] + [model]
    sequences = [[dice.randrange(50) for _ in range(length)] for length in (5, 16, 20, 33, 7, 9)]
    places = [0, 1, 2, 1, -1, 0]
    alone = [plainly(models[place], ids) for place, ids in zip(places, sequences, strict=True)]
    paged = paged_of(copy.deepcopy(model))
    for place, adapter in enumerate(adapters):
        paged.bank.put(place, adapter)
    for expected, said in zip(alone, together(paged, sequences, places, seed=3), strict=True):
        for end, logits in said:
            assert torch.allclose(logits, expected[end - 1], rtol=1e-3, atol=1e-3)


def test_a_place_that_was_cleared_changes_nothing() -> None:
    model, ids = model_of("llama"), [3, 4, 5, 6]
    paged = paged_of(model)
    bare = plain_of(paged, ids, -1)
    for is_decomposed in (False, True):
        paged.bank.put(0, adapter_of(model, rank=3, is_decomposed=is_decomposed))
        assert not torch.allclose(plain_of(paged, ids, 0), bare, atol=1e-2)
        paged.bank.put(0, {})
        assert torch.equal(plain_of(paged, ids, -1), bare)
        assert torch.allclose(plain_of(paged, ids, 0), bare, atol=1e-5)


def plain_of(paged: PagedModel, ids: list[int], place: int) -> torch.Tensor:
    return paged.logits(PagedBatch.of([Part(ids, len(ids), [0], place)]))[0]


def test_a_model_whose_attention_is_another_is_refused_and_left_as_it_was() -> None:
    torch.manual_seed(0)
    capped = Gemma2ForCausalLM(Gemma2Config(**SMALL)).eval()
    before = plainly(capped, [1, 2, 3])
    with pytest.raises(InvalidRequest, match="gemma2"):
        paged_of(capped)
    assert torch.equal(plainly(capped, [1, 2, 3]), before)


def test_positions_that_change_with_the_length_are_refused() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0, "original_max_position_embeddings": 8}
    torch.manual_seed(0)
    with pytest.raises(InvalidRequest, match="positions"):
        paged_of(LlamaForCausalLM(LlamaConfig(**SMALL, max_position_embeddings=16, rope_parameters=rope)).eval())


def test_the_pool_takes_memory_only_where_something_is_written() -> None:
    pool = Pool.of(layers=4, heads=4, width=64, blocks=2**15, dtype=torch.bfloat16, device=torch.device("cpu"))
    with open("/proc/self/statm") as statm:
        before = int(statm.read().split()[1])
    pool.keys_LPKD[:, :BLOCK] = 1
    with open("/proc/self/statm") as statm:
        assert int(statm.read().split()[1]) - before < 20_000  # pages; all of it is 262,144


def test_an_adapter_whose_rank_would_fill_the_memory_is_refused_and_nothing_changes() -> None:
    model = model_of("llama")
    bank = Bank(model, places=2**16)
    adapter = adapter_of(model, rank=64)
    with pytest.raises(NoCapacity, match="rank 64"):
        bank.put(0, adapter)
    assert not bank.layers
