"""QLoRA: LoRA over a base model whose weights are kept in 4 bits."""

from __future__ import annotations

from luthier.training.methods.lora import Lora, LoraOptions


class QloraOptions(LoraOptions):
    """Those of LoRA. Dettmers et al., QLoRA (arXiv 2305.14314)."""


class Qlora(Lora):
    """The artifact is that of LoRA; it was made for the base model as the 4 bits say it."""

    Options = QloraOptions
    is_quantised = True
