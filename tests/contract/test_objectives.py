"""What every objective promises, whatever it is called."""

import pytest
import torch

from luthier.chat.messages import Conversation, Message, PlainText, PreferencePair
from luthier.chat.renderers.base import renderer_for
from luthier.chat.tokenizer import Tokenizer
from luthier.formats.base import Example
from luthier.nets.loading import load_model
from luthier.nets.packing import prepare
from luthier.storage import Storage
from luthier.testing import jsonl, toy_model, toy_rows, toy_spec
from luthier.training.data import packed
from luthier.training.objectives.base import Encoded, objectives
from luthier.training.run import run
from luthier.training.spec import DataFile, PluginChoice

ASKED = [("a", "b", "cc"), ("what is it", "a longer answer", "no"), ("x" * 9, "yes", "maybe not")]
EXAMPLES = {
    "chat": [Conversation((Message("user", asked), Message("assistant", said))) for asked, said, _ in ASKED],
    "text": [PlainText(f"{asked} {said}") for asked, said, _ in ASKED],
    "preference": [
        PreferencePair(Conversation((Message("user", asked),)), Message("assistant", said), Message("assistant", other))
        for asked, said, other in ASKED
    ],
}


def rows_of(kind: str) -> list[dict]:
    """Rows of a file of that kind with something in it to be learned."""
    if kind == "chat":
        return toy_rows(8)
    if kind == "text":
        return [{"text": f"{word} {word} {word}"} for word in ("ab", "cd", "abc", "dd")]
    asked = {"messages": [{"role": "user", "content": "Say it."}]}
    return [
        asked
        | {
            "chosen": {"role": "assistant", "content": word * 3},
            "rejected": {"role": "assistant", "content": "no " + word},
        }
        for word in ("a", "b", "c", "ab", "ba")
    ]


FORMATS = {"chat": "messages", "text": "text", "preference": "chosen_rejected"}


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


def test_what_else_is_in_a_micro_batch_does_not_change_the_loss(objective, toy):
    model, renderer = toy
    prepare(model)
    rows = encoded(objective, renderer)
    device = torch.device("cpu")
    together = objective.losses(model, packed(rows, device), rows)
    alone = [objective.losses(model, packed([row], device), [row]) for row in rows]
    torch.testing.assert_close(together.total, sum(each.total for each in alone))
    for name, (total, count) in together.measures.items():
        torch.testing.assert_close(total.float(), sum(each.measures[name][0] for each in alone).float())
        assert count == sum(each.measures[name][1] for each in alone)
    assert all(objective.units(row) > 0 for row in rows)


def encoded(objective, renderer) -> list[Encoded]:
    examples = [Example(line, line, value) for line, value in enumerate(EXAMPLES[objective.wants], start=1)]
    reference = (-3.0, -2.0) if objective.has_reference else ()
    return [Encoded(objective.encode(example, renderer), example.row, reference) for example in examples]


def test_what_is_learned_lies_within_the_row(objective, toy):
    for row in encoded(objective, toy[1]):
        assert all(len(one.tokens) == len(one.weights) for one in row.sequences)
        assert 0 < row.trained < row.length


def test_the_loss_falls_on_a_toy_set(name, tmp_path):
    storage = Storage((tmp_path / "objects").as_uri())
    kind = objectives.load(name).wants
    data = storage.write("files/x", jsonl(rows_of(kind)))
    file = DataFile(key=data.key, sha256=data.sha256, format=FORMATS[kind])
    spec = toy_spec(storage, epochs=8, objective=PluginChoice(name=name), training=file)
    losses = []
    last = run(spec, storage, emit=lambda event: losses.append(event.loss) if event.type == "progress" else None)
    assert last.type == "succeeded"
    assert losses[-1] < 0.85 * losses[0]
