"""Losses are those of other programs and of the formulas: TRL's trainers step by step, DPO's terms written out."""

from __future__ import annotations

import copy
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM

from luthier.chat.messages import Conversation, Message
from luthier.chat.renderers.base import Rendered, renderer_for
from luthier.chat.tokenizer import Tokenizer
from luthier.nets.loading import load_model
from luthier.nets.losses import learned_tokens
from luthier.nets.packing import prepare
from luthier.storage import Storage
from luthier.testing import jsonl, toy_model, toy_rows, toy_spec
from luthier.training import precision
from luthier.training.data import micro_batches, packed, read_rows
from luthier.training.events import Evaluated, Sampled, Succeeded
from luthier.training.forward import Forward
from luthier.training.objectives.base import Encoded, objectives
from luthier.training.objectives.dpo import Dpo, DpoOptions
from luthier.training.processes import Processes
from luthier.training.run import run
from luthier.training.spec import PluginChoice
from tests.reference import trl
from tests.unit.nets.families import model_of


@pytest.mark.parametrize("case", trl.CASES)
@pytest.mark.parametrize("micro_batch_tokens", [40, 4000])
def test_the_losses_are_those_of_trl(case: str, micro_batch_tokens: int, tmp_path: Path) -> None:
    storage = Storage((tmp_path / "objects").as_uri())
    spec = trl.spec_of(case, storage).model_copy(update={"micro_batch_tokens": micro_batch_tokens})
    found: list[float] = []
    last = run(spec, storage, emit=lambda event: found.append(event.loss) if event.type == "progress" else None)
    assert last.type == "succeeded"
    expected = json.loads(trl.KEPT.read_text())["losses"][case]
    assert len(expected) == len(found) == 12
    assert found == pytest.approx(expected, abs=1e-4)


PAIRS = [
    (([1, 5, 6, 7], [0, 0, 1, 1]), ([1, 5, 9], [0, 0, 1])),
    (([2, 3, 4, 8, 8], [0, 0, 0, 1, 1]), ([2, 3, 4, 9, 7, 6], [0, 0, 0, 1, 1, 1])),
]
REFERENCE = [(-9.0, -4.0), (-8.0, -15.0)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beta": 0.5, "label_smoothing": 0.2},
        {"beta": 0.5, "loss": "ipo"},
        {"nll_weight": 0.7},
        {"loss": "ipo", "nll_weight": 0.3},
    ],
)
def test_preference_losses_follow_their_formulas(options: dict, tmp_path: Path) -> None:
    model = load_model(toy_model(tmp_path / "toy"), precision="fp32")

    def logprobs(ids: list[int], weights: list[int]) -> torch.Tensor:
        with torch.no_grad():
            said = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return torch.stack([said[place - 1, ids[place]] for place, weight in enumerate(weights) if weight])

    chosen = DpoOptions(**options)
    expected, accuracy = torch.zeros(()), 0
    for (one, other), (one_before, other_before) in zip(PAIRS, REFERENCE, strict=True):
        said, otherwise = logprobs(*one), logprobs(*other)
        gain, loss_of_other = said.sum() - one_before, otherwise.sum() - other_before
        accuracy += (
            int(gain > loss_of_other)
            if chosen.loss == "sigmoid"
            else int(gain / len(said) > loss_of_other / len(otherwise))
        )
        if chosen.loss == "ipo":
            expected += (gain / len(said) - loss_of_other / len(otherwise) - 1 / (2 * chosen.beta)) ** 2
        else:
            margin = chosen.beta * (gain - loss_of_other)
            expected -= (1 - chosen.label_smoothing) * logsigmoid(margin) + chosen.label_smoothing * logsigmoid(-margin)
        expected -= chosen.nll_weight * said.mean()
    prepare(model)
    rows = [
        Encoded(tuple(Rendered(ids, [float(w) for w in weights]) for ids, weights in pair), row, before)
        for row, (pair, before) in enumerate(zip(PAIRS, REFERENCE, strict=True), start=1)
    ]
    losses = Dpo(chosen).losses(model, packed(rows, torch.device("cpu")), rows)
    torch.testing.assert_close(losses.total, expected)
    assert losses.measures["reward_accuracy"][0] == accuracy


@pytest.mark.parametrize("method", ["lora", "full"])
def test_evaluation_is_what_a_stock_library_computes_row_by_row(method: str, tmp_path: Path) -> None:
    storage = Storage((tmp_path / "objects").as_uri())
    choice = PluginChoice(name=method)
    spec = toy_spec(storage, method=choice, validation=toy_rows(9, seed=9), micro_batch_tokens=70)
    told: list[Evaluated] = []
    last = run(spec, storage, emit=lambda event: told.append(event) if isinstance(event, Evaluated) else None)
    assert isinstance(last, Succeeded)
    artifact = storage.folder(last.artifact_key)
    if method == "full":
        model: Any = AutoModelForCausalLM.from_pretrained(artifact)
    else:
        model = PeftModel.from_pretrained(load_model(storage.folder(spec.weights), precision="fp32"), artifact)
    model.eval()
    renderer = renderer_for(Tokenizer(storage.folder(spec.weights)))
    total, correct, count = 0.0, 0, 0
    for row in toy_rows(9, seed=9):
        turns = tuple(Message(turn["role"], turn["content"]) for turn in row["messages"])
        prompt = renderer.prompt(Conversation(turns[:1]))
        answer = [*renderer.tokenizer.encode(turns[1].text), *renderer.stops]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0]
        for place, token in enumerate(answer, len(prompt)):
            total -= torch.log_softmax(logits[place - 1].double(), -1)[token].item()
            correct += int(logits[place - 1].argmax()) == token
            count += 1
    assert told[-1].loss == pytest.approx(total / count, abs=1e-4)
    assert told[-1].token_accuracy == pytest.approx(correct / count, abs=1e-4)


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_four_micro_batches_of_two_give_the_gradients_of_eight_rows(objective: str, tmp_path: Path) -> None:
    storage = Storage((tmp_path / "objects").as_uri())
    spec = trl.spec_of(objective, storage)
    aim = objectives.load(objective)
    plugin = aim(aim.Options())
    renderer = renderer_for(Tokenizer(storage.folder(spec.weights)))
    read = read_rows(storage, spec.training, plugin, renderer, max_length=64).rows[:8]
    rows = [replace(row, reference=(-20.0, -18.0)) for row in read]
    model = load_model(storage.folder(spec.weights), precision="fp32")
    prepare(model)
    forward = Forward(model, plugin, Processes(), seed=0)
    units, found = sum(map(plugin.units, rows)), []
    for batches in ([rows], [rows[place : place + 2] for place in range(0, 8, 2)], [[row] for row in reversed(rows)]):
        model.zero_grad()
        for batch in batches:
            (forward.losses(batch, 1).total / units).backward()
        found.append(
            torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])
        )
    for other in found[1:]:
        assert (found[0] - other).norm() <= 1e-5 * found[0].norm()


