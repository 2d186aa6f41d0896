"""A trainer's part, played by a function: what a run tells, written as a run writes it."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from typing import Any

from luthier.app import Parts
from luthier.control.jobs.lifecycle import TERMINAL, Status
from luthier.control.jobs.values import Job, JobEvent
from luthier.control.tenancy import Principal
from luthier.core.clock import FakeClock
from luthier.core.pages import PageRequest
from luthier.storage import Storage
from luthier.testing import InlineProcess
from luthier.training.events import (
    Cancelled,
    CheckpointSaved,
    Evaluated,
    Failed,
    Progress,
    Started,
    Succeeded,
    Told,
    pause_key,
    write_segment,
)
from luthier.training.spec import TrainingSpec

TOTAL = 6


class Trainer:
    """One attempt at a job of six steps; each event is a segment of its own."""

    def __init__(self, process: InlineProcess) -> None:
        python, _, program, key, *options = process.launch.command
        assert (python, program) == (sys.executable, "luthier.training.program")
        given = dict(zip(options[::2], options[1::2], strict=True))
        self.process = process
        self.storage = Storage(given["--storage"])
        self.spec = TrainingSpec.model_validate_json(self.storage.read(key))
        self.attempt = int(given["--attempt"])
        self._number = 0

    def started(self, step: int = 0) -> None:
        self._tell(
            Started, step, total_steps=TOTAL, rows=12, dropped=[], trained_tokens_per_epoch=50, tokens_per_epoch=90,
            trainable_parameters=7, libraries={},
        )  # fmt: skip

    def steps(self, first: int, last: int) -> None:
        for step in range(first, last + 1):
            self._tell(
                Progress, step, total_steps=TOTAL, epoch=step / TOTAL, loss=1 / step, token_accuracy=0.5,
                learning_rate=0.1, grad_norm=1.0, tokens_per_second=9.0, seconds_left=TOTAL - step,
                elapsed_seconds=step, trained_tokens=10 * step,
            )  # fmt: skip

    def saved(self, step: int, *, is_best: bool = False) -> None:
        key = f"{self.spec.run_key}/checkpoints/{self.attempt:04d}-{step:08d}"
        self._tell(
            CheckpointSaved, step, key=key, artifact_key=f"{key}/adapter", artifact_sha256=f"sha-{step}",
            artifact_identity=f"identity-{step}",
            train_loss=0.5, train_token_accuracy=0.5, is_best=is_best,
        )  # fmt: skip

    def evaluated(self, step: int, **measures: float) -> None:
        self._tell(Evaluated, step, loss=0.5, token_accuracy=0.5, measures=measures)

    def succeeded(self, *, best: int = TOTAL) -> int:
        key = f"{self.spec.run_key}/checkpoints/{self.attempt:04d}-{best:08d}/adapter"
        self._tell(
            Succeeded, TOTAL, result_step=best, artifact_key=key, artifact_sha256=f"sha-{best}",
            artifact_identity=f"identity-{best}",
            trained_tokens=10 * TOTAL,
        )  # fmt: skip
        return 0

    def failed(self, code: str, message: str) -> int:
        self._tell(Failed, 1, code=code, message=message)
        return 1

    def cancelled(self, step: int) -> int:
        self._tell(Cancelled, step)
        return 0

    @property
    def is_pausing(self) -> bool:
        return self.storage.exists(pause_key(self.spec.run_key, self.attempt))

    def _tell(self, kind: type[Told], step: int, **fields: Any) -> None:
        event = kind(number=self._number, at=FakeClock().now(), step=step, **fields)
        write_segment(self.storage, self.spec.run_key, self.attempt, [event])  # type: ignore[list-item]
        self._number += 1


def played(play: Callable[[Trainer], int]) -> Callable[[InlineProcess], int]:
    """A script for the executor that plays a trainer."""
    return lambda process: play(Trainer(process))


def whole(trainer: Trainer) -> int:
    """A run that goes well."""
    trainer.started()
    trainer.steps(1, TOTAL)
    trainer.saved(TOTAL)
    return trainer.succeeded()


async def rounds(parts: Parts, who: Principal, job: Job, *until: Status, within_seconds: float = 60) -> Job:
    """Let the scheduler go round until the job has one of these statuses."""
    deadline = time.monotonic() + within_seconds
    while time.monotonic() < deadline:
        await parts.training.once()
        if (job := await parts.services.jobs.get(who, job.id)).status in until:
            return job
        if job.status in TERMINAL:
            break
        await asyncio.sleep(0.01)
    raise AssertionError(f"the job is {job.status}: {job.error}")


async def told(parts: Parts, who: Principal, job: Job) -> list[JobEvent]:
    """All events, oldest first."""
    return (await parts.services.jobs.events(who, job.id, PageRequest(1000))).items[::-1]


def trained_steps(events: list[JobEvent]) -> list[int]:
    return [event.data["step"] for event in events if event.kind == "metrics" and event.data]
