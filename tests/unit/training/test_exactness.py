"""Losses are those of other programs and of the formulas: TRL's trainers step by step, DPO's terms written out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import logsigmoid

from luthier.chat.renderers.base import Rendered
from luthier.nets.loading import load_model
from luthier.nets.packing import prepare
from luthier.storage import Storage
from luthier.testing import toy_model
from luthier.training.data import packed
from luthier.training.objectives.base import Encoded
from luthier.training.objectives.dpo import Dpo, DpoOptions
from luthier.training.run import run
from tests.reference import trl


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
