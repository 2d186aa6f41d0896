"""Fit: what a job will take, measured by trials: small jobs of its own longest rows, each in a fresh process.

From two sizes of micro-batch follow memory and time as functions of tokens.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from luthier.chat.renderers.base import renderer_for
from luthier.chat.tokenizer import TOKENIZER_FILES, Tokenizer
from luthier.records.reader import Reader, Record
from luthier.records.source import LocalFile
from luthier.storage import Storage
from luthier.training.data import (
    SHARED_PREFIXES,
    BatchPlan,
    Rows,
    micro_batches,
    read_rows,
    shared_from,
    tokens_of,
    why_apart,
    why_eager,
)
from luthier.training.objectives.base import Encoded, Objective, objectives
from luthier.training.precision import has_gpu
from luthier.training.spec import DataFile, TrainingSpec, Value
from luthier.training.trial import Took, device_and_room, measured, resident_bytes

_SPARE = 0.05  # share of the memory that is to stay free: rows fall together otherwise in every epoch
_SMALLER = 4  # how many times smaller the micro-batches of the second trial are
_LARGER = 4  # how many times larger than the one that was asked for a micro-batch is looked at
_SLOWER = 1.1  # two speeds that differ by less are the same: nothing is measured more exactly
_TYPICAL_STEPS = 5  # of a trial, before the longest and half a step; the time of the first is not used
_SIZES = 24  # of micro-batches, after which a process hardly grows any more
_BATCHES_LOOKED_AT = 200  # steps of the job whose micro-batches are counted
_NEVER = 10**9  # steps
_LEAST, _MOST_ROWS = 8, 4096  # what a spec takes: tokens of a micro-batch, rows of a step


class Estimate(Value):
    """What the job takes with micro-batches of that size."""

    micro_batch_tokens: int
    peak_bytes: int
    """Of a GPU; on a processor of all processes together."""
    peak_while: str
    """What goes on at that moment."""
    fits: bool
    micro_batches_per_step: float
    seconds_per_step: float
    seconds: float
    """Of the whole job: start, steps, evaluations, checkpoints, samples."""


class Forecast(Value):
    """What a job will take. `as_written` is None where its longest row alone does not fit; `chosen` where nothing was chosen,
    or nothing fits.
    """

    device: str
    memory_bytes: int
    """That there are; where not even the longest row fits, no more than what a dry step could take."""
    spare_bytes: int
    """Of them, that are to stay free."""
    tried_bytes: int
    """That a dry step could take on this machine."""
    longest: int
    """Tokens of the longest row."""
    steps: int
    tokens_per_step: float
    trainable_parameters: int
    processes: int = 1
    """That run on this machine."""
    active: tuple[str, ...] = ()
    inactive: dict[str, str] = Field(default={})
    """What is faster than with the libraries alone, and what could be but is not, with why."""
    not_counted: tuple[str, ...] = ()
    """What is not in the figures, in words."""
    as_written: Estimate | None
    chosen: Estimate | None

    @property
    def fits(self) -> bool:
        """Whether the job fits as it is written."""
        return self.as_written is not None and self.as_written.fits


def forecast(
    spec: TrainingSpec,
    storage: Storage,
    *,
    memory_bytes: int | None = None,
    choose: bool = False,
    scratch: Path | None = None,
    tell: Callable[[str], None] = lambda doing: None,
) -> Forecast:
    """Measure what a job will take; nothing is trained, and nothing is left behind.

    With `choose`, and where the micro-batches of the spec do not fit into `memory_bytes` (absent: what is free now), the
    largest power of two is looked for that fits and takes no longer for a token, up to four times what the spec has.
    Trials are written into `scratch`, where there must be room for a checkpoint. `tell` is told what is being done.
    Raises what reading the rows raises, and RunFailed where a trial fails for another reason than memory.
    """
    return _Forecaster(spec, storage, memory_bytes, scratch, tell).forecast(choose)


@dataclass(frozen=True)
class Load:
    """A dry step: the tokens of each of its micro-batches."""

    sizes: list[int]

    @property
    def tokens(self) -> int:
        return sum(self.sizes)

    def dealt(self, processes: int) -> Load:
        """What the process has that has the most of it, where so many take turns."""
        return Load(max((self.sizes[rank::processes] for rank in range(processes)), key=sum))


@dataclass(frozen=True)
class Trial:
    """A small job: what each of its steps and its evaluation hold, and what it took."""

    micro_batch_tokens: int
    loads: list[Load]
    evaluated: Load
    took: Took

    @property
    def largest_trained(self) -> int:
        return max(max(load.sizes) for load in self.loads)

    @property
    def seconds_per_token(self) -> float:
        """Of the steps but the first."""
        return sum(self.took.step_seconds[1:]) / sum(load.tokens for load in self.loads[1:])

    @property
    def seen(self) -> list[tuple[int, int]]:
        """After each step the largest micro-batch so far, and how many sizes of micro-batch there have been."""
        sizes = set(self.evaluated.sizes)
        found: list[tuple[int, int]] = []
        for load in self.loads:
            sizes.update(load.sizes)
            found.append((max([max(load.sizes), *(largest for largest, _ in found)]), len(sizes)))
        return found


class _Forecaster:
    def __init__(
        self,
        spec: TrainingSpec,
        storage: Storage,
        asked_bytes: int | None,
        scratch: Path | None,
        tell: Callable[[str], None],
    ) -> None:
        self._spec = spec
        self._storage = storage
        self._asked = asked_bytes
        self._available = available_bytes()
        self._tried_bytes = self._available // (1 if has_gpu() else spec.processes)  # by one process
        self._scratch = scratch
        self._tell = tell
        objective = objectives.load(spec.objective.name)
        self._objective: Objective = objective(
            objective.Options.read(spec.objective.options, param="objective.options")
        )
        self._shared = shared_from(spec)
        renderer = renderer_for(Tokenizer(storage.folder(spec.weights, only=TOKENIZER_FILES)))

        def rows_of(file: DataFile) -> Rows:
            return read_rows(
                storage, file, self._objective, renderer, max_length=spec.max_length, overlength=spec.overlength
            )

        before = resident_bytes()
        self._training = rows_of(spec.training)
        self._validation = rows_of(spec.validation) if spec.validation else None
        self._rows_bytes = max(resident_bytes() - before, 0)
        self._plan = BatchPlan(len(self._training.rows), spec.seed, spec.batch_size, spec.epochs)
        self._lengths = sorted((row.length for row in self._training.rows), reverse=True)
        self._trials: list[Trial] = []

    def forecast(self, choose: bool) -> Forecast:
        spec, longest = self._spec, self._lengths[0]
        fullest = sum(self._lengths[: spec.batch_size])  # tokens of a step at most
        size = max(min(max(spec.micro_batch_tokens, longest), fullest), _LEAST)
        while (trial := self._tried(size)) is None and size > max(longest, _LEAST):
            size = max(size // 2, longest, _LEAST)
        smaller = self._tried(max(size // _SMALLER, self._lengths[-1], _LEAST), fill=_SMALLER)
        if trial is None or smaller is None:
            took = smaller.took if smaller else None
            return self._told(took, None, None)

        written = self._estimate(spec.micro_batch_tokens)
        chosen = None
        if choose or not written.fits:
            upper = _power_of_two(min(_LARGER * max(spec.micro_batch_tokens, longest), 2 * fullest - 1))
            chosen = self._chosen(upper)
            while chosen is not None and chosen.micro_batch_tokens >= 2 * size:  # a guess so far
                if self._tried(chosen.micro_batch_tokens) is not None:
                    chosen, written = self._chosen(upper), self._estimate(spec.micro_batch_tokens)
                    break
                upper = chosen.micro_batch_tokens // 2
                chosen = self._chosen(upper)
        return self._told(trial.took, written, chosen)

    def _told(self, took: Took | None, written: Estimate | None, chosen: Estimate | None) -> Forecast:
        plan = self._plan
        device, own_bytes = (
            (took.device, took.room_bytes) if took else device_and_room() if has_gpu() else ("cpu", None)
        )
        tried = self._available if own_bytes is None else own_bytes
        room = tried if self._asked is None else self._asked if written else min(self._asked, tried)
        apart = why_apart(self._spec)  # trials share nothing
        inactive = {name: why for name, why in took.inactive.items() if name != SHARED_PREFIXES} if took else {}
        return Forecast(
            device=device,
            memory_bytes=room,
            spare_bytes=round(_SPARE * room),
            tried_bytes=tried,
            longest=self._lengths[0],
            steps=plan.total_steps,
            tokens_per_step=self._training.tokens * plan.epochs / plan.total_steps,
            trainable_parameters=took.trainable_parameters if took else 0,
            processes=self._spec.processes,
            active=(*([SHARED_PREFIXES] if apart is None else []), *(took.active if took else ())),
            inactive=({} if apart is None else {SHARED_PREFIXES: apart}) | inactive,
            not_counted=_not_counted(self._spec, is_cpu=own_bytes is None),
            as_written=written,
            chosen=chosen,
        )

    def _room_of(self, took: Took) -> int:
        """Memory that there is, on the device that was used."""
        if self._asked is not None:
            return self._asked
        return self._available if took.room_bytes is None else took.room_bytes

    def _chosen(self, upper: int) -> Estimate | None:
        """The largest power of two up to `upper` that fits, and takes no longer for a token than the best that was tried."""
        best = min(trial.seconds_per_token for trial in self._trials)
        slow = [trial.micro_batch_tokens for trial in self._trials if trial.seconds_per_token > _SLOWER * best]
        quick = [trial.micro_batch_tokens for trial in self._trials if trial.seconds_per_token <= _SLOWER * best]
        beyond = min((tokens for tokens in slow if tokens > max(quick)), default=None)
        size = upper if beyond is None else min(upper, _power_of_two(max(quick)))
        while size >= _LEAST:
            if (found := self._estimate(size)).fits:
                return found
            size //= 2
        return None

    # What follows from the trials

    def _estimate(self, micro_batch_tokens: int) -> Estimate:
        spec, plan = self._spec, self._plan
        trained = _largest(self._lengths[: spec.batch_size], micro_batch_tokens)
        evaluated = (
            _largest([row.length for row in self._validation.rows], micro_batch_tokens) if self._validation else 0
        )
        steps = range(1, plan.total_steps + 1)
        some = [plan.rows_of(step) for step in steps[:: -(-len(steps) // _BATCHES_LOOKED_AT)]]
        taken = [[self._training.rows[at] for at in rows] for rows in some]
        loads = [_load(rows, micro_batch_tokens, shared=self._shared, processes=spec.processes) for rows in taken]
        per_step = sum(len(load.sizes) for load in loads) / len(loads)
        of_one = [load.dealt(spec.processes) for load in loads]  # the process that a step waits for
        share = sum(load.tokens for load in of_one) / sum(row.length for rows in taken for row in rows)
        per_process = sum(len(load.sizes) for load in of_one) / len(loads)
        sizes = min(len({size for load in loads for size in load.sizes}), _SIZES)
        peaks = {phase: self._peak(phase, trained, evaluated, sizes) for phase in self._phases()}
        peak_while = max(peaks, key=peaks.__getitem__)
        took = self._trials[0].took
        peak = peaks[peak_while]
        if took.room_bytes is None:  # processes on one processor have its memory together
            peak = (peak + self._rows_bytes) * spec.processes
        seconds_per_step = self._seconds(per_process, share * self._training.tokens * spec.epochs / plan.total_steps)
        seconds = self._seconds_beside() + plan.total_steps * seconds_per_step
        return Estimate(
            micro_batch_tokens=micro_batch_tokens,
            peak_bytes=peak,
            peak_while=peak_while,
            fits=peak <= (1 - _SPARE) * self._room_of(took),
            micro_batches_per_step=per_step,
            seconds_per_step=seconds_per_step,
            seconds=seconds + self._sampling_seconds(seconds),
        )

    def _phases(self) -> list[str]:
        return list(dict.fromkeys(phase for trial in self._trials for phase in trial.took.peak_bytes))

    def _peak(self, phase: str, trained: int, evaluated: int, sizes: int) -> int:
        """The most memory while that goes on: training and evaluation grow with their largest micro-batch.

        Each new size of micro-batch leaves something behind on a processor: what the library has made for it, and holes
        between what is in use. What the first trials show of that is taken to go on up to so many `sizes`.
        """
        points = [
            ((1.0, float(largest), float(count)), float(peak))
            for trial in self._trials
            for (largest, count), peak in zip(trial.seen, trial.took.step_peak_bytes, strict=True)
        ]
        left_behind = _fitted(points)[2]
        peaks: list[tuple[Trial, int]] = []
        for trial in self._trials:
            if phase in trial.took.peak_bytes:
                more = left_behind * max(sizes - trial.seen[-1][1], 0) if phase != "loading" else 0.0
                peaks.append((trial, trial.took.peak_bytes[phase] + round(more)))
        if phase == "training":
            return _on_line([(trial.largest_trained, peak) for trial, peak in peaks], trained)
        if phase == "evaluation":
            return _on_line([(max(trial.evaluated.sizes), peak) for trial, peak in peaks], evaluated)
        return max(peak for _, peak in peaks)

    def _seconds(self, micro_batches: float, tokens: float) -> float:
        """Of a step: a constant, a part for each micro-batch, and a part for each token."""
        points = [
            ((1.0, float(len(load.sizes)), float(load.tokens)), seconds)
            for trial in self._trials
            for load, seconds in zip(trial.loads[1:], trial.took.step_seconds[1:], strict=True)
        ]
        once, each, token = _fitted(points)
        return once + each * micro_batches + token * tokens

    def _seconds_beside(self) -> float:
        """Of what a job does beside its steps."""
        spec, plan, took = self._spec, self._plan, self._trials[0].took
        measured = [
            trial.took.evaluation_seconds / trial.evaluated.tokens
            for trial in self._trials
            if trial.took.evaluation_seconds is not None and trial.evaluated.tokens
        ]
        of_token = min(measured) if measured else self._trials[0].seconds_per_token / 3  # no backward pass
        validation = self._laid(self._validation) if self._validation else 0
        evaluations = 1 + _times(plan.total_steps, spec.evaluate_every_steps)
        compared = self._laid(self._training) + validation if self._objective.has_reference else 0
        checkpoints = _times(plan.total_steps, spec.save_every_steps)
        return (
            took.loading_seconds
            + of_token * (evaluations * validation + compared) / spec.processes
            + checkpoints * max(trial.took.saving_seconds for trial in self._trials)
        )

    def _laid(self, rows: Rows) -> int:
        """Tokens of all rows together, what they share once."""
        spec = self._spec
        return _load(rows.rows, spec.micro_batch_tokens, shared=self._shared, processes=spec.processes).tokens

    def _sampling_seconds(self, seconds: float) -> float:
        """Of the answers to sample prompts: all before the first step and at the end, between them a share of the time."""
        spec = self._spec
        found = [trial.took.sampling_seconds for trial in self._trials if trial.took.sampling_seconds is not None]
        if not found or self._validation is None:
            return 0.0
        once = max(found) * min(spec.samples, len(self._validation.rows))
        between = _times(self._plan.total_steps, spec.save_every_steps) - 1
        return 2 * once + min(between * once, spec.sample_share * seconds)

    # A trial

    def _tried(self, micro_batch_tokens: int, *, fill: int = 1) -> Trial | None:
        """Take a trial with micro-batches of that size, `fill` of them a step; None when its memory did not suffice."""
        self._tell(f"a dry step with micro-batches of {micro_batch_tokens:,} tokens")
        if self._scratch is not None:
            self._scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._scratch, prefix="fit-") as folder:
            spec, loads, evaluated = self._small_job(Path(folder), micro_batch_tokens, fill)
            took = measured(spec, Path(folder), self._tried_bytes)
        if took is None:
            return None
        trial = Trial(micro_batch_tokens, loads, evaluated, took)
        self._trials.append(trial)
        return trial

    def _small_job(self, folder: Path, micro_batch_tokens: int, fill: int) -> tuple[TrainingSpec, list[Load], Load]:
        """A job of a few steps in a storage of its own; what its steps hold, and its evaluation."""
        spec = self._spec
        steps = self._dry_steps(micro_batch_tokens, fill)
        plan = BatchPlan(sum(map(len, steps)), spec.seed, len(steps[0]), 1)
        placed: list[Encoded] = [steps[0][0]] * plan.rows
        for step, rows in enumerate(steps, 1):
            for place, row in zip(plan.rows_of(step), rows, strict=True):
                placed[place] = row
        changes: dict[str, Any] = {
            "job": "dry",
            "training": _stored(self._storage, spec.training, placed, folder),
            "start": None,
            "epochs": 1,
            "batch_size": len(steps[0]),
            "micro_batch_tokens": micro_batch_tokens,
            "evaluate_every_steps": _NEVER,
            "save_every_steps": _NEVER,
            "patience": None,
            "samples": 0,  # one below, in the trials that are quick
            "share_prefixes": False,  # a row may be drawn twice, which would be shared whole
            "compiled": self._compiled(),
            "processes": 1,
            "sharding": "none",
        }
        evaluated: list[Encoded] = []
        if spec.validation is not None and self._validation is not None:
            evaluated = _longest(self._validation.rows, micro_batch_tokens)
            changes["validation"] = _stored(self._storage, spec.validation, evaluated, folder)
            if fill > 1 and spec.sharding == "none":
                changes["samples"] = min(spec.samples, 1)
        link = folder / spec.weights
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(self._storage.folder(spec.weights).resolve())
        loads = [_load(rows, micro_batch_tokens) for rows in steps]
        return spec.model_copy(update=changes), loads, _load(evaluated, micro_batch_tokens)

    def _compiled(self) -> bool | None:
        """As the spec says, but that the whole job may be long enough for what dry steps are too short for."""
        why_not = why_eager(self._spec, self._training.tokens, self._storage.folder(self._spec.weights))
        return True if why_not is None else self._spec.compiled

    def _dry_steps(self, micro_batch_tokens: int, fill: int) -> list[list[Encoded]]:
        """The rows of each dry step: some as they come; the longest; at last half as many.

        Each step has `fill` micro-batches, if there are rows: so what each of them costs can be told from what its tokens cost.
        The longest come late, when memory has been used in pieces of many sizes, as in a long run.
        """
        rows = self._training.rows
        fitting = [row for row in rows if row.length <= micro_batch_tokens] or [min(rows, key=lambda row: row.length)]
        most = _MOST_ROWS if fill > 1 else self._spec.batch_size
        longest = _longest(fitting if fill > 1 else rows, fill * micro_batch_tokens)[:most]
        dice = random.Random(self._spec.seed)  # noqa: S311
        typical = [dice.choices(fitting, k=len(longest)) for _ in range(_TYPICAL_STEPS)]
        half = dice.choices(fitting, k=max(len(longest) // 2, 1))
        return [*typical, longest, half]


def _not_counted(spec: TrainingSpec, *, is_cpu: bool) -> tuple[str, ...]:
    """What is not in the figures of a job of several processes: a dry step runs in one."""
    if spec.processes == 1:
        return ()
    shared = "; that processes share the machine's cores and caches" if is_cpu else ""
    told = [f"the sums over the processes in every step, and their waiting for each other{shared}"]
    if spec.sharding == "full":
        told.append(
            "sharding: each process is counted with every weight, so it takes less memory and more time than this"
        )
    return tuple(told)


def _load(rows: list[Encoded], micro_batch_tokens: int, *, shared: int | None = None, processes: int = 1) -> Load:
    groups = micro_batches(rows, micro_batch_tokens, shared=shared, processes=processes)
    return Load([tokens_of(group, shared) for group in groups])


def _longest(rows: Sequence[Encoded], tokens: int) -> list[Encoded]:
    """The longest rows that have so many tokens together; at least one."""
    chosen: list[Encoded] = []
    left = tokens
    for row in sorted(rows, key=lambda row: -row.length):
        if not chosen or row.length <= left:
            chosen.append(row)
            left -= row.length
    return chosen


def _largest(lengths: Sequence[int], micro_batch_tokens: int) -> int:
    """Tokens of the largest micro-batch that rows of these lengths can come to be."""
    return max(max(lengths), min(micro_batch_tokens, sum(lengths)))


def _stored(storage: Storage, file: DataFile, rows: list[Encoded], folder: Path) -> DataFile:
    """Rows of a stored file, in that order, as a file of the storage in `folder`."""
    wanted = {row.row for row in rows}
    lines: dict[int, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        storage.download(file.key, path := Path(scratch) / "rows")
        for found in Reader(LocalFile(path).blocks()):
            if isinstance(found, Record) and found.row in wanted:
                is_line = "\n" not in found.text
                lines[found.row] = found.text if is_line else json.dumps(found.value, ensure_ascii=False)
    data = "".join(f"{lines[row.row]}\n" for row in rows).encode()
    there = Storage(folder.as_uri()).write(file.key, data)
    return DataFile(key=file.key, sha256=there.sha256, format=file.format, turn_weights=file.turn_weights)


def _on_line(points: Sequence[tuple[int, int]], at: int) -> int:
    """The value at `at` of the line through the outermost points, which does not fall; never below what was measured there."""
    points = sorted(points)
    (first, low), (last, high) = points[0], points[-1]
    slope = max((high - low) / (last - first), 0.0) if last > first else 0.0
    measured = max((value for place, value in points if place <= at), default=0)
    return max(round(high + slope * (at - last)), measured if at >= first else 0)


def _fitted(points: Sequence[tuple[tuple[float, ...], float]]) -> tuple[float, ...]:
    """Least squares without negative coefficients: what would come out below zero is left out, the smallest first."""
    import numpy as np

    rows = np.array([row for row, _ in points])
    values = np.array([value for _, value in points])
    kept = list(range(rows.shape[1]))
    while True:
        found = np.linalg.lstsq(rows[:, kept], values, rcond=None)[0]
        if (found >= 0).all():
            break
        del kept[int(np.argmin(found * np.abs(rows[:, kept]).max(axis=0)))]
    whole = np.zeros(rows.shape[1])
    whole[kept] = found
    return tuple(map(float, whole))


def _times(steps: int, every: int) -> int:
    """How often something is done that is done every so many steps, and at the end."""
    return -(-steps // every)


def _power_of_two(number: int) -> int:
    """The largest power of two that is not above `number`."""
    return 1 << (number.bit_length() - 1)


def available_bytes() -> int:
    """Memory that a new process can have: what the machine says is available, less where this process is in a box."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        kilobytes = int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
        return min(1024 * kilobytes, _left_in_box())
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _left_in_box() -> int:
    """What a container's limit leaves; more than any machine has where there is none."""
    box = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):
        limit, used = (int((box / name).read_text()) for name in ("memory.max", "memory.current"))
        told = dict(line.split() for line in (box / "memory.stat").read_text().splitlines())
        return limit - used + int(told.get("inactive_file", 0))
    return sys.maxsize
