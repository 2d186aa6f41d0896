"""Whether an adapter fits its base model, read from the heads of their files: vLLM leaves out what it does not know."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from luthier.serving.backends.base import AdapterUnreadable

_PLAIN: dict[str, Any] = {
    "peft_type": "LORA", "bias": "none", "modules_to_save": None, "trainable_token_indices": None, "use_dora": False,
    "rank_pattern": {}, "alpha_pattern": {}, "layers_to_transform": None, "layer_replication": None,
    "fan_in_fan_out": False, "target_parameters": None,
}  # fmt: skip
"""What of an adapter's settings must be so: all else is LoRA as vLLM understands it."""

_PREFIX = "base_model.model."
_LONGEST_HEAD = 100 * 1024 * 1024  # bytes, the limit of the format's own library


def check_fit(adapter: Path, id: str, weights: Path, *, highest_rank: int) -> None:
    """Raises AdapterUnreadable unless it is a plain LoRA of which every tensor has its place and every place its tensor."""
    try:
        config: dict[str, Any] = json.loads((adapter / "adapter_config.json").read_text())
        tensors = _shapes(adapter / "adapter_model.safetensors")
        rank, targets = int(config["r"]), config["target_modules"]
    except (OSError, ValueError, KeyError, TypeError) as broken:
        raise AdapterUnreadable(f"The files of adapter {id} cannot be read: {broken!r}") from broken
    if beyond := [name for name, plain in _PLAIN.items() if config.get(name, plain) not in (plain, None, [], {})]:
        raise AdapterUnreadable(f"Adapter {id} is not a plain LoRA: it has {', '.join(beyond)}.")
    if rank > highest_rank:
        raise AdapterUnreadable(
            f"Adapter {id} has rank {rank}; this replica takes {highest_rank} at most.",
            hint="Set serving.options.max_lora_rank higher.",
        )
    places = _places(targets, rank, weights)
    if problems := _differences(places, tensors):
        raise AdapterUnreadable(f"Adapter {id} does not fit the base model: {'; '.join(problems)}.")


def _places(targets: str | list[str], rank: int, weights: Path) -> dict[str, list[int]]:
    """What tensors an adapter of these modules has on that base model, with their shapes."""
    places: dict[str, list[int]] = {}
    for file in sorted(weights.glob("*.safetensors")):
        for name, shape in _shapes(file).items():
            module = name.removesuffix(".weight")
            if module != name and len(shape) == 2 and _is_target(module, targets):
                outputs, inputs = shape
                places[f"{_PREFIX}{module}.lora_A.weight"] = [rank, inputs]
                places[f"{_PREFIX}{module}.lora_B.weight"] = [outputs, rank]
    return places


def _is_target(module: str, targets: str | list[str]) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return any(module == target or module.endswith(f".{target}") for target in targets)


def _differences(places: dict[str, list[int]], tensors: dict[str, list[int]]) -> list[str]:
    missing, extra = sorted(places.keys() - tensors.keys()), sorted(tensors.keys() - places.keys())
    wrong = [
        f"{name} has shape {tuple(tensors[name])} instead of {tuple(places[name])}"
        for name in sorted(places.keys() & tensors.keys())
        if tensors[name] != places[name]
    ]
    return [
        *([f"missing: {missing[0]} ({len(missing)} in all)"] if missing else []),
        *([f"without a place: {extra[0]} ({len(extra)} in all)"] if extra else []),
        *wrong[:1],
    ]


def _shapes(file: Path) -> dict[str, list[int]]:
    """The tensors of a safetensors file: its head is JSON, after eight bytes that say how long it is."""
    with file.open("rb") as opened:
        if (length := int.from_bytes(opened.read(8), "little")) > _LONGEST_HEAD:
            raise ValueError(f"{file.name} is no safetensors file")
        head = json.loads(opened.read(length))
    return {name: told["shape"] for name, told in head.items() if name != "__metadata__"}
