"""The loop: steps, accumulation, clipping, evaluation, checkpoints, stop requests; for any method and objective."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

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
        is_pausing: Callable[[], bool] = lambda: False,
    ) -> None:
        """`is_pausing` is asked once the run is to stop: whether it is to go on later from where it is."""
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
        self._is_pausing = is_pausing
        self._done = 0
        self._metrics: Metrics | None = None
        """Of the step that was done last."""
        self._is_settled = True
        self._saved: list[Checkpoint] = []
        self._trained_tokens = 0
        self._watch = Watch(spec.patience)

    def play(self, resumed: Checkpoint | None) -> Checkpoint:
        """Take every step after the checkpoint, or all of them, and return the last one's checkpoint.

        With a patience training may end before, and there is a checkpoint of every step whose validation loss was the
        best so far. Raises Stopped, LossDiverged, and what the emitter raises. A run that pauses saves the last step that
        it took before it raises Stopped.
        """
        if resumed:
            self._go_on_from(resumed)
        try:
            self._play(resumed)
        except Stopped:
            if self._metrics is not None and self._processes.any(self._is_pausing()):
                self._save()
            raise
        return self._saved[-1]  # a plan has at least one step, and the last one is saved

    def _go_on_from(self, resumed: Checkpoint) -> None:
        state = resumed.state
        self._done, self._trained_tokens, self._is_settled = state.step, state.trained_tokens, state.is_settled
        self._saved = [one for one in self._checkpoints.all() if one.state.step < state.step] + [resumed]
        self._watch = Watch(self._spec.patience, state.standing)

    def _play(self, resumed: Checkpoint | None) -> None:
        total = self._plan.total_steps
        if not resumed:
            self._evaluate(step=0)
            self._answer(step=0, always=True)
        elif not self._is_settled:
            self._settle(resumed.state.metrics)
        elif self._done == total or self._watch.is_over:  # it died between its last checkpoint and its end
            self._drop()
            self._answer(self._done, always=True)
        pace = Pace()
        while self._done < total and not self._watch.is_over:
            mean = self._take(self._done + 1, pace)
            self._done += 1
            self._is_settled = False
            self._settle(Metrics(train_loss=mean.loss, train_token_accuracy=mean.token_accuracy))

    def _settle(self, metrics: Metrics) -> None:
        """What follows a step: the evaluation and the checkpoint that are due after it."""
        spec, step = self._spec, self._done
        self._metrics = metrics
        is_end = step == self._plan.total_steps
        valid = self._evaluate(step) if is_end or step % spec.evaluate_every_steps == 0 else None
        is_best = valid is not None and self._watch.judge(step, valid.loss)
        is_end = is_end or self._watch.is_over
        if valid is not None:
            measured = {"valid_loss": valid.loss, "valid_token_accuracy": valid.token_accuracy}
            self._metrics = metrics.model_copy(update=measured)
        self._is_settled = True
        if is_end or step % spec.save_every_steps == 0 or (is_best and spec.patience is not None):
            self._save()
            self._drop()
            self._answer(step, always=is_end)

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

    def _save(self) -> None:
        """Save the last step that was taken; nothing of a step under way is in it."""
        assert self._metrics is not None
        self._emitter.flush()  # what led to a checkpoint is stored before it: a resumed run does not tell it again
        saved = self._checkpoints.save(
            self._model,
            self._optimizer,
            step=self._done,
            trained_tokens=self._trained_tokens,
            metrics=self._metrics,
            standing=self._watch.standing,
            is_settled=self._is_settled,
        )
        tell_saved(self._emitter, saved)
        self._saved.append(saved)
        self._metrics = None

    def _drop(self) -> None:
        """Of the checkpoints those that need not stay."""
        gone = self._checkpoints.surplus(self._saved)
        if gone:  # told first: who reads of a checkpoint that is not there any more has read that it went
            self._emitter.emit(CheckpointsDropped, step=self._saved[-1].state.step, keys=[one.key for one in gone])
            self._checkpoints.delete(gone)
            self._saved = [one for one in self._saved if one not in gone]

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
        groups = micro_batches(
            rows, self._spec.micro_batch_tokens, shared=self._forward.shared, processes=self._processes.count
        )
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
        artifact_identity=saved.artifact_identity,
        is_best=saved.state.standing.best_step == saved.state.step,
        **saved.state.metrics.model_dump(),
    )
