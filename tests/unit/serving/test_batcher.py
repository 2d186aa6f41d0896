"""Continuous batching over a model whose next token tells all that it has seen: a wrong block would change it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from luthier.core.errors import ContextTooLong, InternalError, NoCapacity
from luthier.nets.paged.batch import BLOCK, PagedBatch
from luthier.nets.paged.blocks import Blocks
from luthier.serving.backends.base import Asked
from luthier.serving.backends.builtin.batcher import NO_ADAPTER, Batcher, Loaded
from luthier.serving.protocol import Sampling

VOCABULARY = 97


def after(tokens: Sequence[int], adapter: int = -1) -> int:
    """What the model says after these tokens."""
    return hashlib.sha256(f"{adapter}:{list(tokens)}".encode()).digest()[0] % VOCABULARY


def answer_of(prompt: Sequence[int], count: int, adapter: int = -1) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(after(tokens, adapter))
    return tokens[len(prompt) :]


class Bench:
    """A batcher over a pool in which every slot holds a token."""

    def __init__(self, *, blocks: int = 64, context: int = 400, chunk: int = 24) -> None:
        self.blocks = Blocks(blocks)
        self.most = chunk
        self.slots = np.full(blocks * BLOCK, -1)
        self.passes: list[PagedBatch] = []
        self.batcher = Batcher(
            self.blocks, self.logits, self.copy, context=context, chunk_tokens=chunk, chunk_tokens_beside=chunk // 2
        )
        self.made: dict[Asked, list[int]] = {}
        self.errors: dict[Asked, Exception] = {}

    def copy(self, source: int, target: int) -> None:
        self.slots[target * BLOCK : (target + 1) * BLOCK] = self.slots[source * BLOCK : (source + 1) * BLOCK]

    def logits(self, batch: PagedBatch) -> torch.Tensor:
        self.passes.append(batch)
        assert len(batch.ids_N) <= self.most
        assert len({*batch.slots_N.tolist()}) == len(batch.slots_N)
        self.slots[batch.slots_N] = batch.ids_N
        rows = []
        for row in batch.rows_R:
            sequence = int(np.searchsorted(batch.bounds, row, side="right")) - 1
            length = int(batch.lengths_S[sequence] - (batch.bounds[sequence + 1] - 1 - row))
            at = np.arange(length)
            seen = self.slots[batch.tables_SB[sequence, at // BLOCK] * BLOCK + at % BLOCK]
            assert batch.positions_N[row] == length - 1
            rows.append(
                torch.nn.functional.one_hot(torch.tensor(after(seen.tolist(), batch.adapters_S[sequence])), VOCABULARY)
            )
        return torch.stack(rows).float() if rows else torch.zeros(0, VOCABULARY)

    def ask(self, prompt: list[int], count: int = 5, *, adapter: Loaded = NO_ADAPTER, scope: str = "") -> Asked:
        asked = Asked(prompt, Sampling(temperature=0, max_tokens=count), (), scope=scope)
        self.batcher.begin(asked, adapter)
        self.made[asked] = []
        return asked

    def step(self) -> None:
        for said in self.batcher.step():
            if said.error is not None:
                self.errors[said.asked] = said.error
            if said.token is not None:
                self.made[said.asked].append(said.token.id)

    def run(self) -> None:
        for _ in range(10_000):
            if self.batcher.is_idle:
                return
            self.step()
        raise AssertionError("it never ends")


def prompt_of(length: int, seed: int = 0) -> list[int]:
    dice = random.Random(seed)
    return [dice.randrange(VOCABULARY) for _ in range(length)]


def test_one_who_comes_joins_the_next_pass() -> None:
    bench = Bench()
    first = bench.ask(prompt_of(5), 9)
    bench.step()
    second = bench.ask(prompt_of(7, 1), 9)
    bench.step()
    assert [len(bench.made[one]) for one in (first, second)] == [2, 1]
    assert len(bench.passes) == 2


@pytest.mark.parametrize("seed", range(6))
def test_everyone_gets_his_own_answer_whoever_comes_and_goes(seed: int) -> None:
    """A small pool, so that answers are put back and beginnings forgotten; shared beginnings, adapters, cancels."""
    dice = random.Random(seed)
    bench = Bench(blocks=dice.choice((14, 24, 60)))
    openings = [prompt_of(length, length) for length in (16, 32, 40)]
    prefix = [-7 - n for n in range(dice.choice((5, 16, 21)))]
    own = bench.blocks.take(-(-len(prefix) // BLOCK))
    assert own is not None
    slots = [block * BLOCK + place for block in own for place in range(BLOCK)][: len(prefix)]
    bench.slots[slots] = prefix
    adapters = [NO_ADAPTER, Loaded("one", 1), Loaded("prefix", prefix=len(prefix), prefix_blocks=own)]
    asked: list[tuple[Asked, Loaded, int]] = []
    for turn in range(60):
        if dice.random() < 0.6:
            prompt = [*dice.choice(openings), *prompt_of(dice.randrange(1, 30), turn)]
            adapter, count = dice.choice(adapters), dice.randrange(1, 30)
            asked.append((bench.ask(prompt, count, adapter=adapter, scope=dice.choice("ab")), adapter, count))
        if asked and dice.random() < 0.1:
            dropped, *_ = asked.pop(dice.randrange(len(asked)))
            bench.batcher.cancel(dropped)
        for _ in range(dice.randrange(4)):
            bench.step()
    bench.run()
    assert bench.errors == {}
    assert len(asked) > 10
    for one, adapter, count in asked:
        begin = prefix if adapter.prefix else []
        assert bench.made[one] == answer_of([*begin, *one.prompt], count, adapter.place)
    assert bench.blocks.free == bench.blocks.count - len(own)


def test_a_known_beginning_is_not_computed_again_but_only_within_its_scope_and_adapter() -> None:
    bench, prompt = Bench(), prompt_of(50)
    one = Loaded("one", 1)
    found = []
    for adapter, scope in [(NO_ADAPTER, "a"), (NO_ADAPTER, "a"), (NO_ADAPTER, "b"), (one, "a"), (one, "a")]:
        asked = bench.ask(prompt, adapter=adapter, scope=scope)
        bench.run()
        found.append(asked.cached_tokens)
    assert found == [0, 48, 0, 0, 48]


def test_an_adapter_of_other_bytes_under_the_same_id_finds_nothing() -> None:
    bench, prompt = Bench(), prompt_of(50)
    for root in ("id\0sha-1", "id\0sha-2"):
        asked = bench.ask(prompt, adapter=Loaded(root, 1))
        bench.run()
        assert asked.cached_tokens == 0


def test_a_conversation_that_goes_on_finds_its_answers_too() -> None:
    bench = Bench()
    first = bench.ask(prompt_of(30), 25)
    bench.run()
    second = bench.ask([*first.prompt, *bench.made[first], 1, 2, 3])
    bench.run()
    assert second.cached_tokens == 48


def test_a_whole_known_prompt_is_computed_for_its_last_token_alone() -> None:
    bench = Bench()
    bench.ask(prompt_of(32))
    bench.run()
    before = len(bench.passes)
    asked = bench.ask(prompt_of(32))
    bench.step()
    assert asked.cached_tokens == 16
    assert len(bench.passes[before].ids_N) == 16


def test_several_answers_to_one_prompt_compute_it_once() -> None:
    bench, prompt = Bench(chunk=64), prompt_of(50)
    asked = [bench.ask(prompt, 3) for _ in range(4)]
    bench.run()
    assert sum(one.cached_tokens for one in asked) == 3 * 48
    assert len({tuple(bench.made[one]) for one in asked}) == 1


def test_long_prompts_come_in_chunks_while_others_go_on() -> None:
    bench = Bench(chunk=24)
    short = bench.ask(prompt_of(3), 20)
    bench.step()
    bench.ask(prompt_of(100, 1), 2)
    for _ in range(5):
        bench.step()
        assert len(bench.passes[-1].ids_N) <= 1 + 12
    assert len(bench.made[short]) == 6


def test_the_more_wait_for_their_first_token_the_more_of_their_prompts_is_read_at_once() -> None:
    bench = Bench(chunk=128)
    bench.ask(prompt_of(3), 9)
    bench.step()
    bench.ask(prompt_of(200, seed=1))
    bench.step()
    assert len(bench.passes[-1].ids_N) == 64
    bench.ask(prompt_of(200, seed=2))
    bench.step()
    assert len(bench.passes[-1].ids_N) == 128
    bench.ask(prompt_of(200, seed=3))
    bench.step()
    assert len(bench.passes[-1].ids_N) == 128


def test_what_cannot_be_held_is_refused_and_others_stay() -> None:
    bench = Bench(blocks=4, context=400)
    fits = bench.ask(prompt_of(20), 5)
    with pytest.raises(NoCapacity):
        bench.ask(prompt_of(64))
    with pytest.raises(ContextTooLong):
        Bench(context=40).ask(prompt_of(40))
    bench.run()
    assert bench.made[fits] == answer_of(fits.prompt, 5)


def test_an_answer_that_outgrows_the_pool_alone_ends_with_an_error() -> None:
    bench = Bench(blocks=2)
    asked = bench.ask(prompt_of(20), 100)
    bench.run()
    assert isinstance(bench.errors[asked], NoCapacity)
    assert len(bench.made[asked]) == 13  # the last needs no keys
    assert bench.blocks.free == 2


def test_blocks_are_taken_from_the_answers_that_came_last_and_these_begin_anew() -> None:
    bench = Bench(blocks=8)
    asked = [bench.ask(prompt_of(30, seed), 5) for seed in range(3)]
    bench.step()
    bench.step()
    taken = bench.batcher.take(5)
    assert taken is not None and len(taken) == 5
    assert bench.batcher.take(9) is None
    bench.blocks.release(taken)
    bench.run()
    assert [bench.made[one] for one in asked] == [answer_of(one.prompt, 5) for one in asked]


def test_answers_of_an_adapter_that_goes_end_with_an_error() -> None:
    bench, loaded = Bench(), Loaded("one", 1)
    gone, stays = bench.ask(prompt_of(5), adapter=loaded), bench.ask(prompt_of(6))
    bench.step()
    [said] = bench.batcher.end_all(loaded, InternalError("gone"))
    assert said.asked is gone
    bench.run()
    assert bench.made[stays] == answer_of(stays.prompt, 5)


def test_one_row_without_a_number_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    broken, well = bench.ask(prompt_of(5)), bench.ask(prompt_of(6, 1))
    whole = bench.logits

    def logits(batch: PagedBatch) -> torch.Tensor:
        said = whole(batch)
        said[batch.lengths_S[: len(said)] == 5] = torch.nan
        return said

    monkeypatch.setattr(bench.batcher, "_logits", logits)
    bench.run()
    assert isinstance(bench.errors[broken], InternalError)
    assert bench.made[well] == answer_of(well.prompt, 5)
