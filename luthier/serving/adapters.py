"""Reading an adapter's folder: PEFT's two files into settings and tensors, and whether they fit a base model. Without PEFT.

Shapes: R rank, I inputs and O outputs of a layer.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.serving.backends.base import AdapterUnreadable
from luthier.serving.protocol import AdapterRef

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]

_ROOT = "base_model.model."
"""What stands before a layer's name in an adapter's file."""

_BEYOND = (
    "modules_to_save", "trainable_token_indices", "lora_bias", "layer_replication", "alora_invocation_tokens", "use_qalora",
    "target_parameters", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config", "velora_config",
    "layers_to_transform", "layers_pattern",
)  # fmt: skip
"""Settings that make an adapter more than two matrices beside each layer that it names."""

_HARMLESS_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Ways to begin training that leave the base weights as they are; after others the adapter fits another base."""


@dataclass(frozen=True)
class LoraSettings:
    """What the numbers of a LoRA mean: its ranks, scales and layers. Patterns are regular expressions over layers' names.

    LoRA, Hu et al. (arXiv 2106.09685); rank-stabilised, Kalajdzievski (2312.03732); DoRA, Liu et al. (2402.09353).
    """

    rank: int
    alpha: float
    targets: str | frozenset[str]
    """The layers that have matrices: names, of which a layer's may be the end, or a regular expression of whole names."""
    excluded: str | frozenset[str] = frozenset()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    is_rank_stabilised: bool = False
    is_decomposed: bool = False

    def rank_of(self, layer: str) -> int:
        return int(_by_pattern(self.rank_pattern, layer, self.rank))

    def scale_of(self, layer: str) -> float:
        """By what the product of the two matrices is multiplied."""
        rank, alpha = self.rank_of(layer), _by_pattern(self.alpha_pattern, layer, self.alpha)
        return alpha / (math.sqrt(rank) if self.is_rank_stabilised else rank)

    def has(self, layer: str) -> bool:
        """Whether a layer of the base model has matrices."""
        return _named(self.targets, layer) and not _named(self.excluded, layer)

    def places(self, layers: Mapping[str, tuple[int, int]]) -> dict[str, Shape]:
        """The tensors that an adapter of these settings has for a base model, by the names of its file.

        `layers` are the model's linear layers by name, each with its outputs and inputs.
        """
        found: dict[str, Shape] = {}
        for layer, (outputs, inputs) in layers.items():
            if self.has(layer):
                rank = self.rank_of(layer)
                found[f"{_ROOT}{layer}.lora_A.weight"] = (rank, inputs)
                found[f"{_ROOT}{layer}.lora_B.weight"] = (outputs, rank)
                if self.is_decomposed:
                    found[f"{_ROOT}{layer}.lora_magnitude_vector"] = (outputs,)
        return found


@dataclass(frozen=True)
class Matrices:
    """What an adapter puts beside one layer: `scale` · B · A is added to its weight; with DoRA the rows get new lengths."""

    A_RI: Tensor
    B_OR: Tensor
    scale: float
    magnitude_O: Tensor | None = None


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter as it was read, on the CPU: its settings, and every tensor of its file by name."""

    config: LoraSettings
    tensors: dict[str, Tensor]

    def beside(self, layers: Mapping[str, tuple[int, int]]) -> dict[str, Matrices]:
        """The matrices of every layer that has some, by its name in the base model.

        `layers` are the model's linear layers with outputs and inputs. Raises ValueError, which tells what is wrong, unless
        every tensor has its place and every place its tensor.
        """
        places = self.config.places(layers)
        if problems := differences(places, {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}):
            raise ValueError("; ".join(problems))
        return {
            layer: Matrices(
                self.tensors[f"{_ROOT}{layer}.lora_A.weight"],
                self.tensors[f"{_ROOT}{layer}.lora_B.weight"],
                self.config.scale_of(layer),
                self.tensors.get(f"{_ROOT}{layer}.lora_magnitude_vector"),
            )
            for layer in layers
            if f"{_ROOT}{layer}.lora_A.weight" in places
        }


def read_adapter(folder: Path, ref: AdapterRef) -> AdapterFiles:
    """The adapter in `folder`, whose bytes the caller has checked.

    Raises AdapterUnreadable for files that cannot be read, for what is no plain LoRA (rank-stabilised ones, DoRA and ranks
    that differ by layer are), and for numbers that are not finite. Nothing pickled is read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        settings = json.loads((folder / "adapter_config.json").read_text())
        tensors = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError, SafetensorError) as broken:
        raise AdapterUnreadable(f"The files of adapter {ref.id} cannot be read: {broken}") from broken
    try:
        config = _settings(settings)
    except (AttributeError, KeyError, TypeError, ValueError) as unfit:
        raise AdapterUnreadable(f"Adapter {ref.id} is not a plain LoRA: it has {unfit}.") from unfit
    wild = sorted(name for name, tensor in tensors.items() if not tensor.isfinite().all())
    if wild:
        raise AdapterUnreadable(
            f"Adapter {ref.id} has numbers that are not finite: {wild[0]} ({len(wild)} tensors in all)."
        )
    return AdapterFiles(config, tensors)


def differences(places: Mapping[str, Shape], tensors: Mapping[str, Shape]) -> list[str]:
    """What keeps the tensors of a file from filling the places of the model, said for people; empty when they fit."""
    missing, extra = sorted(places.keys() - tensors.keys()), sorted(tensors.keys() - places.keys())
    wrong = [
        f"{name} has shape {tensors[name]} instead of {places[name]}"
        for name in sorted(places.keys() & tensors.keys())
        if tensors[name] != places[name]
    ]
    return [
        *([f"missing: {missing[0]} ({len(missing)} in all)"] if missing else []),
        *([f"without a place: {extra[0]} ({len(extra)} in all)"] if extra else []),
        *wrong[:1],
    ]


def _settings(told: dict[str, Any]) -> LoraSettings:
    """Raises ValueError, which names what is beyond a plain LoRA."""
    beyond = [name for name in _BEYOND if told.get(name)]
    beyond += ["peft_type"] if told.get("peft_type") != "LORA" else []
    beyond += ["bias"] if told.get("bias") not in (None, "none") else []
    beyond += ["init_lora_weights"] if told.get("init_lora_weights") not in _HARMLESS_STARTS else []
    if beyond:
        raise ValueError(", ".join(beyond))
    targets, excluded = told["target_modules"], told.get("exclude_modules") or ()
    rank_pattern, alpha_pattern = dict(told.get("rank_pattern") or {}), dict(told.get("alpha_pattern") or {})
    if min(told["r"], *rank_pattern.values(), told["r"]) < 1:
        raise ValueError("a rank below 1")
    return LoraSettings(
        rank=told["r"],
        alpha=told["lora_alpha"],
        targets=targets if isinstance(targets, str) else frozenset(targets),
        excluded=excluded if isinstance(excluded, str) else frozenset(excluded),
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
        is_rank_stabilised=bool(told.get("use_rslora")),
        is_decomposed=bool(told.get("use_dora")),
    )


def _named(names: str | frozenset[str], layer: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, layer) is not None
    return layer in names or any(layer.endswith(f".{name}") for name in names)


def _by_pattern(patterns: Mapping[str, float], layer: str, otherwise: float) -> float:
    """The value of the first pattern that is the layer's name, or its end."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", layer)), otherwise)
