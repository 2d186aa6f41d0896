"""LoRA: two thin matrices beside each chosen weight; everything else stays as it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import Field

from luthier.core.errors import CheckpointUnreadable, InvalidRequest
from luthier.training.methods.base import Method, read_numbers
from luthier.training.options import Options

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import Tensor, nn
    from transformers import PreTrainedModel

ADAPTER = "default"
_WEIGHTS = "adapter_model.safetensors"
"""What PEFT calls the one adapter that is trained."""


class LoraOptions(Options):
    """LoRA, Hu et al. (arXiv 2106.09685); rank-stabilised, Kalajdzievski (2312.03732); DoRA, Liu et al. (2402.09353)."""

    rank: int = Field(16, ge=1, le=512, description="Width of the added matrices; more learns more and costs more.")
    alpha: float | None = Field(None, gt=0, description="Scale of what was learned; twice the rank when absent.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of inputs that the added matrices do not see in a step.")
    targets: Literal["all-linear", "attention"] = Field(
        "all-linear", description="Which weights get them: all linear layers but the output, or those of attention."
    )
    rank_stabilised: bool = Field(
        False, description="Divide the scale by the root of the rank instead of the rank: for ranks above 64."
    )
    decomposed: bool = Field(
        False,
        description="DoRA: the lengths of weights learn apart from their directions; slower, at low ranks better.",
    )


class Lora(Method):
    """The artifact is a folder as PEFT writes it, in fp32."""

    Options = LoraOptions
    artifact_kind = "adapter"
    rate = 4e-3
    artifact_files = _WEIGHTS
    is_shared = True
    options: LoraOptions

    @property
    def drops(self) -> bool:
        return self.options.dropout > 0

    def attach(self, model: PreTrainedModel, *, seed: int, blank: Sequence[int] = ()) -> PreTrainedModel:
        import torch
        from peft import LoraConfig
        from peft.functional import cast_adapter_dtype, inject_adapter_in_model

        chosen = self.options
        config = LoraConfig(
            r=chosen.rank,
            lora_alpha=cast(int, 2 * chosen.rank if chosen.alpha is None else chosen.alpha),  # PEFT takes any number
            use_rslora=chosen.rank_stabilised,
            use_dora=chosen.decomposed,
            target_modules=_targets(model, chosen.targets),
            task_type="CAUSAL_LM",
        )
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, ADAPTER)
        cast_adapter_dtype(model, ADAPTER)  # fp32, also over a base in bf16
        if chosen.dropout:
            _put_dropout(model, chosen.dropout)
        return model

    def numbers(self, model: nn.Module) -> dict[str, Tensor]:
        return _tensors(model)

    def write(self, model: nn.Module, numbers: dict[str, Tensor], folder: Path, *, base_model: str) -> None:
        write_adapter(folder, numbers, cast(Any, model).peft_config[ADAPTER], base_model=base_model)

    def restore(self, model: nn.Module, folder: Path) -> None:
        from peft.functional import set_peft_model_state_dict

        saved, present = read_numbers(folder, _WEIGHTS), _tensors(model)
        _refuse_unlike(folder, cast(Any, model).peft_config[ADAPTER])
        if {name: t.shape for name, t in saved.items()} != {name: t.shape for name, t in present.items()}:
            raise CheckpointUnreadable("The checkpoint's adapter does not fit this model and these options.")
        set_peft_model_state_dict(model, saved, adapter_name=ADAPTER)


def _refuse_unlike(folder: Path, asked: PeftConfig) -> None:
    """Raise CheckpointUnreadable when an adapter means something else with its numbers than `asked` does."""
    there = json.loads((folder / "adapter_config.json").read_text())
    named = {"r": "rank", "lora_alpha": "alpha", "use_rslora": "rank_stabilised", "use_dora": "decomposed"}
    unlike = [
        f"{option} {there.get(field)} (this job: {wanted})"
        for field, option in named.items()
        if there.get(field) != (wanted := getattr(asked, field))
    ]
    if unlike:
        raise CheckpointUnreadable(
            f"The adapter that training was to go on from has {', '.join(unlike)}.",
            hint="Give the job the options of the one that it goes on from.",
        )


def _put_dropout(model: PreTrainedModel, share: float) -> None:
    from peft.tuners.lora import LoraLayer

    from luthier.nets.dropout import Draw, Dropout, put_draw

    draw = Draw()
    put_draw(model, draw)
    layers = (module for module in model.modules() if isinstance(module, LoraLayer))
    for number, layer in enumerate(layers):
        layer.lora_dropout[ADAPTER] = Dropout(share, number, draw)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The numbers of the adapter under the names that its file gives them."""
    from peft.functional import get_peft_model_state_dict

    found = get_peft_model_state_dict(model, adapter_name=ADAPTER)
    return {f"base_model.model.{name}": tensor for name, tensor in found.items()}


def write_adapter(folder: Path, tensors: dict[str, Tensor], config: PeftConfig, *, base_model: str) -> None:
    """An adapter's folder as PEFT writes it, its numbers in fp32."""
    import torch
    from safetensors.torch import save_file

    save_file(
        {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tensors.items()},
        folder / _WEIGHTS,
        metadata={"format": "pt"},
    )
    told = config.to_dict() | {"base_model_name_or_path": base_model, "inference_mode": True}
    plain = {name: sorted(value) if isinstance(value, set) else value for name, value in told.items()}
    (folder / "adapter_config.json").write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n")


def _targets(model: nn.Module, wanted: str) -> list[str]:
    """The linear layers that get matrices, by the last two parts of their names: `self_attn.q_proj` and kin."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    output = cast(Any, model).get_output_embeddings()
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    linear = [name for name, layer in layers.items() if layer is not output]
    if wanted == "attention":
        linear = [name for name in linear if "attn" in name or "attention" in name]
    if not linear:
        raise InvalidRequest(f"This model has no layers of the kind {wanted!r}.", param="targets")
    return sorted({".".join(name.split(".")[-2:]) for name in linear})
