"""The loop: steps, accumulation, clipping, evaluation, checkpoints, stop requests; for any method and objective."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import torch

from luthier.training.checkpoint import Checkpoint, Checkpoints, Metrics
from luthier.training.data import BatchPlan, Rows, micro_batches
from luthier.training.emitter import Emitter
from luthier.training.events import CheckpointSaved, CheckpointsDropped, Evaluated, Progress, Sampled
from luthier.training.forward import Forward
from luthier.training.meter import Mean, Pace
from luthier.training.objectives.base import Encoded
from luthier.training.optim import Optimizer, learning_rate
from luthier.training.processes import Processes
from luthier.training.samples import Samples
from luthier.training.spec import TrainingSpec
from luthier.training.watch import Watch, refuse_unless_finite


class Stopped(Exception):
    """The stop request was obeyed; nothing of the step under way was applied."""


class Loop:
    """Trains a model. The same spec on the same machine gives the same numbers, resumed or not."""

    def __init__(
        self,
        spec: TrainingSpec,
        plan: BatchPlan,
        training: Rows,
        validation: Rows | None,
        forward: Forward,
        optimizer: Optimizer,
        checkpoints: Checkpoints,
        samples: Samples,
        emitter: Emitter,
        stop: threading.Event,
    ) -> None:
        self._spec = spec
        self._plan = plan
        self._training = training
        self._tokens_in_all = training.tokens * spec.epochs
        self._validation = validation
        self._forward = forward
        self._model = forward.model
        self._units = forward.objective.units
        self._processes = forward.processes
        self._optimizer = optimizer
        self._checkpoints = checkpoints
        self._samples = samples
        self._emitter = emitter
        self._stop = stop
        self._trained_tokens = 0
        self._watch = Watch(spec.patience)

    def play(self, resumed: Checkpoint | None) -> Checkpoint:
        """Take every step after the checkpoint, or all of them, and return the last one's checkpoint.

        With a patience training may end before, and there is a checkpoint of every step whose validation loss was the
        best so far. Raises Stopped, LossDiverged, and what the emitter raises.
        """
        spec, total = self._spec, self._plan.total_steps
        saved = [one for one in self._checkpoints.all() if one.state.step < resumed.state.step] if resumed else []
        saved += [resumed] if resumed else []
        done = resumed.state.step if resumed else 0
        self._trained_tokens = resumed.state.trained_tokens if resumed else 0
        self._watch = Watch(spec.patience, resumed.state.standing if resumed else None)
        pace = Pace()
        if not resumed:
            self._evaluate(step=0)
            self._answer(step=0, always=True)
        elif done == total or self._watch.is_over:  # it died between its last checkpoint and its end
            self._drop(saved)
            self._answer(done, always=True)
        for step in range(done + 1, total + 1):
            if self._watch.is_over:
                break
            trained = self._take(step, pace)
            is_end = step == total
            valid = self._evaluate(step) if is_end or step % spec.evaluate_every_steps == 0 else None
            is_best = valid is not None and self._watch.judge(step, valid.loss)
            is_end = is_end or self._watch.is_over
            if is_end or step % spec.save_every_steps == 0 or (is_best and spec.patience is not None):
                saved.append(self._save(step, trained, valid))
                self._drop(saved)
                self._answer(step, always=is_end)
        return saved[-1]  # a plan has at least one step, and the last one is saved

    def _take(self, step: int, pace: Pace) -> Mean:
        """One optimizer step, whose gradient is that of the mean over all units of the step, however they are batched."""
        spec, total = self._spec, self._plan.total_steps
        pace.begin_step()
        self._model.train()
        self._optimizer.forget()
        rows = [self._training.rows[place] for place in self._plan.rows_of(step)]
        units_in_step = sum(map(self._units, rows))
        mean = Mean()
        for batch, counts in self._batches(rows):
            losses = self._forward.losses(batch, step)
            self._optimizer.backward(losses.total / units_in_step * counts)
            if counts:
                mean.add(losses, sum(map(self._units, batch)))
        mean.over(self._processes)
        self._watch.step(step, mean.loss)
        self._processes.gradients(self._optimizer.parameters)
        rate = learning_rate(spec, step, total)
        grad_norm = self._optimizer.step(step, rate)
        tokens = sum(row.length for row in rows)
        self._trained_tokens += tokens
        pace.end_step(tokens)
        self._emitter.emit(
            Progress,
            step=step,
            total_steps=total,
            epoch=step / self._plan.steps_per_epoch,
            loss=mean.loss,
            token_accuracy=mean.token_accuracy,
            measures=mean.measures,
            learning_rate=rate,
            grad_norm=grad_norm,
            tokens_per_second=pace.tokens_per_second,
            seconds_left=pace.seconds_left(self._tokens_in_all - self._trained_tokens),
            elapsed_seconds=pace.elapsed_seconds,
            trained_tokens=self._trained_tokens,
        )
        return mean

    def _evaluate(self, step: int) -> Mean | None:
        """Mean over the validation file, told as an event; None when there is no such file."""
        if self._validation is None:
            return None
        self._model.eval()
        mean = Mean()
        with torch.no_grad():
            for batch, counts in self._batches(self._validation.rows):
                losses = self._forward.losses(batch, step)
                if counts:
                    mean.add(losses, sum(map(self._units, batch)))
        mean.over(self._processes)
        refuse_unless_finite(mean.loss, "validation loss", step)
        self._emitter.emit(
            Evaluated, step=step, loss=mean.loss, token_accuracy=mean.token_accuracy, measures=mean.measures
        )
        return mean

    def _save(self, step: int, trained: Mean, valid: Mean | None) -> Checkpoint:
        self._emitter.flush()  # what led to a checkpoint is stored before it: a resumed run does not tell it again
        metrics = Metrics(
            train_loss=trained.loss,
            train_token_accuracy=trained.token_accuracy,
            valid_loss=valid.loss if valid else None,
            valid_token_accuracy=valid.token_accuracy if valid else None,
        )
        saved = self._checkpoints.save(
            self._model,
            self._optimizer,
            step=step,
            trained_tokens=self._trained_tokens,
            metrics=metrics,
            standing=self._watch.standing,
        )
        tell_saved(self._emitter, saved)
        return saved

    def _drop(self, saved: list[Checkpoint]) -> None:
        """Of `saved` those that need not stay; it has the others afterwards."""
        gone = self._checkpoints.surplus(saved)
        if gone:  # told first: who reads of a checkpoint that is not there any more has read that it went
            self._emitter.emit(CheckpointsDropped, step=saved[-1].state.step, keys=[one.key for one in gone])
            self._checkpoints.delete(gone)
            saved[:] = [one for one in saved if one not in gone]

    def _answer(self, step: int, *, always: bool) -> None:
        """Tell what the model says to the sample prompts; the first process alone does, the others wait for it."""
        if not self._processes.is_first:
            return
        with self._forward.precision():
            samples = self._samples.take(self._check, always=always)
        if samples:
            self._emitter.emit(Sampled, step=step, samples=samples)

    def _batches(self, rows: list[Encoded]) -> Iterator[tuple[list[Encoded], bool]]:
        """Rows that go through the model together, and whether they count; those that are this process's to take.

        Raises Stopped between two of them when that was asked for, where several processes train before the first.
        """
        groups = micro_batches(rows, self._spec.micro_batch_tokens)
        if self._processes.any(self._stop.is_set()):
            raise Stopped
        for group, counts in self._processes.dealt(groups):
            self._check()
            yield group, counts

    def _check(self) -> None:
        check_on(self._emitter, self._stop, self._processes)


def check_on(emitter: Emitter, stop: threading.Event, processes: Processes) -> None:
    """Say that the run gets on. Raises what the emitter met, and Stopped where one process alone was asked to stop."""
    emitter.check()
    if stop.is_set() and processes.count == 1:
        raise Stopped


def tell_saved(emitter: Emitter, saved: Checkpoint) -> None:
    emitter.emit(
        CheckpointSaved,
        step=saved.state.step,
        key=saved.key,
        artifact_key=saved.artifact_key,
        artifact_sha256=saved.artifact_sha256,
        is_best=saved.state.standing.best_step == saved.state.step,
        **saved.state.metrics.model_dump(),
    )
