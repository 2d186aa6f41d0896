"""Weights onto this machine's processor or GPU, in a precision."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from luthier.core.errors import InvalidRequest
from luthier.nets.quantised import quantise
from luthier.storage import digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Precision = Literal["bf16", "fp16", "fp32"]
DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def load_model(
    folder: Path, *, precision: Precision, expected_sha256: str | None = None, is_quantised: bool = False
) -> PreTrainedModel:
    """The causal language model in `folder`, in evaluation mode, on a GPU where there is one, else on the CPU.

    Only safetensors are read, and never code from the folder. `is_quantised` keeps its linear layers in 4 bits. Raises
    InvalidRequest when the weights are not those of `expected_sha256` (`luthier.storage.digest` over the safetensors files).
    """
    from transformers import AutoModelForCausalLM

    if expected_sha256 is not None and (found := weights_sha256(folder)) != expected_sha256:
        raise InvalidRequest(
            f"The weights in {folder} are not the ones this was made for "
            f"(sha256 {found[:12]}…, expected {expected_sha256[:12]}…).",
            hint="Install the model again, or start a new job on the weights that are there now.",
        )
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=DTYPES[precision], local_files_only=True, use_safetensors=True, trust_remote_code=False
    )
    device = this_device()
    if is_quantised:
        quantise(model, device)
    untyped: Any = model.eval()  # the library's own wrapper of `to` has lost its types
    return untyped.to(device)


def this_device() -> torch.device:
    """The GPU of this process where there is one (torchrun's LOCAL_RANK numbers it), else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def weights_sha256(folder: Path) -> str:
    """The identity of a base model: sha256 over its safetensors files."""
    return digest(folder, "*.safetensors")
