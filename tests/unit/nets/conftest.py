"""Which kernels stand in for our own operations: none but those that a test takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from luthier.nets import attention, kernels
from luthier.nets.compiled import products


@pytest.fixture(autouse=True)
def _nothing_taken() -> Iterator[None]:
    kernels.taken.clear()
    yield
    kernels.taken.clear()


@pytest.fixture
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Lets oneDNN multiply, behind attention's scores too however few they are."""

    def take() -> None:
        if not torch.backends.mkldnn.is_available():
            pytest.skip("this torch has no oneDNN")
        monkeypatch.setattr(attention, "_LEAST_PAIRS", 0)
        kernels.taken.update({(name, "cpu"): kernel for name, kernel in products.kernels().items()})

    return take
