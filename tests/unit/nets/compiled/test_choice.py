"""A kernel is taken where it is there and gives what ours gives, else ours stay and the reason is told."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from luthier.nets import fusion, losses
from luthier.nets.compiled import choice
from luthier.nets.kernels import own, taken
from luthier.nets.losses import learned_tokens
from luthier.nets.packing import pack, prepare
from tests.unit.nets.families import model_of

SHORT, PLAIN = "the job is short", "its norms learn"
TOKENS = [([1, 5, 6, 7, 8, 9], [0.0, 1, 1, 1, 1, 1]), ([2, 3, 4, 9, 9, 9, 7, 5], [1.0] * 8)]


def chosen(model: Any, **more: Any) -> dict[str, str | None]:
    return choice.choose(model, torch.float32, **{"why_eager": SHORT, "why_plain": None} | more)


def learn(model: Any) -> tuple[torch.Tensor, ...]:
    said = learned_tokens(model, pack(TOKENS, torch.device("cpu")))
    (gradient,) = torch.autograd.grad(said.logprobs_N.sum(), model.get_input_embeddings().weight)
    return said.logprobs_N, said.correct_N, gradient


@pytest.mark.parametrize("kind", ["llama", "scaled", "divided"])
def test_a_head_that_is_proved_gives_the_same_log_probabilities_and_gradients(liger, kind) -> None:
    model = model_of(kind)
    model.get_output_embeddings().weight = nn.Parameter(model.get_output_embeddings().weight.detach().clone())
    model.get_output_embeddings().requires_grad_(False)
    prepare(model)
    expected = learn(model)
    used: list[int] = []
    stand_in = liger.fused_linear_cross_entropy_forward
    liger.fused_linear_cross_entropy_forward = lambda *given, **named: (used.append(1), stand_in(*given, **named))[1]
    assert chosen(model)[choice.HEAD] is None
    used.clear()
    for found, exact in zip(learn(model), expected, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-5)
    assert used


def test_a_head_that_is_not_installed_is_not_taken(monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "luthier.nets.compiled.head", raising=False)
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    told = chosen(model_of("llama").requires_grad_(False))
    assert told[choice.HEAD] == "liger_kernel is not installed; the extra `gpu` has it"
    assert not taken


@pytest.mark.parametrize("wrong", [0, 3, 4])
def test_a_head_that_gives_something_else_is_not_taken(liger, wrong) -> None:
    stand_in = liger.fused_linear_cross_entropy_forward

    def other(*given: Any, **named: Any) -> tuple[Any, ...]:
        said = list(stand_in(*given, **named))
        said[wrong] = said[wrong] + said[wrong].abs().max()
        return tuple(said)

    liger.fused_linear_cross_entropy_forward = other
    why = chosen(model_of("llama").requires_grad_(False))[choice.HEAD]
    assert why is not None and why.startswith("on a probe frozen_head gives something else: the difference is ")
    assert not taken


def test_what_is_no_number_is_something_else(liger) -> None:
    stand_in = liger.fused_linear_cross_entropy_forward
    liger.fused_linear_cross_entropy_forward = lambda *given, **named: tuple(
        one * torch.nan if isinstance(one, torch.Tensor) and one.is_floating_point() else one
        for one in stand_in(*given, **named)
    )
    told = chosen(model_of("llama").requires_grad_(False))
    assert told[choice.HEAD] == "on a probe frozen_head gives something else: the difference is nan"


def test_a_head_that_refuses_is_not_taken(liger) -> None:
    def refusing(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no such instruction\nand much more")

    liger.fused_linear_cross_entropy_forward = refusing
    told = chosen(model_of("llama").requires_grad_(False))
    assert told[choice.HEAD] == "it does not run here: RuntimeError: no such instruction"
    assert not taken


def test_a_lack_of_memory_is_no_refusal(liger) -> None:
    def starved(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    liger.fused_linear_cross_entropy_forward = starved
    with pytest.raises(torch.OutOfMemoryError):
        chosen(model_of("llama").requires_grad_(False))


def test_a_head_that_learns_is_ours(liger) -> None:
    assert chosen(model_of("llama"))[choice.HEAD] == "the output layer learns, or does more than a product"


def test_nothing_is_compiled_for_a_short_job_or_for_layers_of_the_library(liger, monkeypatch) -> None:
    for room in ("attention", "small"):
        monkeypatch.setitem(sys.modules, f"luthier.nets.compiled.{room}", None)
    model = model_of("llama").requires_grad_(False)
    assert chosen(model) == {choice.ATTENTION: SHORT, choice.SMALL: SHORT, choice.HEAD: None}
    told = chosen(model, why_plain=PLAIN)
    assert told[choice.SMALL] == "the layers are the library's"


def test_what_was_taken_before_is_forgotten(liger) -> None:
    chosen(model_of("llama").requires_grad_(False))
    assert taken
    chosen(model_of("llama"))
    assert not taken


def test_gradients_are_compared_too(monkeypatch) -> None:
    """A stand-in for attention that is right forward, and lets no gradient to the keys."""
    from luthier.nets import attention

    query, key = torch.randn(2, 1, 2, 4, 8).unbind()
    given = (query.requires_grad_(), key.requires_grad_(), key.detach(), (attention.Segment(0, 4, 4),))
    room = SimpleNamespace(
        kernels=lambda: {
            "over_tree": lambda query, key, *rest: own(attention.over_tree)(query, key + 0 * key.detach(), *rest)
        },
        probes=lambda shape: iter([(attention.over_tree, given)]),
    )
    monkeypatch.setitem(sys.modules, "luthier.nets.compiled.attention", room)
    model = model_of("llama")
    assert chosen(model, why_eager=None, why_plain=PLAIN)[choice.ATTENTION] is None
    room.kernels = lambda: {
        "over_tree": lambda query, key, *rest: own(attention.over_tree)(query, key + (key - key.detach()), *rest)
    }
    why = chosen(model, why_eager=None, why_plain=PLAIN)[choice.ATTENTION]
    assert why is not None and why.startswith("on a probe over_tree gives something else")


def test_ours_goes_on_for_tensors_elsewhere() -> None:
    both = torch.randn(3, 8)
    taken["gated", "cuda"] = lambda *_: pytest.fail("it is for another device")
    torch.testing.assert_close(fusion.gated(both), own(fusion.gated)(both))


def test_a_short_run_on_a_cpu_imports_none_of_them() -> None:
    code = (
        "import sys, torch\n"
        "import luthier.training.run\n"
        "from luthier.training.forward import chosen_kernels\n"
        "from tests.unit.nets.families import model_of\n"
        "told = chosen_kernels(model_of('llama'), torch.float32, why_eager='it is short', why_plain=None)\n"
        "assert told.pop(\"oneDNN's products\", None) is None and told == {'compiled norms and gates': 'it is short'}, told\n"
        "rooms = ['luthier.nets.compiled.' + room for room in ('attention', 'small', 'head')]\n"
        "print([name for name in sys.modules if name.startswith((*rooms, 'liger_kernel', 'triton'))])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_losses_are_those_of_our_head_where_nothing_was_taken() -> None:
    assert not taken
    hidden, output = torch.randn(5, 8), nn.Linear(8, 11, bias=True).requires_grad_(False)
    targets = torch.tensor([1, 2, 3, 4, 5])
    logprobs, correct, slopes = losses.frozen_head(hidden, targets, output, 2.0, 2)
    exact = hidden.double().requires_grad_()
    said = torch.log_softmax(2.0 * nn.functional.linear(exact, output.weight.double(), output.bias.double()), -1)
    expected = said.gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(logprobs.double(), expected, rtol=1e-5, atol=1e-5)
    assert correct.equal(said.argmax(-1) == targets)
    (gradient,) = torch.autograd.grad(expected.sum(), exact)
    torch.testing.assert_close(slopes.double(), gradient, rtol=1e-4, atol=1e-5)
