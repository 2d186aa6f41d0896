"""What every training method promises, whatever it is called."""

from pathlib import Path

import pytest
import torch

from luthier.nets.loading import load_model
from luthier.nets.losses import head, learned_tokens
from luthier.nets.packing import Packed, hidden_states, pack, prepare
from luthier.storage import Storage, digest
from luthier.testing import toy_model, toy_rows, toy_spec
from luthier.training.methods.base import Method, methods
from luthier.training.run import run
from luthier.training.spec import PluginChoice

IDS = [257, 70, 71, 258, 200, 257, 90, 91]


@pytest.fixture(params=methods.names())
def name(request) -> str:
    return request.param


@pytest.fixture
def method(name) -> Method:
    plugin = methods.load(name)
    return plugin(plugin.Options())


@pytest.fixture
def base(tmp_path) -> Path:
    return toy_model(tmp_path / "toy")


def attached(method: Method, base: Path, seed: int = 0):
    model = load_model(base, precision="fp32", is_quantised=method.is_quantised)
    prepare(model)
    return method.attach(model.requires_grad_(False), seed=seed)


def packed() -> Packed:
    return pack([(IDS, [1.0] * len(IDS)), (IDS[:3], [1.0] * 3)], torch.device("cpu"))


def logits(model) -> torch.Tensor:
    """What the model as it is trained says of the first sequence."""
    with torch.no_grad():
        return head(model, hidden_states(model, packed()))[: len(IDS)]


def learn(method: Method, model) -> None:
    """A few large steps, so that everything that can change has changed."""
    optimizer = torch.optim.SGD(method.trainable(model).values(), lr=0.5)
    model.train()
    for _ in range(3):
        (-learned_tokens(model, packed()).logprobs_N.mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def test_options_have_defaults_and_descriptions(name):
    fields = methods.load(name).Options.model_fields
    assert all(field.description and not field.is_required() for field in fields.values())


def test_what_is_not_trained_stays_bit_identical(method, base):
    model = attached(method, base)
    trainable = method.trainable(model)
    frozen = {
        name: t.clone() for name, t in [*model.named_parameters(), *model.named_buffers()] if name not in trainable
    }
    before = {name: p.clone() for name, p in trainable.items()}
    learn(method, model)
    after = dict([*model.named_parameters(), *model.named_buffers()])
    assert frozen or method.artifact_kind == "model"
    assert all(torch.equal(after[name], value) for name, value in frozen.items())
    assert all(not torch.equal(after[name], value) for name, value in before.items())


def test_what_is_trained_is_fp32_over_a_bf16_base(method, base):
    loaded = load_model(base, precision="bf16", is_quantised=method.is_quantised)
    model = method.attach(loaded.requires_grad_(False), seed=0)
    assert {p.dtype for p in method.trainable(model).values()} == {torch.float32}


def test_the_same_seed_attaches_the_same_numbers(method, base):
    one, two, other = (method.trainable(attached(method, base, seed)) for seed in (1, 1, 2))
    assert list(one) == list(two)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert method.artifact_kind == "model" or any(not torch.equal(one[name], other[name]) for name in one)


def test_an_export_restored_gives_the_same_logits_and_the_same_bytes(method, base, tmp_path):
    model = attached(method, base)
    learn(method, model)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    method.export(model, tmp_path / "one", base_model="toy")
    fresh = attached(method, base, seed=5)
    method.restore(fresh, tmp_path / "one")
    fresh.eval()
    assert torch.equal(logits(fresh), logits(model))
    method.export(fresh, tmp_path / "two", base_model="toy")
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


def test_a_stock_library_loads_the_artifact(method, base, tmp_path):
    from peft import PeftModel

    model = attached(method, base)
    learn(method, model)
    (tmp_path / "artifact").mkdir()
    method.export(model, tmp_path / "artifact", base_model="toy")
    if method.artifact_kind == "model":
        stock = load_model(tmp_path / "artifact", precision="fp32")
    else:
        plain = load_model(base, precision="fp32", is_quantised=method.is_quantised)
        stock = PeftModel.from_pretrained(plain, tmp_path / "artifact").eval()
    with torch.no_grad():
        found = stock(input_ids=torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(found, logits(model), rtol=1e-5, atol=1e-5)
    plain = load_model(base, precision="fp32")(input_ids=torch.tensor([IDS])).logits[0]
    assert not torch.allclose(found, plain, atol=1e-2)


def test_nothing_is_learned_before_the_first_step_unless_it_must_be(method, base):
    plain = load_model(base, precision="fp32", is_quantised=method.is_quantised)
    with torch.no_grad():
        expected = plain(input_ids=torch.tensor([IDS])).logits[0]
    if method.options.model_dump().get("prefix_length"):
        pytest.skip("a prefix is seen from the start")
    torch.testing.assert_close(logits(attached(method, base)), expected, rtol=1e-5, atol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradients(method, base):
    found = []
    for is_checkpointed in (False, True):
        model = attached(method, base)
        model.train()
        if is_checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        (-learned_tokens(model, packed()).logprobs_N.mean()).backward()
        found.append({name: p.grad for name, p in method.trainable(model).items()})
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, rtol=1e-5, atol=1e-7)


def test_a_toy_learns(name, tmp_path):
    storage = Storage((tmp_path / "objects").as_uri())
    spec = toy_spec(storage, rows=toy_rows(8), epochs=6, method=PluginChoice(name=name))
    losses = []
    last = run(spec, storage, emit=lambda event: losses.append(event.loss) if event.type == "progress" else None)
    assert last.type == "succeeded"
    assert losses[-1] < 0.85 * losses[0]
