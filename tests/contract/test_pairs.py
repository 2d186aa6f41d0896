"""Every method with every objective on every shape of model: losses and gradients are those of plain rows in double precision."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from luthier.chat.renderers.base import Rendered
from luthier.nets.losses import prove_head
from luthier.nets.packing import prepare
from luthier.nets.prefix import prefix_of
from luthier.nets.quantised import quantise
from luthier.training.data import packed
from luthier.training.methods.base import Method, methods
from luthier.training.objectives.base import Encoded, objectives
from tests.unit.nets.test_losses import KINDS, model_of

SHAPES = ["llama", "smollm2", "qwen2.5", "qwen3", "glm4"]
ROWS = [
    ([1, 5, 6, 7, 8, 9], [0, 0, 0, 1, 1, 1]),
    ([1, 5, 6, 7, 4], [0, 0, 0, 1, 1]),
    ([2, 11, 12, 13, 14, 30, 31, 7], [0, 1, 1, 0, 0, 0, 1, 1]),
    ([2, 11, 12, 13, 14, 33, 8], [0, 0, 0, 0, 0, 1, 1]),
]
REFERENCES = [(-9.0, -7.5), (-12.0, -8.0)]


def rows_of(objective: str) -> list[Encoded]:
    sequences = [Rendered(list(ids), [float(weight) for weight in weights]) for ids, weights in ROWS]
    if objective == "dpo":
        pairs = zip(sequences[::2], sequences[1::2], REFERENCES, strict=True)
        return [Encoded((chosen, rejected), row, said) for row, (chosen, rejected, said) in enumerate(pairs, 1)]
    if objective == "cpt":
        sequences = [Rendered(one.tokens, [1.0] * len(one.tokens)) for one in sequences]
    return [Encoded((one,), row) for row, one in enumerate(sequences, 1)]


def logprobs(model: Any, one: Rendered) -> Tensor:
    """Those of the learned tokens, from full logits of this sequence alone."""
    ids, cache = torch.tensor([one.tokens]), None
    if (prefix := prefix_of(model)) is not None:
        cache = DynamicCache()
        for layer, both in enumerate(prefix()):
            cache.update(both[None, 0], both[None, 1], layer)
    logits = model(input_ids=ids, past_key_values=cache, use_cache=cache is not None).logits[0, :-1]
    each = -nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    return each[torch.tensor(one.weights[1:]).bool()]


def plain_loss(model: Any, objective: str, rows: list[Encoded]) -> Tensor:
    if objective != "dpo":
        return -torch.cat([logprobs(model, one) for row in rows for one in row.sequences]).sum()
    losses = []
    for row in rows:
        gains = [logprobs(model, one).sum() - said for one, said in zip(row.sequences, row.reference, strict=True)]
        losses.append(-nn.functional.logsigmoid(0.1 * (gains[0] - gains[1])))
    return torch.stack(losses).sum()


def attached(shape: str, method: Method) -> PreTrainedModel:
    model = model_of(shape).requires_grad_(False)
    if method.is_quantised:
        quantise(model, torch.device("cpu"))
    prove_head(model)
    prepare(model)
    method.attach(model, seed=0, blank=[3])
    torch.manual_seed(1)
    for parameter in method.trainable(model).values():
        parameter.data += 0.05 * torch.randn_like(parameter)  # away from zeros that hide what does not work
    return model


def plain(model: PreTrainedModel) -> PreTrainedModel:
    """A copy in double precision, with the attention of transformers."""
    exact = copy.deepcopy(model).double()
    exact.set_attn_implementation("sdpa")
    return exact


@pytest.mark.parametrize("objective", objectives.names())
@pytest.mark.parametrize("name", methods.names())
@pytest.mark.parametrize("shape", SHAPES)
def test_a_pair_has_the_losses_and_gradients_of_plain_rows(shape: str, name: str, objective: str) -> None:
    method, plugin = methods.load(name), objectives.load(objective)
    way, aim = method(method.Options()), plugin(plugin.Options())
    model, rows = attached(shape, way), rows_of(objective)
    exact = plain(model)
    expected = plain_loss(exact, objective, rows)
    expected.backward()
    found = aim.losses(model, packed(rows, torch.device("cpu")), rows).total
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    differences, sizes = [], []
    for parameter, other in zip(way.trainable(model).values(), way.trainable(exact).values(), strict=True):
        assert parameter.grad is not None
        assert other.grad is not None
        differences.append((parameter.grad.double() - other.grad).pow(2).sum())
        sizes.append(other.grad.pow(2).sum())
    assert torch.stack(differences).sum().sqrt() <= 1e-5 * torch.stack(sizes).sum().sqrt()


def test_the_shapes_are_those_of_the_proof() -> None:
    assert set(SHAPES) <= set(KINDS)


@pytest.mark.parametrize(
    "options", [{"rank_stabilised": True, "alpha": 8}, {"decomposed": True}, {"targets": "attention"}]
)
@pytest.mark.parametrize("name", ["lora", "qlora"])
def test_the_kinds_of_lora_have_the_gradients_of_a_plain_model(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    method = methods.load(name)
    way = method(method.Options.read(options, param="method"))
    model, rows = attached("smollm2", way), rows_of("sft")
    plain_loss(exact := plain(model), "sft", rows).backward()
    aim = objectives.load("sft")
    aim(aim.Options()).losses(model, packed(rows, torch.device("cpu")), rows).total.backward()
    for parameter, other in zip(way.trainable(model).values(), way.trainable(exact).values(), strict=True):
        assert parameter.grad is not None and other.grad is not None
        assert (parameter.grad.double() - other.grad).norm() <= 2e-5 * other.grad.norm() + 1e-6
