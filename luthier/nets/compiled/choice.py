"""Which kernels a run takes: those that are installed and give on a probe what our own operations give, backward too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.nets.compiled.probes import Shape
from luthier.nets.kernels import own, taken
from luthier.nets.losses import is_frozen
from luthier.nets.products import through

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION, SMALL, HEAD, PRODUCTS = (
    "flex attention",
    "compiled norms and gates",
    "Liger's cross entropy",
    "oneDNN's products",
)
"""What a run says of them when it begins."""

ROOMS = {ATTENTION: "attention", SMALL: "small", HEAD: "head"}
"""The files beside this one that have them."""
ON_CPU = {SMALL: ROOMS[SMALL]}
WITHOUT_MKL = {PRODUCTS: "products"}
"""Beside these where MKL does not take all of the processor."""
_NEAR, _ROUNDED = 1e-3, 0.03  # of the largest number, in fp32 and in types of 16 bits


def choose(
    model: PreTrainedModel,
    dtype: torch.dtype,
    *,
    why_eager: str | None,
    why_plain: str | None,
    rooms: Mapping[str, str] = ROOMS,
) -> dict[str, str | None]:
    """Let kernels stand in for our own operations on the model's device, in what it computes in; for each why not, or None.

    `why_eager` is why nothing is to be compiled, `why_plain` why the model's layers are the library's. Several processes each
    choose for themselves.
    """
    taken.clear()
    shape = Shape(model, dtype)
    not_now = {
        ATTENTION: why_eager,
        SMALL: "the layers are the library's" if why_plain else why_eager,
        HEAD: None if is_frozen(model) else "the output layer learns, or does more than a product",
    }
    found = {name: not_now.get(name) or _why_not(room, shape) for name, room in rooms.items()}
    if found.get(PRODUCTS, "") is None:
        through(model)
    return found


def _why_not(room: str, shape: Shape) -> str | None:
    """Why the kernels of a file beside this one are not taken; None where they now are."""
    try:
        kernels = import_module(f"luthier.nets.compiled.{room}")
        theirs: dict[str, Callable[..., Any]] = kernels.kernels()
        for ours, given in kernels.probes(shape):
            name = ours.__name__
            pairs = zip(_said(theirs[name], given), _said(own(ours), given), strict=True)
            if why := next((why for found, exact in pairs if (why := _unlike(found, exact, shape.dtype))), None):
                return f"on a probe {name.strip('_')} gives something else: {why}"
    except ModuleNotFoundError as absent:
        return f"{(absent.name or str(absent)).split('.')[0]} is not installed; the extra `gpu` has it"
    except torch.OutOfMemoryError:
        raise
    except Exception as refused:  # a compiler, a driver or a kernel: each has errors of its own
        return f"it does not run here: {type(refused).__name__}: {(str(refused).strip().splitlines() or [''])[0]}"
    for name, kernel in theirs.items():
        taken[name, shape.device.type] = kernel
    return None


def _said(operation: Callable[..., Any], given: tuple[Any, ...]) -> list[Tensor]:
    """What comes out, and the gradients of the tensors that require them."""
    fresh = [
        one.detach().clone().requires_grad_(one.requires_grad) if isinstance(one, Tensor) else one for one in given
    ]
    learning = [one for one in fresh if isinstance(one, Tensor) and one.requires_grad]
    with torch.set_grad_enabled(bool(learning)):
        said = operation(*fresh)
    outputs = said if isinstance(said, tuple) else (said,)
    found = [one.detach() for one in outputs]
    if learning:
        slopes = torch.arange(outputs[0].numel(), device=outputs[0].device).view_as(outputs[0]).cos()
        found += torch.autograd.grad(outputs[0], learning, slopes.to(outputs[0].dtype))
    return found


def _unlike(found: Tensor, exact: Tensor, dtype: torch.dtype) -> str | None:
    difference = (found.double() - exact.double()).abs().max() / exact.double().abs().max()
    near = _ROUNDED if dtype.itemsize == 2 else _NEAR
    return None if found.shape == exact.shape and difference <= near else f"the difference is {difference:.1e}"
