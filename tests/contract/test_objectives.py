"""What every objective promises, whatever it is called."""

import pytest
import torch

from luthier.chat.messages import Conversation, Message
from luthier.chat.renderers.base import renderer_for
from luthier.chat.tokenizer import Tokenizer
from luthier.formats.base import Example
from luthier.nets.loading import load_model
from luthier.storage import Storage
from luthier.testing import toy_model, toy_rows, toy_spec
from luthier.training.objectives.base import objectives
from luthier.training.run import run
from luthier.training.spec import PluginChoice

EXAMPLES = {
    "chat": [
        Example(line, line, Conversation((Message("user", asked), Message("assistant", said))))
        for line, (asked, said) in enumerate([("a", "b"), ("what is it", "a longer answer"), ("x" * 9, "yes")], start=1)
    ]
}


@pytest.fixture(params=objectives.names())
def name(request) -> str:
    return request.param


@pytest.fixture
def objective(name):
    plugin = objectives.load(name)
    return plugin(plugin.Options())


@pytest.fixture
def toy(tmp_path):
    folder = toy_model(tmp_path / "toy")
    return load_model(folder, precision="fp32"), renderer_for(Tokenizer(folder))


def test_padding_and_grouping_do_not_change_the_loss(objective, toy):
    model, renderer = toy
    rows = [objective.joined(objective.encode(example, renderer)) for example in EXAMPLES[objective.wants]]
    device = torch.device("cpu")
    together = objective.loss(model, objective.collate(rows, device))
    alone = [objective.loss(model, objective.collate([row], device)) for row in rows]
    torch.testing.assert_close(together.total, sum(each.total for each in alone))
    assert together.trained == sum(each.trained for each in alone) == sum(row.trained for row in rows)
    assert together.correct == sum(each.correct for each in alone)


def test_what_is_learned_lies_within_the_row(objective, toy):
    for example in EXAMPLES[objective.wants]:
        row = objective.joined(objective.encode(example, toy[1]))
        assert len(row.tokens) == len(row.weights) == row.length
        assert 0 < row.trained < row.length


def test_the_loss_falls_on_a_toy_set(name, tmp_path):
    storage = Storage((tmp_path / "objects").as_uri())
    spec = toy_spec(storage, rows=toy_rows(8), epochs=6, objective=PluginChoice(name=name))
    losses = []
    last = run(spec, storage, emit=lambda event: losses.append(event.loss) if event.type == "progress" else None)
    assert last.type == "succeeded"
    assert losses[-1] < 0.85 * losses[0]
