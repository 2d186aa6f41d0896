"""Full fine-tuning: every weight learns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from luthier.core.errors import CheckpointUnreadable
from luthier.training.methods.base import Method, read_numbers
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
    rate = 1e-4
    artifact_files = "model*.safetensors"
    mixes_precision = True

    def attach(self, model: PreTrainedModel, *, seed: int, blank: Sequence[int] = ()) -> PreTrainedModel:
        return model.float().requires_grad_(True)

    def numbers(self, model: nn.Module) -> dict[str, Tensor]:
        return dict(model.named_parameters())  # a weight that is tied to another is named once

    def write(self, model: nn.Module, numbers: dict[str, Tensor], folder: Path, *, base_model: str) -> None:
        cast(Any, model).save_pretrained(folder, state_dict=numbers, safe_serialization=True)

    def restore(self, model: nn.Module, folder: Path) -> None:
        saved: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            saved |= read_numbers(folder, path.name)
        missing, unexpected = model.load_state_dict(saved, strict=False)
        untyped: Any = model
        tied = set(untyped._tied_weights_keys or ()) if untyped.config.tie_word_embeddings else set()
        if unexpected or set(missing) - tied:
            raise CheckpointUnreadable("The checkpoint's weights do not fit this model.")
