"""A trial: a small job in a fresh process, and what it took.

It is an ordinary run, so that whatever a run does is in it: `python -m luthier.training.trial SPEC --storage URL`.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from pydantic import Field

from luthier.core import logs
from luthier.core.errors import InternalError, OutOfMemory, RunFailed
from luthier.storage import Storage
from luthier.training.events import CheckpointSaved, Evaluated, Failed, Noted, Progress, RunEvent, Sampled, Started
from luthier.training.memory import says_out_of_memory
from luthier.training.precision import has_gpu
from luthier.training.spec import TrainingSpec, Value


class Took(Value):
    """What a trial's process measured. `peak_bytes` are by what went on: loading, evaluation, sampling, training, saving."""

    device: str
    room_bytes: int | None
    """Memory of the device that it could have used; None for that of the machine."""
    trainable_parameters: int
    active: list[str] = Field(default=[], description="As a run says when it begins.")
    inactive: dict[str, str] = Field(default={}, description="The same.")
    loading_seconds: float
    step_seconds: list[float]
    step_peak_bytes: list[int]
    evaluation_seconds: float | None
    sampling_seconds: float | None = None
    """Of one answer."""
    saving_seconds: float
    peak_bytes: dict[str, int]


def measured(spec: TrainingSpec, folder: Path, room_bytes: int) -> Took | None:
    """Run a trial in a process of its own and say what it took; None when its memory did not suffice."""
    path = folder / "spec.json"
    path.write_text(spec.model_dump_json())
    command = [sys.executable, "-m", "luthier.training.trial", str(path), "--storage", folder.as_uri()]
    done = subprocess.run(
        [*command, "--memory", str(room_bytes)], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    said = done.stdout.strip().splitlines()[-1:]
    if done.returncode == 0 and said:
        return Took.model_validate_json(said[0])
    told = json.loads(said[0]) if done.returncode == 1 and said else {}
    code = told.get("code", InternalError.code)
    is_starved = code == InternalError.code and says_out_of_memory(done.stderr[-5000:])
    if code == OutOfMemory.code or done.returncode == -signal.SIGKILL or is_starved:
        return None
    last = (done.stderr.strip().splitlines() or ["it gave no reason"])[-1]
    raise RunFailed(f"A dry step failed: {told.get('message', last)}")


@dataclass
class _Gauge:
    """Takes the time and the peak of memory between one event of a run and the next."""

    began: float = field(default_factory=time.monotonic)
    peaks: dict[str, int] = field(default_factory=dict)
    loading: float = 0.0
    steps: list[float] = field(default_factory=list)
    step_peaks: list[int] = field(default_factory=list)
    evaluation: float | None = None
    sampling: float | None = None
    saving: float = 0.0
    started: Started | None = None
    failed: Failed | None = None

    def __call__(self, event: RunEvent) -> None:
        if isinstance(event, Noted):
            return
        passed, peak = time.monotonic() - self.began, _peak_bytes()
        if (phase := _PHASES.get(event.type, event.type)) != "end":
            self.peaks[phase] = max(self.peaks.get(phase, 0), peak)
        match event:
            case Started():
                self.loading, self.started = passed, event
            case Progress():
                self.steps.append(passed)
                self.step_peaks.append(peak)
            case Evaluated():
                self.evaluation = passed  # the last one's: the first is slow to begin
            case Sampled():
                self.sampling = passed / len(event.samples)
            case CheckpointSaved():
                self.saving = passed
            case Failed():
                self.failed = event
        _forget_peak()
        self.began = time.monotonic()


_PHASES = {
    "started": "loading",
    "progress": "training",
    "evaluated": "evaluation",
    "sampled": "sampling",
    "checkpoint_saved": "saving",
    **dict.fromkeys(("succeeded", "failed", "cancelled"), "end"),
}


def _peak_bytes() -> int:
    """The most memory since it was last forgotten: of the GPU where there is one, otherwise the resident set."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    with suppress(OSError):
        return _of_status("VmHWM:")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _forget_peak() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # elsewhere each peak is that of all before it
        Path("/proc/self/clear_refs").write_text("5")


def device_and_room() -> tuple[str, int | None]:
    """The GPU that a run uses here, and its memory that this process has or could have; "cpu" and None without one."""
    import torch

    if not torch.cuda.is_available():
        return "cpu", None
    return torch.cuda.get_device_name(), torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()


def resident_bytes() -> int:
    """Memory that this process takes; 0 where the machine does not say."""
    with suppress(OSError):
        return _of_status("VmRSS:")
    return 0


def _of_status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def limit(room_bytes: int) -> bool:
    """Let this process take so much memory and no more; False where it has more already.

    A refusal is told, where a machine without memory would end any process. The large libraries are loaded before: what
    they say when there is no memory for them can be anything.
    """
    with suppress(OSError):
        if _of_status("VmData:") >= room_bytes:
            return False
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (room_bytes, resource.RLIM_INFINITY))
    return True


def main(argv: list[str]) -> int:
    """Run one trial and print what it took, as one line of JSON; exit code 1 where it failed, with the failure."""
    parser = argparse.ArgumentParser(prog="python -m luthier.training.trial", description="Measure one small job.")
    parser.add_argument("spec", type=Path, help="a file with the spec as JSON")
    parser.add_argument("--storage", required=True, help="URL of the storage")
    parser.add_argument("--memory", type=int, help="bytes that may be taken at most")
    wanted = parser.parse_args(argv)
    logs.configure("error")
    spec = TrainingSpec.model_validate_json(wanted.spec.read_bytes())
    from luthier.training.program import execute, load_libraries

    gauge = _Gauge()
    load_libraries(spec)
    for name in ("peft", "transformers.modeling_utils"):  # which a run imports when it comes to them
        import_module(name)
    if wanted.memory is not None and not has_gpu() and not limit(wanted.memory):
        print(json.dumps({"code": OutOfMemory.code, "message": "The libraries alone take more memory than there is."}))
        return 1
    code = execute(spec, Storage(wanted.storage), 1, gauge)
    if code or gauge.failed is not None:
        print(json.dumps({"code": gauge.failed.code, "message": gauge.failed.message} if gauge.failed else {}))
        return 1
    device, room = device_and_room()
    took = Took(
        device=device,
        room_bytes=room,
        trainable_parameters=gauge.started.trainable_parameters if gauge.started else 0,
        active=gauge.started.active if gauge.started else [],
        inactive=gauge.started.inactive if gauge.started else {},
        loading_seconds=gauge.loading,
        step_seconds=gauge.steps,
        step_peak_bytes=gauge.step_peaks,
        evaluation_seconds=gauge.evaluation,
        sampling_seconds=gauge.sampling,
        saving_seconds=gauge.saving,
        peak_bytes=gauge.peaks,
    )
    print(took.model_dump_json())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
