"""An adapter's files as what the engine computes with: thin matrices by layer, or a prefix's keys and values.

Shapes: L layers, K key heads, P positions of a prefix, D width of a head, I inputs and O outputs of a layer, R rank.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from luthier.nets.paged.bank import Thin
from luthier.serving.adapters import Matrices, read_adapter
from luthier.serving.backends.base import AdapterUnreadable
from luthier.serving.protocol import AdapterRef

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class PrefixKeys:
    """What P-tuning v2 has learned: keys and values that stand before every prompt, in every layer."""

    both_L2KPD: Tensor

    @property
    def positions(self) -> int:
        return self.both_L2KPD.shape[3]


def read(
    folder: Path, ref: AdapterRef, model: PreTrainedModel, shape: tuple[int, int, int]
) -> dict[str, Thin] | PrefixKeys:
    """What an adapter's folder, whose bytes the caller has checked, adds to a model; `shape` is the model's (L, K, D).

    Raises AdapterUnreadable for what cannot be read, does not fit, or is of another kind.
    """
    if _kind(folder, ref) == "PREFIX_TUNING":
        return _prefix(folder, ref, shape)
    files = read_adapter(folder, ref)
    output = model.get_output_embeddings()  # it sees only the tokens whose logits are wanted
    layers = {
        name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and layer is not output
    }
    try:
        beside = files.beside({name: (layer.out_features, layer.in_features) for name, layer in layers.items()})
    except ValueError as unfit:
        raise AdapterUnreadable(f"Adapter {ref.id} does not fit the base model: {unfit}.") from unfit
    if not beside:
        raise AdapterUnreadable(f"Adapter {ref.id} does not fit the base model: it names none of its layers.")
    return {name: _thin(layers[name].weight, matrices) for name, matrices in beside.items()}


@torch.no_grad()
def _thin(weight_OI: Tensor, matrices: Matrices) -> Thin:
    a_RI, b_OR = matrices.A_RI.float(), matrices.scale * matrices.B_OR.float()
    if matrices.magnitude_O is None:
        return Thin(a_RI, b_OR)
    lengths_O = (weight_OI.float().cpu() + b_OR @ a_RI).norm(dim=1)
    return Thin(a_RI, b_OR, matrices.magnitude_O.float() / lengths_O)


def _kind(folder: Path, ref: AdapterRef) -> str:
    try:
        return json.loads((folder / "adapter_config.json").read_text())["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as broken:
        raise AdapterUnreadable(f"The files of adapter {ref.id} cannot be read: {broken}") from broken


def _prefix(folder: Path, ref: AdapterRef, shape: tuple[int, int, int]) -> PrefixKeys:
    """PEFT's prefix-tuning without a projection: (P, L · 2 · K · D)."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        settings: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
        tensors = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as broken:
        raise AdapterUnreadable(f"The files of adapter {ref.id} cannot be read: {broken}") from broken
    layers, heads, width = shape
    expected = (settings.get("num_virtual_tokens"), layers * 2 * heads * width)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if settings.get("prefix_projection") or found != {"prompt_embeddings": expected}:
        raise AdapterUnreadable(
            f"Adapter {ref.id} does not fit the base model: a prefix is one tensor prompt_embeddings of {expected}, "
            f"without a projection; found {found}."
        )
    flat = tensors["prompt_embeddings"]
    if not flat.isfinite().all():
        raise AdapterUnreadable(f"Adapter {ref.id} has numbers that are not finite: prompt_embeddings.")
    return PrefixKeys(flat.view(-1, layers, 2, heads, width).permute(1, 2, 3, 0, 4))
