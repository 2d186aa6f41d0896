"""What a run tells, taken over into its job: progress, metrics, checkpoints, the end."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from luthier.control.catalog.service import Catalog, Trained, answers_at_once, artifact_id
from luthier.control.jobs.history import History
from luthier.control.jobs.lifecycle import TERMINAL, Status
from luthier.control.jobs.queries import JobQueries
from luthier.control.jobs.tables import CheckpointRow, JobRow, RunRow
from luthier.control.jobs.values import Error
from luthier.control.tenancy import SYSTEM
from luthier.core import ids
from luthier.core.clock import Clock
from luthier.serving.protocol import AdapterRef
from luthier.training import events
from luthier.training.spec import TrainingSpec


class Recorder:
    def __init__(self, history: History, catalog: Catalog, clock: Clock) -> None:
        self.history = history
        self.catalog = catalog
        self.clock = clock

    async def record(self, session: AsyncSession, row: JobRow, run: RunRow, event: events.RunEvent) -> None:
        """Take over what a run told. The caller goes through a run's events in order, each once."""
        if row.status in TERMINAL:
            return
        if row.status == Status.STARTING and not isinstance(event, events.Failed | events.Cancelled):
            row.started_at = row.started_at or self.clock.now()
            self.history.move(
                session, row, Status.RUNNING, "Training has started." if run.attempt == 1 else "Training goes on."
            )
        match event:
            case events.Started():
                await self._started(session, row, run, event)
            case events.Progress():
                row.seconds_left, row.trained_tokens = event.seconds_left, event.trained_tokens
                told = f"Step {event.step}/{event.total_steps}: training loss={event.loss:.2f}"
                self.history.tell(session, row, told, kind="metrics", data=_metrics(event), run=run, event=event)
            case events.Evaluated():
                told = f"Step {event.step}: validation loss={event.loss:.2f}, token accuracy={event.token_accuracy:.2f}"
                data = {
                    **event.measures,
                    "step": event.step,
                    "full_valid_loss": event.loss,
                    "full_valid_mean_token_accuracy": event.token_accuracy,
                    "eval_loss": event.loss,
                    "eval_acc": event.token_accuracy,
                }
                self.history.tell(session, row, told, kind="metrics", data=data, run=run, event=event)
            case events.Noted():
                self.history.tell(session, row, event.message, level="warn", run=run, event=event)
            case events.Sampled():
                told = f"Step {event.step}: {len(event.samples)} prompts of the validation file were answered."
                self.history.tell(
                    session, row, told, data=event.model_dump(include={"step", "samples"}), run=run, event=event
                )
            case events.CheckpointsDropped():  # no job of a server asks for it: its checkpoints have names
                self.history.tell(session, row, f"{len(event.keys)} checkpoints were deleted.", run=run, event=event)
            case events.CheckpointSaved():
                await self._checkpoint_saved(session, row, run, event)
            case events.Succeeded():
                spec = TrainingSpec.model_validate(row.spec)
                if (lost := _lost(spec, event)) is not None:
                    self.history.fail(session, row, lost)
                    return
                step = event.step if event.result_step is None else event.result_step
                artifact = _artifact(spec, event)
                self.catalog.publish(
                    session, row.project_id, row.model_name, "fine_tuned", _trained(spec), step, artifact
                )
                row.trained_tokens = event.trained_tokens
                best = "" if step == event.step else f" (the best checkpoint, of step {step})"
                told = f"New fine-tuned model created: {row.model_name}{best}{_deployment(spec)}"
                self.history.tell(session, row, told)
                self.history.move(session, row, Status.SUCCEEDED)
            case events.Failed():
                self.history.fail(session, row, Error(code=event.code, message=event.message))
            case events.Cancelled():
                if (
                    row.status == Status.CANCELLING
                ):  # else it pauses, or somebody else stopped it: a lost run, which goes on
                    self.history.move(session, row, Status.CANCELLED)

    async def _started(self, session: AsyncSession, row: JobRow, run: RunRow, event: events.Started) -> None:
        if run.attempt > 1:
            queries = JobQueries(session, SYSTEM)
            after = event.step if event.step else -1  # what was measured before the first step is measured again
            await queries.supersede(row.id, before_attempt=run.attempt, after_step=after)
            told = (
                f"Resumed from the checkpoint of step {event.step}."
                if event.step
                else "It begins again: there is no checkpoint that it could go on from."
            )
            self.history.tell(session, row, told, level="warn" if row.lost_runs else "info")
        if event.step:
            return
        self.history.tell(
            session,
            row,
            f"{event.rows} rows, {event.trained_tokens_per_epoch:,} trained tokens an epoch, {event.total_steps} steps, "
            f"{event.trainable_parameters:,} trainable parameters.",
            data=event.model_dump(
                include={"rows", "dropped", "dropped_rows", "total_steps", "trainable_parameters", "libraries"}
            ),
            run=run,
            event=event,
        )
        left_out = (
            ("trained", event.dropped, event.dropped_rows),
            ("used for validation", event.validation_dropped, event.validation_dropped_rows),
        )
        for what, dropped, count in left_out:
            if count:
                rows = ", ".join(map(str, dropped[:10])) + (" ..." if count > 10 else "")
                told = f"Rows that are longer than the limit, or have nothing to learn, are not {what} ({count:,}): {rows}."
                self.history.tell(session, row, told, level="warn", run=run, event=event)

    async def _checkpoint_saved(
        self, session: AsyncSession, row: JobRow, run: RunRow, event: events.CheckpointSaved
    ) -> None:
        spec = TrainingSpec.model_validate(row.spec)
        artifact = _artifact(spec, event)
        name = f"{row.model_name}-step-{event.step}" + (f"-{run.attempt}" if run.attempt > 1 else "")
        self.catalog.publish(session, row.project_id, name, "checkpoint", _trained(spec), event.step, artifact)
        await session.flush()
        if run.attempt > 1:
            await JobQueries(session, SYSTEM).supersede_checkpoint(row.id, event.step, before_attempt=run.attempt)
        session.add(
            CheckpointRow(
                id=ids.new("ftckpt"),
                project_id=row.project_id,
                job_id=row.id,
                step=event.step,
                attempt=run.attempt,
                model_name=name,
                artifact_id=artifact.id,
                metrics={
                    "step": event.step,
                    "train_loss": event.train_loss,
                    "train_mean_token_accuracy": event.train_token_accuracy,
                    "full_valid_loss": event.valid_loss,
                    "full_valid_mean_token_accuracy": event.valid_token_accuracy,
                },
                superseded=False,
                created_at=self.clock.now(),
            )
        )
        best = " (the best so far)" if event.is_best else ""
        told = f"Checkpoint created at step {event.step}: {name}{best}{_deployment(spec)}"
        self.history.tell(session, row, told, run=run, event=event)


