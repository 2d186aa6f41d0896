"""The small operations that are compiled on a GPU compute what ours do, and the compiler takes each as a whole."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from luthier.nets import fusion
from luthier.nets.compiled import small
from luthier.nets.compiled.probes import Shape
from luthier.nets.kernels import own
from tests.unit.nets.families import model_of

NAMES = ["norm", "normed", "norm_backward", "gated", "gated_backward", "_turned"]


def test_every_one_has_a_probe() -> None:
    probed = {ours.__name__ for ours, _ in small.probes(Shape(model_of("llama"), torch.float32))}
    assert probed == set(small.kernels()) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_given_what_ours_is_given(name: str) -> None:
    ours, theirs = (
        list(inspect.signature(one).parameters) for one in (own(getattr(fusion, name)), getattr(small, name))
    )
    assert theirs == ours


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_each_gives_what_ours_gives(dtype: torch.dtype, near: float) -> None:
    for ours, given in small.probes(Shape(model_of("llama"), dtype)):
        torch.testing.assert_close(getattr(small, ours.__name__)(*given), own(ours)(*given), rtol=near, atol=near)


@pytest.mark.parametrize("name", NAMES)
def test_the_compiler_takes_it_as_a_whole(name: str) -> None:
    torch.compiler.reset()  # it compiles nothing more often than it may, whoever had it compiled before
    whole: Any = torch.compile(getattr(small, name), backend="eager", fullgraph=True)
    for ours, given in small.probes(Shape(model_of("llama"), torch.float32)):
        if ours.__name__ == name:
            torch.testing.assert_close(whole(*given), own(ours)(*given), rtol=1e-5, atol=1e-5)
