"""Full fine-tuning: every weight learns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from luthier.core.errors import CheckpointUnreadable
from luthier.training.methods.base import Method
from luthier.training.options import Options

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


class FullOptions(Options):
    """There is nothing to choose."""


class Full(Method):
    """The artifact is a model's folder as transformers writes it, in fp32, without its tokenizer."""

    Options = FullOptions
    artifact_kind = "model"
    artifact_files = "model*.safetensors"
    rate = 5e-5
    mixes_precision = True

    def attach(self, model: PreTrainedModel, *, seed: int, blank: Sequence[int] = ()) -> PreTrainedModel:
        return model.float().requires_grad_(True)

    def numbers(self, model: nn.Module) -> dict[str, Tensor]:
        return dict(model.named_parameters())  # a weight that is tied to another is named once

    def write(self, model: nn.Module, numbers: dict[str, Tensor], folder: Path, *, base_model: str) -> None:
        cast(Any, model).save_pretrained(folder, state_dict=numbers, safe_serialization=True)

    def restore(self, model: nn.Module, folder: Path) -> None:
        from safetensors.torch import load_file

        saved: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            saved |= load_file(path)
        missing, unexpected = model.load_state_dict(saved, strict=False)
        tied = set(getattr(model, "_tied_weights_keys", None) or ())
        if unexpected or set(missing) - tied:
            raise CheckpointUnreadable("The checkpoint's weights do not fit this model.")