def _lost(spec: TrainingSpec, event: events.Succeeded) -> Error | None:
    """What is wrong when a run did not train the rows that were promised: rows in = rows trained + rows dropped."""
    promised, rows = spec.training, event.rows
    if promised.rows is None or rows is None:
        return None
    if (promised.trained_rows, promised.rows) == (rows, rows + event.dropped_rows):
        return None
    told = f"{rows} rows were trained and {event.dropped_rows} dropped"
    return Error(code="rows_lost", message=f"{told}; {promised.trained_rows} of {promised.rows} were promised.")


def _deployment(spec: TrainingSpec) -> str:
    """What an event that names a model adds where the running base model cannot answer with it."""
    return "" if answers_at_once(spec.method.name) else "; it must be deployed before it answers"


def _trained(spec: TrainingSpec) -> Trained:
    return Trained(spec.job, spec.method.name, spec.base_model, spec.weights, spec.weights_sha256)


def _artifact(spec: TrainingSpec, event: events.CheckpointSaved | events.Succeeded) -> AdapterRef:
    return AdapterRef(
        id=artifact_id(),
        key=event.artifact_key,
        sha256=event.artifact_sha256,
        identity=event.artifact_identity,
        renderer_sha256=spec.renderer_sha256,
    )


def _metrics(event: events.Progress) -> dict[str, Any]:
    """What OpenAI's and Zhipu's clients read of a step, in one object."""
    return {
        **event.measures,
        "step": event.step,
        "train_loss": event.loss,
        "train_mean_token_accuracy": event.token_accuracy,
        "epoch": event.epoch,
        "current_steps": event.step,
        "total_steps": event.total_steps,
        "elapsed_time": str(timedelta(seconds=int(event.elapsed_seconds))),
        "remaining_time": str(timedelta(seconds=int(event.seconds_left))),
        "trained_tokens": event.trained_tokens,
        "loss": event.loss,
        "eval_loss": None,
        "acc": event.token_accuracy,
        "eval_acc": None,
        "learning_rate": event.learning_rate,
        "grad_norm": event.grad_norm,
        "tokens_per_second": event.tokens_per_second,
    }