def test_losses_in_bf16_are_as_near_to_those_in_fp32_as_the_librarys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "computes_in_bf16", lambda: True)
    storage = Storage((tmp_path / "objects").as_uri())
    begin = [{"role": "system", "content": "twice"}]
    rows = [{"messages": begin + row["messages"]} for row in toy_rows(24)]

    def losses(wish: str, seed: int, *, faster: bool) -> torch.Tensor:
        found: list[float] = []
        settled = {"precision": wish, "seed": seed, "share_prefixes": faster, "fused": faster}
        spec = toy_spec(
            storage, job=f"ftjob-{wish}-{seed}-{faster}", rows=rows, epochs=2, micro_batch_tokens=200, **settled
        )
        last = run(spec, storage, emit=lambda event: found.append(event.loss) if event.type == "progress" else None)
        assert last.type == "succeeded"
        return torch.tensor(found)

    seeds = range(4)
    exact = torch.stack([losses("fp32", seed, faster=False) for seed in seeds])
    plain, ours = (torch.stack([losses("bf16", seed, faster=faster) for seed in seeds]) for faster in (False, True))
    spread = (plain - exact).square().mean().sqrt()  # what rounding does to a curve
    assert 1e-3 < spread < 0.05
    assert (ours - exact).square().mean().sqrt() <= 1.4 * spread
    assert (ours - plain).square().mean().sqrt() <= 2 * spread


def test_rows_that_each_go_on_from_the_one_before_say_what_each_says_alone() -> None:
    model: Any = model_of("smollm2")
    exact = copy.deepcopy(model).double()
    whole = random.Random(0).choices(range(3, 50), k=1201)
    rows = [
        Encoded((Rendered(whole[:end], [0.0] * (end - 1) + [1.0]),), end) for end in range(2, 1202)
    ]  # each says one token
    logits = exact(torch.tensor([whole])).logits[0, :-1]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(whole[1:]), reduction="none")
    expected.sum().backward()  # of a row alone: what comes before a token is all that it is predicted from
    prepare(model)
    [together] = micro_batches(rows, 2000, shared=1)
    laid = packed(together, torch.device("cpu"), shared=1)
    assert len(laid.segments) == len(rows)
    said = -learned_tokens(model, laid).logprobs_N
    torch.testing.assert_close(said.double(), expected[[row.row - 2 for row in together]], rtol=1e-3, atol=1e-3)
    said.sum().backward()
    for (name, one), (_, other) in zip(model.named_parameters(), exact.named_parameters(), strict=True):
        if other.grad is not None:
            assert (one.grad - other.grad).norm() <= 1e-4 * other.grad.norm(), name


def test_ten_rows_can_be_learned_by_heart(tmp_path: Path) -> None:
    storage = Storage((tmp_path / "objects").as_uri())
    rows = toy_rows(10)
    spec = toy_spec(storage, method=PluginChoice(name="full"), rows=rows, validation=rows, samples=10, epochs=60)
    told: list[Sampled] = []
    run(spec, storage, emit=lambda event: told.append(event) if isinstance(event, Sampled) else None)
    assert len(told[-1].samples) == 10
    assert [sample.answer for sample in told[-1].samples] == [sample.expected for sample in told[-1].samples]
    assert all(row["messages"][1]["content"] == one.expected for row, one in zip(rows, told[-1].samples, strict=True))


def test_preferences_are_learned_for_pairs_that_were_not_seen(tmp_path: Path) -> None:
    storage = Storage((tmp_path / "objects").as_uri())
    spec = trl.spec_of("dpo", storage)
    held_out = storage.write("files/held", jsonl(trl.pairs(seed=4)))
    validation = spec.training.model_copy(update={"key": held_out.key, "sha256": held_out.sha256})
    told: list[Evaluated] = []
    spec = spec.model_copy(update={"validation": validation, "epochs": 6})
    run(spec, storage, emit=lambda event: told.append(event) if isinstance(event, Evaluated) else None)
    assert told[0].measures["reward_margin"] == pytest.approx(0.0, abs=1e-5)
    assert told[0].loss == pytest.approx(math.log(2), abs=1e-6)
    assert told[-1].measures["reward_accuracy"] > 0.9
    margins = [one.measures["reward_margin"] for one in told]
    assert margins == sorted(margins)
