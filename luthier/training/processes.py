"""The processes that train one model together: who takes which micro-batch, and sums over all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import MethodType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from luthier.core.errors import RunFailed
from luthier.nets.loading import this_device

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore
    from transformers import PreTrainedModel

T = TypeVar("T")
R = TypeVar("R")
_THROUGH = "luthier_through"
_MEETING = timedelta(minutes=3)  # until all have started and found each other
_PATIENCE = timedelta(hours=2)  # a process may be long before the others: one saves, or answers samples
_BUCKET = 16 * 1024**2  # numbers that are summed at a time


class ProcessLost(RunFailed):
    """One of the processes that train together has ended, so the others cannot go on."""

    code = "process_lost"

    def __init__(self) -> None:
        super().__init__(
            "One of the processes that train together has ended.", hint="Its log says why; the job can go on."
        )


def is_of_a_lost_process(fault: BaseException) -> bool:
    """Whether an exception of torch's says so, such as one from sums of a sharded model, which are its own."""
    from torch import distributed

    return isinstance(fault, distributed.DistError) or (
        isinstance(fault, RuntimeError) and "gloo/transport" in str(fault)
    )


class Processes:
    """One of `count` processes, counted from 0 by `rank`; the first one tells and saves. Alone, everything here is idle.

    Every process takes every step with a part of its micro-batches, so all must call what sums in the same order.
    """

    def __init__(self, rank: int = 0, count: int = 1, *, is_sharded: bool = False) -> None:
        self.rank = rank
        self.count = count
        self.is_sharded = is_sharded

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def dealt(self, groups: Sequence[T]) -> list[tuple[T, bool]]:
        """The groups that this process takes, in turns, each with whether it counts.

        With a sharded model every process must go through it as often as the others: one that has a group less takes
        one that does not count.
        """
        mine = [(group, True) for group in groups[self.rank :: self.count]]
        if self.is_sharded and len(mine) < -(-len(groups) // self.count):
            mine.append((groups[0], False))
        return mine

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Make each tensor the sum over all processes, in place. They are of one type and device."""
        if self.count == 1:
            return
        from torch import distributed

        begin = 0
        while begin < len(tensors):
            end, numbers = begin, 0
            while end < len(tensors) and (end == begin or numbers + tensors[end].numel() <= _BUCKET):
                numbers += tensors[end].numel()
                end += 1
            bucket = tensors[begin:end]
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            with _told():
                distributed.all_reduce(flat)
            for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(part.view_as(tensor))
            begin = end

    def gathered(self, value: T) -> list[T]:
        """What each process has for a value, by rank."""
        if self.count == 1:
            return [value]
        from torch import distributed

        found: list[Any] = [None] * self.count
        with _told():
            distributed.all_gather_object(found, value)
        return found

    def any(self, flag: bool) -> bool:
        """Whether it is so in any of the processes."""
        return any(self.gathered(flag))

    def gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Make every gradient the sum over all processes; a sharded model has done so in its backward passes."""
        if self.count == 1 or self.is_sharded:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.add([parameter.grad for parameter in parameters if parameter.grad is not None])

    def collected(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors that may be sharded, whole, on the first process's CPU; the others, which must ask too, get none.

        One is put together at a time, so that no device needs room for all.
        """
        found: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            together = whole(tensor.detach())
            if self.is_first:
                found[name] = together.to("cpu")
        return found

    def through(self, model: PreTrainedModel, compute: Callable[..., R], *inputs: Any) -> R:
        """`compute(model, *inputs)`, with the weights of a sharded model put together for it."""
        if not self.is_sharded:
            return compute(model, *inputs)
        untyped: Any = model
        return getattr(untyped, _THROUGH)(compute, *inputs)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as gone:
        raise ProcessLost from gone


def meeting_place() -> TCPStore:
    """Where processes of this machine find each other, at a port that nobody else can take meanwhile.

    The first of them must be this process: its rendezvous at the same port takes the same server, which is there for as
    long as the store is kept.
    """
    from torch._C._distributed_c10d import TCPStore  # torch.distributed exports it, but not to type checkers

    return TCPStore("127.0.0.1", 0, is_master=True, multi_tenant=True, wait_for_workers=False)


@contextmanager
def joined(count: int, *, is_sharded: bool) -> Iterator[Processes]:
    """This process among `count`, as torchrun's environment numbers it (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT)."""
    if count == 1:
        yield Processes()
        return
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    if (started := int(os.environ.get("WORLD_SIZE", "1"))) != count:
        raise RunFailed(
            f"The spec asks for {count} processes, and {started} were started.",
            hint=f"Start it by `luthier train`, or by `torchrun --nproc-per-node {count}`.",
        )
    device = this_device()
    if device.type == "cuda":
        if (device.index or 0) >= (there_are := torch.cuda.device_count()):
            raise RunFailed(
                f"The spec asks for {count} processes, one to a GPU; there are {there_are} GPUs.",
                hint=f"Set processes to {there_are}.",
            )
        torch.cuda.set_device(device)  # what NCCL and sharding take for this process's
    with _told():
        store, rank, size = next(rendezvous("env://", timeout=_MEETING))
        distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=size, timeout=_PATIENCE
        )
    try:
        yield Processes(rank, count, is_sharded=is_sharded)
    finally:
        distributed.destroy_process_group()


def sharded(model: PreTrainedModel, processes: Processes) -> None:
    """Let each process keep a part of every parameter, put together a layer at a time: FSDP2.

    Zhao et al., PyTorch FSDP (arXiv 2304.11277); torch.distributed.fsdp.fully_shard. Parameters become DTensors, so
    this comes before anything that holds them, such as an optimizer.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(model.device.type, (processes.count,))
    decoder: Any = model.get_decoder()
    for layer in decoder.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    setattr(model, _THROUGH, MethodType(lambda itself, compute, *inputs: compute(itself, *inputs), model))
    register_fsdp_forward_method(model, _THROUGH)
    for module in model.modules():
        if isinstance(module, FSDPModule):  # a sum, not a mean: losses are divided by the units of all processes
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def whole(tensor: Tensor) -> Tensor:
    """A parameter's numbers all together, wherever they lie; every process must ask."""
    untyped: Any = tensor
    return untyped.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor as a parameter is kept: on its device, and of it only the part that this process has."""
    untyped: Any = parameter
    if not hasattr(parameter, "device_mesh"):
        return tensor.to(parameter.device, copy=True)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(parameter.device), untyped.device_mesh, untyped.placements)
