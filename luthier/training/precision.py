"""What a machine computes in fastest, found without asking a library."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Precision = Literal["bf16", "fp16", "fp32"]


def precision() -> Precision:
    """What this machine computes fastest in: bf16 where its GPU or processor multiplies it itself."""
    return "bf16" if has_gpu() or computes_in_bf16() else "fp32"


def has_gpu() -> bool:
    """Whether there is a GPU of NVIDIA's: one of the devices numbered from 0, of which a container may have any, or WSL's."""
    numbered = (device.name.removeprefix("nvidia") for device in Path("/dev").glob("nvidia*"))
    return any(map(str.isdecimal, numbered)) or Path("/dev/dxg").exists()


def computes_in_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor multiplies bf16 itself."""
    if not cpuinfo.is_file():
        return False
    return bool({"avx512_bf16", "amx_bf16"} & set(cpuinfo.read_text().split()))


def is_narrow_to_mkl(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor has AVX-512, and MKL does not take it because it is not Intel's."""
    if not cpuinfo.is_file():
        return False
    return {"AuthenticAMD", "avx512f"} <= set(cpuinfo.read_text().split())
