"""Our own layers give the losses and gradients of plain PEFT in double precision, for every family that is known."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.functional import cast_adapter_dtype
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from luthier.nets import fusion, layers
from luthier.nets.layers import fuse
from luthier.nets.losses import learned_tokens
from luthier.nets.packing import hidden_states, pack, prepare
from luthier.nets.prefix import Prefix, put_prefix, seen
from luthier.nets.quantised import Nf4Linear, quantise
from luthier.training.methods.base import method_of
from tests.unit.nets.families import SMALL, model_of

KNOWN = ["smollm2", "biases", "qwen2.5", "qwen2.5, window", "qwen3", "glm4"]
CPU = torch.device("cpu")
ROWS = [
    ([1, 5, 6, 7, 8, 9], [0.0, 0, 0, 1, 1, 1]),
    ([1, 5, 6, 7, 13, 4, 4], [0, 0, 0.0, 0, 0.5, 1, 1]),
    ([2, 3, 4, 9, 9, 9, 7, 5], [0.0, 1, 1, 1, 1, 1, 1, 1]),
    ([1, 5, 6, 7, 8, 9, 11, 12], [0.0, 0, 0, 0, 1, 1, 1, 1]),
]


@pytest.fixture(params=["torch's", "oneDNN's"], autouse=True)
def _products(request: pytest.FixtureRequest, by_onednn: Callable[[], None]) -> None:
    """Every test holds whoever multiplies."""
    if request.param == "oneDNN's":
        by_onednn()


def adapted(
    kind: str, *names: str, targets: str | list[str] = "all-linear", is_quantised: bool = False, **more: Any
) -> nn.Module:
    """A frozen model with adapters that say something."""
    model = model_of(kind).requires_grad_(False)
    if is_quantised:
        quantise(model, CPU)
    for name in names:
        inject_adapter_in_model(LoraConfig(r=3, lora_alpha=7, target_modules=targets, **more), model, name)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def unfolded(model: nn.Module) -> nn.Module:
    """The same in double precision, its 4 bits the numbers that they stand for."""
    exact = copy.deepcopy(model)
    for name, layer in model.named_modules():
        if isinstance(layer, Nf4Linear):
            plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
            plain.weight.data = layer.weight
            if layer.bias is not None:
                plain.bias.data = layer.bias.data
            exact.set_submodule(name, plain.requires_grad_(False))
    return exact.double()


def plainly(model: nn.Module, rows: list[Any]) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for ids, weights in rows:
        tokens = torch.tensor([ids])
        logits = model(input_ids=tokens, use_cache=False).logits[0, :-1].double()
        each = nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none")
        total = total + (each * torch.tensor(weights[1:], dtype=torch.float64)).sum()
    return total


def ours(model: Any, rows: list[Any], **more: Any) -> torch.Tensor:
    packed = pack(rows, CPU, **more)
    return -(learned_tokens(model, packed).logprobs_N * packed.weights_N).sum()


def assert_same_gradients(model: nn.Module, exact: nn.Module) -> None:
    differences, sizes = torch.zeros(()).double(), torch.zeros(()).double()
    others = dict(exact.named_parameters())
    for name, one in model.named_parameters():
        other = others[name]
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None and other.grad is not None:
            differences += (one.grad.double() - other.grad).square().sum()
            sizes += other.grad.square().sum()
    assert sizes > 0
    assert differences.sqrt() <= 1e-5 * sizes.sqrt()


@pytest.mark.parametrize("kind", KNOWN)
@pytest.mark.parametrize("shared", [None, 2])
@pytest.mark.parametrize("joins", [False, True])
def test_losses_and_gradients_are_those_of_plain_peft(kind: str, shared: int | None, joins: bool) -> None:
    model = adapted(kind, "default")
    exact = copy.deepcopy(model).double()
    expected = plainly(exact, ROWS)
    expected.backward()
    prepare(model)
    assert fuse(model, joins=joins) is None
    found = ours(model, ROWS, shared=shared)
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert_same_gradients(model, exact)


def test_adapters_on_some_layers_alone() -> None:
    model = adapted("qwen2.5", "default", targets=["q_proj", "v_proj", "down_proj"])
    exact = copy.deepcopy(model).double()
    plainly(exact, ROWS).backward()
    prepare(model)
    assert fuse(model) is None
    ours(model, ROWS, shared=2).backward()
    assert_same_gradients(model, exact)


@pytest.mark.parametrize("shared", [None, 2])
def test_a_window_in_layers_that_are_the_librarys(shared: int | None) -> None:
    model = adapted("window", "default")
    exact = copy.deepcopy(model).double()
    expected = plainly(exact, ROWS)
    expected.backward()
    prepare(model)
    assert fuse(model) == "layers of type MistralDecoderLayer are not known"
    found = ours(model, ROWS, shared=shared)
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert_same_gradients(model, exact)


@pytest.mark.parametrize("kind", KNOWN)
@pytest.mark.parametrize("shared", [None, 2])
def test_weights_in_four_bits_give_the_gradients_of_what_they_stand_for(kind: str, shared: int | None) -> None:
    model = adapted(kind, "default", is_quantised=True)
    exact = unfolded(model)
    expected = plainly(exact, ROWS)
    expected.backward()
    prepare(model)
    assert fuse(model) is None
    found = ours(model, ROWS, shared=shared)
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert_same_gradients(model, exact)


@pytest.mark.parametrize("kind", KNOWN)
@pytest.mark.parametrize("is_quantised", [False, True])
def test_two_adapters_in_one_pass(kind: str, is_quantised: bool) -> None:
    model = adapted(kind, "one", "two", is_quantised=is_quantised)
    exact = unfolded(model)
    for adapter, rows in (("one", ROWS[::2]), ("two", ROWS[1::2])):
        for module in exact.modules():
            if hasattr(module, "set_adapter") and hasattr(module, "lora_A"):
                module.set_adapter(adapter)
        plainly(exact, rows).backward()
    for parameter in exact.parameters():  # choosing an adapter says which one learns
        parameter.requires_grad_(parameter.grad is not None)
    prepare(model)
    assert fuse(model) is None
    ours(model, ROWS, shared=2, adapters=["one", "two", "one", "two"]).backward()
    assert_same_gradients(model, exact)


def test_adapters_by_sequence_are_refused_where_layers_are_the_librarys() -> None:
    model = adapted("smollm2", "one", "two")
    prepare(model)
    with pytest.raises(ValueError, match="go through several adapters"):
        ours(model, ROWS[:2], adapters=["one", "two"])


@pytest.mark.parametrize("kind", KNOWN)
def test_a_learned_prefix(kind: str) -> None:
    model: Any = model_of(kind).requires_grad_(False)
    prepare(model)
    start, shape = seen(model, [3] * 5)
    put_prefix(model, Prefix(start, shape, width=16))
    with torch.no_grad():
        model.luthier_prefix.outer.weight.normal_(std=0.1)
    exact = copy.deepcopy(model)
    expected = ours(exact, ROWS)
    expected.backward()
    assert fuse(model) is None
    found = ours(model, ROWS, shared=2)
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert_same_gradients(model, exact)


def test_layers_are_computed_again_where_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = adapted("smollm2", "default").train()
    prepare(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert fuse(model) is None
    calls: list[int] = []
    plainly_attended = layers.over_tree
    monkeypatch.setattr(layers, "over_tree", lambda *given: (calls.append(1), plainly_attended(*given))[1])
    exact = adapted("smollm2", "default").double()
    plainly(exact, ROWS).backward()
    loss = ours(model, ROWS, shared=2)
    assert len(calls) == 2
    loss.backward()
    assert len(calls) == 4
    assert_same_gradients(model, exact)


def test_behind_the_last_layer_stands_only_what_is_asked_for() -> None:
    model: Any = adapted("smollm2", "default")
    prepare(model)
    packed = pack(ROWS, CPU, shared=2)
    expected = hidden_states(model, packed)
    assert fuse(model) is None
    said = hidden_states(model, packed)
    asked = torch.zeros(len(said), dtype=torch.bool)
    asked[packed.chosen_N] = True
    assert 0 < asked.sum() < len(said)
    torch.testing.assert_close(said[asked], expected[asked])
    assert not said[~asked].any()


def test_adapters_that_are_switched_off_are_not_fused() -> None:
    model = adapted("smollm2", "default")
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.enable_adapters(False)
    assert fuse(model) == "its adapter is merged into the weights, or switched off"


def test_what_is_not_packed_goes_through_the_library() -> None:
    model = adapted("smollm2", "default")
    ids = torch.tensor([ROWS[0][0]])
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        prepare(model)
        fuse(model)
        torch.testing.assert_close(model(input_ids=ids).logits, expected)
        assert model.generate(ids, max_new_tokens=4, do_sample=False).shape[1] == ids.shape[1] + 4


@pytest.mark.parametrize("kind", KNOWN)
@pytest.mark.parametrize("method", ["lora", "qlora", "ptuning_v2"])
def test_known_models_go_through_our_layers_in_every_pass(
    kind: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = model_of(kind).requires_grad_(False)
    if method == "qlora":
        quantise(model, CPU)
    prepare(model)
    options = {"prefix_length": 5} if method == "ptuning_v2" else {}
    method_of(method, options).attach(model, seed=0, blank=[3, 4])
    assert fuse(model) is None
    calls: list[int] = []
    plainly_attended = layers.over_tree
    monkeypatch.setattr(layers, "over_tree", lambda *given: (calls.append(1), plainly_attended(*given))[1])
    for packed in (pack(ROWS, CPU), pack(ROWS, CPU, shared=2)):
        learned_tokens(model.train(), packed)
    with torch.no_grad():
        learned_tokens(model.eval(), packed)
    assert len(calls) == 3 * len(model.get_decoder().layers)


def error(found: nn.Module, exact: nn.Module) -> float:
    """How far the gradients of adapters are from the exact ones, relative."""
    one, other = (
        torch.cat([parameter.grad.double().flatten() for parameter in model.parameters() if parameter.grad is not None])
        for model in (found, exact)
    )
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("std", [0.0, 0.05, 0.3])
def test_adapters_over_bf16_are_as_exact_as_plain_pefts(std: float) -> None:
    """Both round what passes between layers to bf16, which is nearly all of either error."""
    errors: dict[str, float] = {"plain": 0.0, "ours": 0.0}
    for seed in range(4):
        ids = [
            torch.randint(3, 50, (20,), generator=torch.Generator().manual_seed(seed + place)).tolist()
            for place in (0, 9)
        ]
        rows = [(row, [0.0, *[1.0] * 19]) for row in (*ids, ids[0][:9] + ids[1][:11])]
        plain: Any = adapted("smollm2", "default").to(torch.bfloat16)
        cast_adapter_dtype(plain, "default")
        torch.manual_seed(seed)
        for name, parameter in plain.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.2 if "lora_A" in name else std)
        exact, model = copy.deepcopy(plain).double(), copy.deepcopy(plain)
        plainly(exact, rows).backward()
        plainly(plain, rows).backward()
        prepare(model)
        assert fuse(model) is None
        ours(model, rows, shared=2).backward()
        errors["plain"] += error(plain, exact) ** 2
        errors["ours"] += error(model, exact) ** 2
    assert 0.01**2 < errors["plain"] / 4 < 0.2**2
    assert errors["ours"] <= 1.3**2 * errors["plain"]


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_a_model_in_which_rounding_grows_is_proved_as_strictly(precision: torch.dtype) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(**SMALL | {"initializer_range": 1.0})
    model: Any = LlamaForCausalLM(config).to(precision).requires_grad_(False)
    prepare(model)
    before = hidden_states(model, pack(ROWS, CPU))
    first = model.get_decoder().layers[0].self_attn
    assert fuse(model) is None
    assert first.q_proj.weight.dtype == precision
    assert first.q_proj.weight.untyped_storage().data_ptr() == first.k_proj.weight.untyped_storage().data_ptr()
    after = hidden_states(model, pack(ROWS, CPU))
    assert after.dtype == precision
    assert after.isfinite().all() and before.isfinite().all()


def test_a_difference_smaller_than_rounding_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted("smollm2", "default").to(torch.bfloat16)
    prepare(model)
    plain = fusion.norm
    monkeypatch.setattr(fusion, "norm", lambda x, weight, eps: plain(x, weight * 1.004, eps))
    assert re.match("the difference is ", fuse(model) or "")


def _renamed(layer: nn.Module, name: str, to: str) -> None:
    """As if the library had given a module another name, and used it under that one."""
    moved = layer._modules.pop(name)
    assert moved is not None
    setattr(layer, to, moved)


def _without_attention(layer: Any) -> None:
    _renamed(layer, "self_attn", "attention")
    layer.forward = lambda hidden, position_embeddings=None, **named: (
        hidden + layer.attention(layer.input_layernorm(hidden), position_embeddings=position_embeddings, **named)[0]
    )


def _with_gates_renamed(layer: Any) -> None:
    _renamed(layer.mlp, "gate_proj", "gate")
    layer.mlp.forward = lambda x: layer.mlp.down_proj(layer.mlp.act_fn(layer.mlp.gate(x)) * layer.mlp.up_proj(x))


def _with_angles_of_its_own(layer: Any) -> None:
    plain = layer.forward
    layer.forward = lambda hidden, *, angles, **named: plain(hidden, position_embeddings=angles, **named)

    def rename(_: Any, given: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return given, {{"position_embeddings": "angles"}.get(name, name): value for name, value in named.items()}

    layer.register_forward_pre_hook(rename, with_kwargs=True)


def _with_another_order(layer: Any) -> None:
    """Norms behind what they stood before, under the same names."""
    attention, mlp = layer.self_attn, layer.mlp

    def forward(hidden: torch.Tensor, **named: Any) -> torch.Tensor:
        hidden = hidden + layer.input_layernorm(attention(hidden, **named)[0])
        return hidden + layer.post_attention_layernorm(mlp(hidden))

    layer.forward = forward


def _with_a_type_that_is_not_known(layer: Any) -> None:
    layer.self_attn.config.hidden_act = "gelu"
    layer.mlp.act_fn = nn.GELU()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_without_attention, "layers of type LlamaDecoderLayer are not what they were: .*no attribute 'self_attn'"),
        (_with_gates_renamed, "layers of type LlamaDecoderLayer are not what they were: .*no attribute 'gate_proj'"),
        (
            _with_angles_of_its_own,
            "layers of type LlamaDecoderLayer are not what they were: they are not told the angles",
        ),
        (_with_another_order, "the difference is "),
        (_with_a_type_that_is_not_known, "its activation is gelu"),
    ],
)
def test_layers_that_a_library_has_changed_stay_the_librarys(change: Any, why: str) -> None:
    model: Any = adapted("smollm2", "default")
    for layer in model.get_decoder().layers:
        change(layer)
    prepare(model)
    expected = ours(model, ROWS)
    before = [vars(layer).get("forward") for layer in model.get_decoder().layers]
    assert re.match(why, fuse(model) or "")
    assert [vars(layer).get("forward") for layer in model.get_decoder().layers] == before
    torch.testing.assert_close(ours(model, ROWS), expected)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: adapted("scaled", "default"), "layers of type Cohere2DecoderLayer are not known"),
        (lambda: adapted("smollm2", "default", lora_dropout=0.1), "its adapter has dropout"),
        (lambda: adapted("smollm2", "default", use_dora=True), "its adapter is decomposed"),
        (lambda: model_of("smollm2").requires_grad_(True), "its norms learn"),
    ],
    ids=["family", "dropout", "dora", "full"],
)
def test_what_cannot_be_fused_says_why_and_stays_as_it_was(make: Any, why: str) -> None:
    model = make()
    assert fuse(model) == why
    assert all("forward" not in vars(layer) for layer in model.get_decoder().layers)
