"""Toy adapters for a toy model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.serving.protocol import AdapterRef
from luthier.storage import digest

TARGETS = ["q_proj", "v_proj", "down_proj"]


def toy_peft(model: Path, *, seed: int, rank: int = 4) -> Any:
    """A PEFT model over the toy in `model`, made as a training method does, its weights large enough to be seen."""
    import torch
    from peft import LoraConfig, get_peft_model

    from luthier.nets.loading import load_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft = get_peft_model(
            load_model(model, precision="fp32"), LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS)
        )
        for name, weight in peft.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weight, std=0.3)
    return peft.eval()


def toy_adapter(storage: Path, id: str, *, seed: int, rank: int = 4) -> AdapterRef:
    """Write an adapter of the toy in models/toy as PEFT's files and say how it is referred to."""
    folder = storage / f"adapters/{id}"
    toy_peft(storage / "models/toy", seed=seed, rank=rank).save_pretrained(folder)
    return AdapterRef(id=id, key=f"adapters/{id}", sha256=digest(folder))
