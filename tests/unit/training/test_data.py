"""Rows read and refused, batches planned."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luthier.chat.renderers.base import Rendered, renderer_for
from luthier.chat.tokenizer import Tokenizer
from luthier.core.errors import DatasetInvalid, InvalidRequest
from luthier.formats.messages import Messages
from luthier.nets.loading import load_model
from luthier.nets.packing import prepare
from luthier.testing import jsonl, toy_model, toy_rows, toy_tokenizer
from luthier.training.data import BatchPlan, RowsLost, micro_batches, packed, read_rows, tokens_of
from luthier.training.objectives.base import Encoded
from luthier.training.objectives.sft import Sft, SftOptions
from luthier.training.processes import Processes
from luthier.training.spec import DataFile


@pytest.fixture
def renderer(tmp_path):
    toy_tokenizer(tmp_path / "toy")
    return renderer_for(Tokenizer(tmp_path / "toy"))


def row(user: str, assistant: str) -> dict:
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]}


def stored(storage, data: bytes) -> DataFile:
    return DataFile(key="files/x", sha256=storage.write("files/x", data).sha256)


def test_rows_that_are_too_long_are_dropped_by_their_number(storage, renderer):
    file = stored(storage, jsonl([row("a", "b"), row("a", "b" * 50), row("c", "d"), row("e" * 50, "f")]))
    read = read_rows(storage, file, Sft(SftOptions()), renderer, max_length=50)
    assert (len(read.rows), read.dropped, read.dropped_rows) == (2, {"too_long": [2, 4]}, 2)


def test_the_first_token_and_what_the_user_says_are_not_trained(storage, renderer):
    file = stored(storage, jsonl([row("ab", "cde")]))
    read = read_rows(storage, file, Sft(SftOptions()), renderer, max_length=99)
    assert read.trained == 4  # three letters and the end of the turn


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (jsonl([row("a", "b" * 90)]), "1 rows are longer than 50 tokens"),
        (b"", "can be trained"),
        (jsonl([row("a", "b")]) + b"{", "1 faults, the first: line 2, column 1, row 2: "),
    ],
)
def test_a_file_without_anything_to_train_says_why(storage, renderer, data, words):
    with pytest.raises(DatasetInvalid, match=words):
        read_rows(storage, stored(storage, data), Sft(SftOptions()), renderer, max_length=50)


def test_a_file_that_changed_is_refused(storage, renderer):
    file = stored(storage, jsonl(toy_rows()))
    storage.write(file.key, jsonl(toy_rows(13)))
    with pytest.raises(InvalidRequest, match="not the file this job was made for"):
        read_rows(storage, file, Sft(SftOptions()), renderer, max_length=50)


@given(rows=st.integers(1, 60), batch_size=st.integers(1, 20), epochs=st.integers(1, 4), seed=st.integers(0, 9))
def test_every_epoch_takes_every_row_once(rows, batch_size, epochs, seed):
    plan = BatchPlan(rows, seed, batch_size, epochs)
    steps = [plan.rows_of(step) for step in range(1, plan.total_steps + 1)]
    for epoch in range(epochs):
        taken = steps[epoch * plan.steps_per_epoch : (epoch + 1) * plan.steps_per_epoch]
        assert sorted(row for step in taken for row in step) == list(range(rows))
    assert all(0 < len(step) <= batch_size for step in steps)


def test_the_plan_depends_on_seed_and_epoch_alone():
    plan = BatchPlan(20, 1, 20, 2)
    assert plan.rows_of(1) == BatchPlan(20, 1, 20, 5).rows_of(1)
    assert plan.rows_of(1) != plan.rows_of(2)
    assert plan.rows_of(1) != BatchPlan(20, 2, 20, 2).rows_of(1)


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30), limit=st.integers(8, 100))
def test_micro_batches_hold_every_row_within_the_limit(lengths, limit):
    rows = [Encoded((Rendered([0] * length, [1.0] * length),)) for length in lengths]
    groups = micro_batches(rows, limit)
    assert sorted(row.length for group in groups for row in group) == sorted(lengths)
    assert all(len(group) == 1 or sum(row.length for row in group) <= limit for group in groups)
    assert len(groups) <= 1 + 2 * sum(lengths) // limit + sum(length > limit for length in lengths)


BEGINNINGS = [[1] * 20, [1] * 20 + [2] * 5, [1] * 15, [3] * 40, []]


@given(
    drawn=st.lists(
        st.lists(
            st.tuples(st.sampled_from(BEGINNINGS), st.lists(st.integers(4, 9), min_size=1, max_size=12)),
            min_size=1,
            max_size=2,
        ),
        min_size=1,
        max_size=25,
    ),
    limit=st.integers(8, 150),
)
def test_micro_batches_that_share_are_laid_within_the_limit(drawn, limit):
    rows = [
        Encoded(tuple(Rendered([*begin, *ids], [1.0] * len([*begin, *ids])) for begin, ids in row), number)
        for number, row in enumerate(drawn)
    ]
    groups = micro_batches(rows, limit, shared=8)
    assert sorted(row.row for group in groups for row in group) == list(range(len(rows)))
    assert all(len(group) == 1 or tokens_of(group, 8) <= limit for group in groups)
    laid = [packed(group, torch.device("cpu"), 8) for group in groups]
    assert [len(one.input_ids_T) for one in laid] == [tokens_of(group, 8) for group in groups]


def test_rows_that_begin_alike_go_together():
    begin = [5] * 50
    rows = [Encoded((Rendered([*begin, n] if n % 2 else [n] * 51, [1.0] * 51),), n) for n in range(6, 14)]
    first, second, *others = micro_batches(rows, 110, shared=8)
    together = next(group for group in (first, second, *others) if len(group) == 4)
    assert [row.row for row in together] == [7, 9, 11, 13]
    assert tokens_of(together, 8) == 54


def rows_after(*beginnings: list[int]) -> list[Encoded]:
    """64 rows, each with a beginning of those and 20 to 51 tokens of its own."""
    dice = random.Random(0)
    drawn = [[*beginnings[n % len(beginnings)], *dice.choices(range(9), k=20 + n % 32)] for n in range(64)]
    return [Encoded((Rendered(ids, [1.0] * len(ids)),), n) for n, ids in enumerate(drawn)]


@pytest.mark.parametrize("rows", [rows_after([5] * 300), rows_after([5] * 300, [6] * 200, [7] * 500), rows_after([])])
@pytest.mark.parametrize("limit", [700, 4096])
@pytest.mark.parametrize("processes", [2, 3, 8])
def test_processes_have_like_work_with_shared_beginnings(rows, limit, processes):
    groups = micro_batches(rows, limit, shared=8, processes=processes)
    laid = [tokens_of(group, 8) for group in groups]
    assert sorted(row.row for group in groups for row in group) == list(range(64))
    assert max(laid) <= limit
    tokens = [sum(one for one, _ in Processes(rank, processes).dealt(laid)) for rank in range(processes)]
    assert max(tokens) <= 1.25 * sum(tokens) / processes


def read(storage, renderer, rows: list[dict], **asked):
    return read_rows(storage, stored(storage, jsonl(rows)), Sft(SftOptions()), renderer, **asked)


def test_a_truncated_row_is_trained_on_what_is_left_of_it(storage, renderer):
    long, short = row("a", "b" * 50), row("a", "b")
    found = read(storage, renderer, [long, short], max_length=40, overlength="truncate")
    assert (len(found.rows), found.dropped) == (2, {})
    whole = renderer.example(Messages.value(long))
    [kept] = found.rows[0].sequences
    assert (list(kept.tokens), list(kept.weights)) == (whole.tokens[:40], whole.weights[:40])
    assert found.rows[0].trained == 20  # the answer begins after 20 tokens


def test_a_truncated_row_contributes_to_the_loss(storage, renderer, tmp_path):
    objective = Sft(SftOptions())
    found = read(storage, renderer, [row("a", "b" * 50)], max_length=40, overlength="truncate")
    model = load_model(toy_model(tmp_path / "model"), precision="fp32")
    prepare(model)
    losses = objective.losses(model, packed(found.rows, torch.device("cpu")), found.rows)
    assert losses.measures["token_accuracy"][1] == 20
    losses.total.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_row_is_cut_only_while_something_learned_is_left(storage, renderer):
    found = read(storage, renderer, [row("a" * 50, "b"), row("a", "b")], max_length=40, overlength="truncate")
    assert (len(found.rows), found.dropped) == (1, {"too_long": [1]})


def test_a_limit_that_must_hold_is_a_reason_not_to_start(storage, renderer):
    with pytest.raises(DatasetInvalid, match="1 rows of files/x are longer than 40 tokens"):
        read(storage, renderer, [row("a", "b" * 50), row("a", "b")], max_length=40, overlength="fail")
    assert len(read(storage, renderer, [row("a", "b")], max_length=40, overlength="fail").rows) == 1


@pytest.mark.parametrize(
    ("promised", "is_kept"), [((3, 2), True), ((None, None), True), ((3, 3), False), ((2, 2), False), ((4, 2), False)]
)
def test_rows_other_than_the_promised_ones_end_the_run(storage, renderer, promised, is_kept):
    file = stored(storage, jsonl([row("a", "b"), row("a", "b" * 50), row("c", "d")]))
    file = file.model_copy(update={"rows": promised[0], "trained_rows": promised[1]})
    asked = {"max_length": 40}
    if is_kept:
        assert len(read_rows(storage, file, Sft(SftOptions()), renderer, **asked).rows) == 2
        return
    with pytest.raises(RowsLost, match=f"{promised[1]} of {promised[0]} rows; it gives 2 of 3") as lost:
        read_rows(storage, file, Sft(SftOptions()), renderer, **asked)
    assert lost.value.code == "rows_lost"
