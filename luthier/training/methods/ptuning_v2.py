"""P-tuning v2: a learned key and value prefix in every layer; everything else stays as it was."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field

from luthier.core.errors import CheckpointUnreadable
from luthier.training.methods.base import Method
from luthier.training.methods.lora import write_adapter
from luthier.training.options import Options

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

_PROJECTION = "projection.safetensors"


class PTuningV2Options(Options):
    prefix_length: int = Field(
        32, ge=1, le=1024, description="Positions of the prefix; longer ones learn more and cost context."
    )
    projection_size: int = Field(256, ge=8, le=8192, description="Width of the projection that makes the prefix.")


class PTuningV2(Method):
    """The artifact is a prefix-tuning folder as PEFT writes it, beside it the projection that training goes on from."""

    Options = PTuningV2Options
    artifact_kind = "adapter"
    rate = 5e-3
    options: PTuningV2Options

    def attach(self, model: PreTrainedModel, *, seed: int) -> PreTrainedModel:
        import torch

        from luthier.nets.prefix import Prefix, put_prefix, seen

        base: Any = model
        torch.manual_seed(seed)
        ids = torch.randint(base.config.vocab_size, (self.options.prefix_length,)).tolist()
        start_PF, shape = seen(base, ids)
        put_prefix(base, Prefix(start_PF, shape, width=self.options.projection_size))
        return model

    def export(self, model: nn.Module, folder: Path, *, base_model: str) -> None:
        import torch
        from peft import PrefixTuningConfig
        from safetensors.torch import save_file

        from luthier.nets.prefix import prefix_of

        prefix = prefix_of(model)
        assert prefix is not None
        layers, heads, width = prefix.shape
        config = PrefixTuningConfig(
            num_virtual_tokens=prefix.positions,
            token_dim=heads * width,
            num_attention_heads=heads,
            num_layers=layers,
            num_transformer_submodules=1,
            encoder_hidden_size=self.options.projection_size,
            prefix_projection=False,
            task_type="CAUSAL_LM",
        )
        with torch.no_grad():
            write_adapter(folder, {"prompt_embeddings": prefix.flat()}, cast(Any, config), base_model=base_model)
        state = {name: tensor.cpu().contiguous() for name, tensor in prefix.state_dict().items()}
        save_file(state, folder / _PROJECTION)

    def restore(self, model: nn.Module, folder: Path) -> None:
        from safetensors.torch import load_file

        from luthier.nets.prefix import prefix_of

        prefix = prefix_of(model)
        assert prefix is not None
        try:
            prefix.load_state_dict(load_file(folder / _PROJECTION))
        except RuntimeError as unfit:
            raise CheckpointUnreadable("The checkpoint's prefix does not fit this model and these options.") from unfit
