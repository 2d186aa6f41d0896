"""What is a lack of memory, and what is not."""

from __future__ import annotations

import errno

import pytest
import torch

from luthier.core.errors import LossDiverged, OutOfMemory
from luthier.training.memory import is_out_of_memory, says_out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemory("The memory did not suffice."),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes."),
        RuntimeError("can't start new thread"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        ImportError("libx.so: failed to map segment from shared object"),
    ],
    ids=lambda error: f"{type(error).__name__} {error}",
)
def test_a_lack_of_memory_is_known_wherever_it_was_noticed(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shape mismatch"),
        OSError(errno.ENOSPC, "No space left on device"),
        LossDiverged("out of memory"),
        KeyError("out of memory"),
    ],
    ids=lambda error: f"{type(error).__name__} {error}",
)
def test_other_faults_are_none(error: BaseException) -> None:
    assert not is_out_of_memory(error)


def test_what_a_process_has_said_is_judged_alike() -> None:
    assert says_out_of_memory("terminate called after throwing an instance of 'std::bad_alloc'")
    assert not says_out_of_memory("ValueError: x")
