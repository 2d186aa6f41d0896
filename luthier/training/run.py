"""run(spec, storage): opens the parts of a training run and plays them in order."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from luthier.chat.renderers.base import Renderer, renderer_for
from luthier.chat.tokenizer import Tokenizer
from luthier.core import logs
from luthier.core.errors import (
    InternalError,
    InvalidParameter,
    InvalidRequest,
    LuthierError,
    OutOfMemory,
    StorageUnavailable,
)
from luthier.nets.layers import fuse
from luthier.nets.loading import DTYPES, load_model, this_device
from luthier.nets.losses import prove_head
from luthier.nets.packing import prepare
from luthier.storage import Storage, digest
from luthier.training.canary import CanaryRecorder
from luthier.training.checkpoint import Checkpoint, Checkpoints
from luthier.training.data import (
    SHARED_PREFIXES,
    BatchPlan,
    Rows,
    RowsLost,
    read_rows,
    shared_from,
    why_apart,
    why_eager,
)
from luthier.training.emitter import Emitter, Silent, Superseded
from luthier.training.events import (
    Cancelled,
    CheckpointSaved,
    Failed,
    Noted,
    RunEvent,
    Started,
    Succeeded,
    pause_key,
    read_events,
)
from luthier.training.forward import Forward, chosen_kernels, computed
from luthier.training.loop import Loop, Stopped, check_on, tell_saved
from luthier.training.memory import is_out_of_memory
from luthier.training.methods.base import Method, method_of
from luthier.training.objectives.base import objectives
from luthier.training.optim import Optimizer
from luthier.training.processes import Processes, ProcessLost, is_of_a_lost_process, joined, sharded
from luthier.training.reference import with_reference
from luthier.training.samples import Samples
from luthier.training.spec import Start, TrainingSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "safetensors")
_LISTED = 1000  # dropped rows that an event names
_log = logs.get("training")


def run(
    spec: TrainingSpec,
    storage: Storage,
    *,
    attempt: int = 1,
    emit: Callable[[RunEvent], None] | None = None,
    stop: threading.Event | None = None,
    on_stall: Callable[[], None] | None = None,
) -> Succeeded | Failed | Cancelled:
    """Train what the spec says, from the job's newest checkpoint where there is one, and return the last event.

    Events go to the storage and to `emit`. Once `stop` is set the run ends with `cancelled` after the micro-batch under
    way; where the object of `pause_key` was there before, it first saves the last step that it took, and the next attempt
    goes on from there. What ends it otherwise becomes a `failed` event; only Superseded is raised: a newer attempt exists,
    and this one has stopped writing. An attempt is run once: its number is not used again after a crash. Where the spec asks for
    several processes each of them calls this, and all but the first only compute. `on_stall` is called by another thread
    when the run gets no further, after its `failed` event is stored.
    """
    torch.set_num_threads(spec.threads)
    stop = stop or threading.Event()
    with ExitStack() as open_parts:
        emitter = Emitter(
            storage,
            spec.run_key,
            attempt,
            also=emit,
            stalled_after_seconds=spec.stall_after_seconds,
            on_stall=on_stall,
        )
        try:
            processes = open_parts.enter_context(joined(spec.processes, is_sharded=spec.sharding == "full"))
            if not processes.is_first:
                emitter = Silent(storage, spec.run_key, attempt)
            open_parts.enter_context(emitter)
            return _play(spec, storage, attempt, processes, emitter, stop)
        except Superseded:
            raise
        except Stopped:
            return emitter.emit(Cancelled, step=emitter.step)
        except Exception as fault:
            _log.error("run failed", job=spec.job, attempt=attempt, exc_info=fault)
            return _fail(emitter, _told(fault))


def _play(
    spec: TrainingSpec,
    storage: Storage,
    attempt: int,
    processes: Processes,
    emitter: Emitter,
    stop: threading.Event,
) -> Succeeded:
    method = method_of(spec.method.name, spec.method.options)
    objective_class = objectives.load(spec.objective.name)
    objective = objective_class(objective_class.Options.read(spec.objective.options, param="objective.options"))
    weights = storage.folder(spec.weights)
    renderer = renderer_for(Tokenizer(weights))
    renderer_sha256 = _check_renderer(spec, renderer)
    limits: dict[str, Any] = {"max_length": spec.max_length, "overlength": spec.overlength}
    training = read_rows(storage, spec.training, objective, renderer, **limits)
    validation = None
    if spec.validation is not None:
        validation = read_rows(storage, spec.validation, objective, renderer, **limits)
    if stop.is_set():
        raise Stopped

    precision, why_another = computed(spec.precision, this_device())
    base = load_model(
        weights, precision=precision, expected_sha256=spec.weights_sha256, is_quantised=method.is_quantised
    )
    _refuse_beyond_context(spec, method, base)
    prove_head(base)
    prepare(base, longest=spec.max_length)
    canary = CanaryRecorder(base, renderer, weights, precision)
    model = method.attach(base.requires_grad_(False), seed=spec.seed, blank=renderer.tokenizer.encode_plain("\n"))
    checkpoints = Checkpoints(storage, spec, attempt, method, processes, renderer_sha256=renderer_sha256, canary=canary)
    if spec.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if processes.is_first:
        checkpoints.sweep()
    resumed, moments = checkpoints.resume(model) or (None, {})
    if resumed is None and spec.start is not None:
        _begin(storage, spec.start, method, model)
    count = sum(parameter.numel() for parameter in method.trainable(model).values())
    why_plain = fuse(model, joins=not processes.is_sharded) if spec.fused else "it was not asked for"
    mixed = DTYPES[precision] if method.mixes_precision and precision != "fp32" else None
    why_uncompiled = why_eager(spec, training.tokens, weights)
    computes_in = mixed or DTYPES[precision]
    kernels = chosen_kernels(model, computes_in, why_eager=why_uncompiled, why_plain=why_plain, by_onednn=spec.fused)
    if processes.is_sharded:
        sharded(model, processes)
    optimizer = Optimizer(
        method.trainable(model),
        weight_decay=spec.weight_decay,
        clip_norm=spec.clip_norm,
        is_scaled=precision == "fp16",
        is_fused=spec.fused and not processes.is_sharded,
    )
    if resumed is not None:
        optimizer.restore(moments, resumed.state.loss_scale)
    forward = Forward(model, objective, processes, seed=spec.seed, shared=shared_from(spec), mixed=mixed)
    if objective.has_reference:
        check = partial(check_on, emitter, stop, processes)
        known = {"is_resumed": resumed is not None}
        training = with_reference(storage, spec, "training", training, forward, check, **known)
        if validation is not None:
            validation = with_reference(storage, spec, "validation", validation, forward, check, **known)
    plan = BatchPlan(len(training.rows), spec.seed, spec.batch_size, spec.epochs)
    faster = {SHARED_PREFIXES: why_apart(spec), "fused layers": why_plain, **kernels}
    _tell_started(emitter, plan, training, validation, count, resumed, faster)
    damaged = [f"The checkpoint {key} is damaged; the one before it is taken." for key in checkpoints.damaged]
    for note in (*([why_another] if why_another else []), *damaged):
        emitter.emit(Noted, step=emitter.step, message=note)
    if resumed is not None and not _is_told(storage, spec, resumed, attempt):
        tell_saved(emitter, resumed)

    samples = Samples(spec, None if processes.is_sharded else validation, renderer, model)
    is_pausing = partial(_is_pausing, storage, pause_key(spec.run_key, attempt))
    loop = Loop(spec, plan, training, validation, forward, optimizer, checkpoints, samples, emitter, stop, is_pausing)
    last = loop.play(resumed)
    promised = training.tokens * spec.epochs
    if last.state.step == plan.total_steps and last.state.trained_tokens != promised:  # over all attempts
        raise RowsLost(f"The steps took {last.state.trained_tokens:,} tokens; the rows have {promised:,}.")
    best = _result(spec, checkpoints, last, emitter)
    return emitter.emit(
        Succeeded,
        step=last.state.step,
        result_step=best.state.step,
        rows=len(training.rows),
        dropped_rows=training.dropped_rows,
        artifact_kind=method.artifact_kind,
        artifact_key=best.artifact_key,
        artifact_sha256=best.artifact_sha256,
        artifact_identity=best.artifact_identity,
        trained_tokens=last.state.trained_tokens,
    )


def _is_pausing(storage: Storage, key: str) -> bool:
    try:
        return storage.exists(key)
    except LuthierError as unreadable:  # where it cannot be read, nothing can be saved
        _log.warning("not known whether the run is to pause", why=unreadable.message)
        return False


def _result(spec: TrainingSpec, checkpoints: Checkpoints, last: Checkpoint, emitter: Emitter) -> Checkpoint:
    """The best checkpoint where a patience asks for it, else the last one."""
    step = last.state.standing.best_step
    if spec.patience is None or step is None:
        return last
    if (best := checkpoints.at_step(step)) is not None:
        return best
    told = f"The best checkpoint, of step {step}, cannot be read any more: the result is the last one."
    emitter.emit(Noted, step=emitter.step, message=told)
    return last


def _refuse_beyond_context(spec: TrainingSpec, method: Method, base: PreTrainedModel) -> None:
    context = getattr(base.config, "max_position_embeddings", None)
    if context is not None and spec.max_length + method.positions > context:
        taken = f" of which {spec.method.name} takes {method.positions:,}" if method.positions else ""
        raise InvalidParameter(
            "max_length", f"must fit into the model's context of {context:,} tokens{taken}, got {spec.max_length:,}"
        )


def _begin(storage: Storage, start: Start, method: Method, model: PreTrainedModel) -> None:
    """Put the numbers that training goes on from into the model."""
    folder = storage.folder(start.key)
    if (found := digest(folder)) != start.sha256:
        raise InvalidRequest(
            f"{start.key} is not what this job was to go on from (sha256 {found[:12]}…, expected {start.sha256[:12]}…).",
            hint="Start a new job from what is there now.",
        )
    method.restore(model, folder)


def _check_renderer(spec: TrainingSpec, renderer: Renderer) -> str:
    found = renderer.fingerprint()
    if spec.renderer_sha256 not in (None, found):
        raise InvalidRequest(
            f"This model's conversations are written otherwise than when the data was checked (now {found[:12]}…).",
            hint="Start a new job: its data is checked anew.",
        )
    return found


def _tell_started(
    emitter: Emitter,
    plan: BatchPlan,
    training: Rows,
    validation: Rows | None,
    trainable: int,
    resumed: Checkpoint | None,
    faster: dict[str, str | None],
) -> None:
    emitter.emit(
        Started,
        step=resumed.state.step if resumed else 0,
        total_steps=plan.total_steps,
        rows=len(training.rows),
        dropped=_listed(training),
        dropped_rows=training.dropped_rows,
        validation_dropped=_listed(validation) if validation else [],
        validation_dropped_rows=validation.dropped_rows if validation else 0,
        trained_tokens_per_epoch=training.trained,
        tokens_per_epoch=training.tokens,
        trainable_parameters=trainable,
        active=[name for name, why_not in faster.items() if why_not is None],
        inactive={name: why_not for name, why_not in faster.items() if why_not is not None},
        libraries={name: version(name) for name in _LIBRARIES},
    )


def _listed(rows: Rows) -> list[int]:
    return sorted(number for numbers in rows.dropped.values() for number in numbers)[:_LISTED]


def _is_told(storage: Storage, spec: TrainingSpec, saved: Checkpoint, attempt: int) -> bool:
    """Whether the attempt that saved a checkpoint, or one between it and this, lived long enough to tell of it."""
    events = (event for one in range(saved.attempt, attempt) for event in read_events(storage, spec.run_key, one, -1))
    return any(isinstance(event, CheckpointSaved) and event.key == saved.key for event in events)


def _told(fault: Exception) -> LuthierError:
    """What ended a run, as the error tree says it."""
    if isinstance(fault, LuthierError):
        return fault
    if is_of_a_lost_process(fault):
        return ProcessLost()
    if is_out_of_memory(fault):
        return OutOfMemory(
            "The memory did not suffice.",
            hint="Use a smaller micro_batch_tokens or max_length, gradient_checkpointing, or a smaller model; "
            "`luthier train --plan` finds what fits.",
        )
    if isinstance(fault, OSError) and fault.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageUnavailable(
            f"There is no space left on the disk{f' of {fault.filename}' if fault.filename else ''}.",
            hint="Make some; the job can go on from its last checkpoint. Checkpoints pass through the folder for temporary "
            "files, TMPDIR.",
        )
    return InternalError("The run met a fault of ours; the trainer's log has the details.")


def _fail(emitter: Emitter, fault: LuthierError) -> Failed:
    """Tell of the end; a storage or a callback that fails now cannot be told of, so the log has to do."""
    try:
        return emitter.emit(Failed, step=emitter.step, code=fault.code, message=fault.text)
    except Superseded:
        raise
    except Exception as second:
        _log.error("the end of the run could not be told", exc_info=second)
        return Failed(at=emitter.now(), step=emitter.step, code=fault.code, message=fault.text)
