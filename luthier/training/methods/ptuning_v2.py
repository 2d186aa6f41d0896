"""P-tuning v2: a learned key and value prefix in every layer; everything else stays as it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field

from luthier.core.errors import CheckpointUnreadable
from luthier.training.methods.base import Method, read_numbers
from luthier.training.methods.lora import write_adapter
from luthier.training.options import Options

if TYPE_CHECKING:
    from torch import Tensor, nn
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
    rate = 1e-3
    artifact_files = _PROJECTION
    options: PTuningV2Options

    @property
    def positions(self) -> int:
        return self.options.prefix_length

    def attach(self, model: PreTrainedModel, *, seed: int, blank: Sequence[int] = ()) -> PreTrainedModel:
        import torch

        from luthier.nets.prefix import Prefix, put_prefix, seen

        base: Any = model
        torch.manual_seed(seed)
        start_PF, shape = seen(base, self._opening(base.config, blank))
        put_prefix(base, Prefix(start_PF, shape, width=self.options.projection_size))
        return model

    def _opening(self, config: Any, blank: Sequence[int]) -> list[int]:
        """The tokens whose keys and values training begins with: one that begins a text, then blank ones.

        A model attends to the first token where nothing else is to be found, and to blank ones little.
        """
        first = config.bos_token_id if config.bos_token_id is not None else config.eos_token_id
        first = first[0] if isinstance(first, list) else first
        places = range(self.options.prefix_length - 1)
        return [first or 0, *(blank[place % len(blank)] if blank else 0 for place in places)]

    def numbers(self, model: nn.Module) -> dict[str, Tensor]:
        from luthier.nets.prefix import prefix_of

        prefix = prefix_of(model)
        assert prefix is not None
        return prefix.state_dict()

    def write(self, model: nn.Module, numbers: dict[str, Tensor], folder: Path, *, base_model: str) -> None:
        import torch
        from peft import PrefixTuningConfig
        from safetensors.torch import save_file

        from luthier.nets.prefix import Prefix, prefix_of

        attached = prefix_of(model)
        assert attached is not None
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in numbers.items()}
        prefix = Prefix(state["start_PF"], attached.shape, width=self.options.projection_size)
        prefix.load_state_dict(state)
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
        save_file(state, folder / _PROJECTION)

    def restore(self, model: nn.Module, folder: Path) -> None:
        from luthier.nets.prefix import prefix_of

        prefix = prefix_of(model)
        assert prefix is not None
        try:
            prefix.load_state_dict(read_numbers(folder, _PROJECTION))
        except RuntimeError as unfit:
            raise CheckpointUnreadable("The checkpoint's prefix does not fit this model and these options.") from unfit
