"""What a machine computes in: the best it can, and what becomes of a wish that it cannot fulfil."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["bf16", "fp16", "fp32"]


def precision() -> Precision:
    """What this machine computes fastest in: bf16 where its GPU or processor multiplies it itself."""
    return "bf16" if has_gpu() or computes_in_bf16() else "fp32"


def computed(wish: Precision, device: torch.device) -> tuple[Precision, str | None]:
    """What a run on a device computes in where that was asked for, and where it is another, why.

    A processor without instructions for bf16 emulates it, slower than fp32; in fp16 only GPUs are fast.
    """
    import torch

    if device.type == "cuda":
        if wish == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            return "fp16", "This GPU does not compute in bf16: the run computes in fp16, and scales its loss."
        return wish, None
    best: Precision = "bf16" if computes_in_bf16() else "fp32"
    if wish == "fp16" or (wish == "bf16" and best == "fp32"):
        return best, f"This processor does not compute in {wish}: the run computes in {best}."
    return wish, None


def has_gpu() -> bool:
    return Path("/dev/nvidia0").exists()


def computes_in_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor multiplies bf16 itself."""
    if not cpuinfo.is_file():
        return False
    return bool({"avx512_bf16", "amx_bf16"} & set(cpuinfo.read_text().split()))
