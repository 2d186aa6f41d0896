"""luthier train: a whole job from a file, with no server, no database and no network."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from luthier.cli.console import Json, TrainingBar, complain, duration, err, literal, out, print_json, table
from luthier.cli.language import counted
from luthier.cli.serve import Data, settings_with
from luthier.core import logs
from luthier.core.errors import Unavailable
from luthier.core.settings import Settings
from luthier.storage import Storage
from luthier.training import events
from luthier.training.events import read_events
from luthier.training.spec import TrainingSpec

if TYPE_CHECKING:
    from rich.console import Console

    from luthier.cli.job_file import Job
    from luthier.training.fit import Forecast

_SHOWN = 100  # characters of an answer
_UNITS = {unit: 1000**power for power, unit in enumerate(("B", "KB", "MB", "GB", "TB"))} | {
    unit: 1024**power for power, unit in enumerate(("KiB", "MiB", "GiB", "TiB"), start=1)
}


def train(
    job_file: Annotated[
        Path | None,
        typer.Argument(
            metavar="JOB", exists=True, dir_okay=False, help="A job file in TOML, or a whole spec that ends with .json."
        ),
    ] = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Train nothing: say what memory and time it would take, by a dry step. Model and data are stored already.",
        ),
    ] = False,
    memory: Annotated[
        str | None, typer.Option(help="With --plan: memory that there is, such as 6GiB; absent: what is free now.")
    ] = None,
    example: Annotated[
        bool, typer.Option("--example", help="Print a job file with a comment on every field, and end.")
    ] = False,
    method: Annotated[
        str | None, typer.Option(help="With --example: the method whose options are shown; absent: lora.")
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help="With --example: the objective whose options are shown; absent: sft.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="Storage that keys lie in, as a URL; absent: the data folder's.")
    ] = None,
    data: Data = None,
    json: Json = False,
) -> None:
    """Run one training job in this process; run again, it goes on from its last checkpoint.

    A job file needs a base model and a training file; `luthier train --example` prints one.
    """
    room = _bytes(memory)
    if example:
        of_a_job = {"JOB": job_file, "--plan": plan, "--memory": memory, "--storage": storage, "--json": json}
        _refuse(of_a_job, "says nothing beside --example")
        _print_example(method or "lora", objective or "sft")
        return
    _refuse({"--method": method, "--objective": objective}, "is for --example; a job's stands in its file")
    if not plan:
        _refuse({"--memory": memory, "--json": json}, "is for --plan")
    if job_file is None:
        raise typer.BadParameter("name a job file, or pass --example", param_hint="JOB")
    if find_spec("torch") is None:
        raise Unavailable("Training needs the engine.", hint="Install it with: pip install 'luthier[engine]'")
    settings = settings_with(data)
    logs.configure("warning")
    opened = Storage(storage or settings.storage_url, cache=settings.server.data / "cache")
    job = _read(job_file, opened, settings)
    if plan:
        _plan(job, job_file, opened, settings, room, json=json)
    else:
        _run(job, job_file, opened)


def _refuse(said: dict[str, Any], why: str) -> None:
    """What was said although it has no meaning here. Raises BadParameter."""
    for name, value in said.items():
        if value:
            raise typer.BadParameter(f"it {why}", param_hint=name)


def _print_example(method: str, objective: str) -> None:
    from luthier.cli.job_example import example
    from luthier.control.catalog.cards import EMBEDDED

    print(example(method, objective, base_model=EMBEDDED, training="train.jsonl"), end="")


def _read(path: Path, storage: Storage, settings: Settings) -> Job:
    """The job of a file; one that cannot be run ends the command with every fault told, and exit code 2."""
    from luthier.cli.job_file import read_job
    from luthier.control.catalog.installing import Installer
    from luthier.core.clock import SystemClock
    from luthier.training.faults import InvalidJob

    scratch, python = settings.server.data / "scratch", settings.training.python or sys.executable
    try:
        return read_job(path, storage, Installer(storage, scratch, python, SystemClock()), cores=settings.cores)
    except InvalidJob as wrong:
        complain(f"{path} has {counted(len(wrong.faults), 'fault')}")
        for fault in wrong.faults:
            told = f"{fault.field}: {fault.text}" if fault.field else fault.text
            err.print(literal(f"  {told}"), soft_wrap=True)
            if fault.hint:
                err.print(Text.assemble(("    → ", "bold"), literal(fault.hint)), soft_wrap=True)
        raise typer.Exit(2) from wrong


def _run(job: Job, path: Path, storage: Storage) -> None:
    from luthier.training.program import SUPERSEDED, execute, next_attempt

    spec = job.spec
    _tell_notes(job)
    if path.suffix != ".json":
        out.print(
            f"  the job is {spec.job}; its spec: {_located(storage, f'{spec.run_key}/spec.json')}", soft_wrap=True
        )
    saved = _last_checkpoint(storage, spec)
    if saved is not None:
        out.print("  this job has run before: it goes on from its last checkpoint; a changed file is another job")
    attempt = next_attempt(storage, spec)
    with TrainingBar("training", best=_best_before(storage, spec, attempt)) as bar:
        told = _Told(spec, storage, bar)
        code = execute(spec, storage, attempt, told.show)
    if code == SUPERSEDED:
        complain("A newer attempt at this job has taken over; this one has stopped.")
    elif code and not told.is_failure_told:
        complain("The run failed, and that could not be stored.", "What is logged above says why.")
    raise typer.Exit(code)


def _tell_notes(job: Job) -> None:
    for note in (*job.notes, *(line for one in job.limited for line in one.lines())):
        out.print(f"  {note}", soft_wrap=True)


class _Told:
    """What a run tells, shown as it comes, the end as well: a process that stands still does nothing after it."""

    def __init__(self, spec: TrainingSpec, storage: Storage, bar: TrainingBar) -> None:
        self._spec = spec
        self._storage = storage
        self._bar = bar
        self.is_failure_told = False

    def show(self, event: events.RunEvent) -> None:
        match event:
            case events.Started():
                resumed = f"goes on from step {event.step}; " if event.step else ""
                dropped = f", {event.dropped_rows:,} dropped" if event.dropped_rows else ""
                self._bar.note(
                    f"{resumed}{counted(event.rows, 'row')}{dropped}, {counted(event.total_steps, 'step')}, "
                    f"{event.trainable_parameters:,} trainable parameters"
                )
            case events.Progress():
                self._bar.step(event.step, event.total_steps, event.loss, event.tokens_per_second, event.seconds_left)
            case events.Evaluated():
                self._bar.evaluated(event.step, event.loss, event.token_accuracy)
            case events.Noted():
                self._bar.note(event.message)
            case events.Sampled():
                for sample in event.samples:
                    self._bar.note(f"step {event.step}, row {sample.row}: {_shortened(sample.answer)!r}")
                    self._bar.note(f"  its row says {_shortened(sample.expected)!r}")
            case events.CheckpointsDropped():
                self._bar.note(f"{counted(len(event.keys), 'checkpoint')} deleted, for better ones")
            case events.CheckpointSaved():
                self._bar.note(f"step {event.step}: checkpoint {event.key}")
            case events.Succeeded() | events.Failed() | events.Cancelled():
                self._bar.end()
                self._tell_end(event)

    def _tell_end(self, end: events.Succeeded | events.Failed | events.Cancelled) -> None:
        match end:
            case events.Succeeded() as done:
                of = "" if done.result_step in (None, done.step) else f", that of step {done.result_step}, the best,"
                out.print(
                    f"The {done.artifact_kind}{of} lies in {_located(self._storage, done.artifact_key)}", soft_wrap=True
                )
                out.print(f"  {_NATURE[done.artifact_kind].format(base=self._spec.base_model)}", soft_wrap=True)
            case events.Failed() as failed:
                self.is_failure_told = True
                err.print(
                    Text.assemble(("failed", "bold red"), literal(f" ({failed.code}): {failed.message}")),
                    soft_wrap=True,
                )
                self._tell_checkpoint(err)
            case events.Cancelled() as cancelled:
                out.print(f"stopped after step {cancelled.step}")
                self._tell_checkpoint(out)

    def _tell_checkpoint(self, where: Console) -> None:
        last = _last_checkpoint(self._storage, self._spec)
        if last is None:
            where.print("  no checkpoint was saved: run again, the job begins again")
        else:
            where.print(
                f"  the last good checkpoint is {_located(self._storage, last)}; run again, the job goes on from it",
                soft_wrap=True,
            )


_NATURE = {
    "adapter": "an adapter in PEFT's form, to be used with {base}",
    "model": "a whole model in transformers' form; its tokenizer is that of {base}",
}


def _last_checkpoint(storage: Storage, spec: TrainingSpec) -> str | None:
    """The key of the newest complete checkpoint of a job; None where there is none."""
    root = f"{spec.run_key}/checkpoints"
    keys = [key.rsplit("/", 1)[0] for key in storage.list(root) if re.fullmatch(r".*/\d+-\d+/manifest\.json", key)]
    return max(keys, key=lambda key: tuple(map(int, reversed(key.rsplit("/", 1)[1].split("-")))), default=None)


def _best_before(storage: Storage, spec: TrainingSpec, attempt: int) -> float | None:
    """The best validation loss that earlier attempts told, that of the untrained model apart."""
    told = (event for one in range(1, attempt) for event in read_events(storage, spec.run_key, one, -1))
    return min((event.loss for event in told if isinstance(event, events.Evaluated) and event.step), default=None)


def _located(storage: Storage, key: str) -> str:
    """Where an object is, as a path of this machine where it lies here."""
    path = storage.local_path(key)
    return str(path) if path is not None else f"{storage.url} under {key}"


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


# --plan


def _plan(job: Job, path: Path, storage: Storage, settings: Settings, memory: int | None, *, json: bool) -> None:
    from luthier.training.fit import forecast

    is_auto = "micro_batch_tokens" not in job.given
    with err.status("reading the rows") as status:
        found = forecast(
            job.spec,
            storage,
            memory_bytes=memory,
            choose=is_auto,
            scratch=settings.server.data / "scratch",
            tell=lambda doing: status.update(literal(doing)),
        )
    if json:
        limited = {one.field: one.as_json() for one in job.limited}
        print_json(found.model_dump(mode="json") | {"fits": found.fits, "rows": limited})
    else:
        _print_forecast(found, job, path, memory)
    if not found.fits:
        raise typer.Exit(1)


def _print_forecast(found: Forecast, job: Job, path: Path, asked: int | None) -> None:
    _tell_notes(job)
    written, room, spare = found.as_written, _size(found.memory_bytes), _size(found.spare_bytes)
    if written is None:
        complain(
            f"The longest row alone, {found.longest:,} tokens, needs more than the {room} of memory that there are "
            f"({found.device}).",
            _relief(job.spec, found),
        )
        if asked is not None and asked > found.tried_bytes:
            err.print(
                f"A dry step can take no more than what is free here, {_size(found.tried_bytes)}: whether the job fits into "
                f"{_size(asked)} has to be tried on a machine that has them.",
                soft_wrap=True,
            )
        return
    together = f" in {found.processes} processes" if found.processes > 1 and found.device == "cpu" else ""
    each = f" in each of {found.processes} processes" if found.processes > 1 and not together else ""
    table(
        ("", ""),
        (
            (
                "peak memory",
                f"{_size(written.peak_bytes)}{together or each} while {written.peak_while}; of {room} "
                f"({found.device}) {spare} stay free",
            ),
            (
                "a step",
                f"{written.seconds_per_step:,.1f} s, {written.micro_batches_per_step:,.1f} micro-batches of at "
                f"most {written.micro_batch_tokens:,} tokens",
            ),
            ("steps", f"{found.steps:,}, {found.tokens_per_step:,.0f} tokens each"),
            ("in all", f"{duration(written.seconds)}, with start, evaluations, checkpoints and samples"),
            ("trainable", f"{found.trainable_parameters:,} parameters"),
            *([("active", ", ".join(found.active))] if found.active else []),
            *(("not active", f"{name}: {why}") for name, why in found.inactive.items()),
            *(("not counted", one) for one in found.not_counted),
        ),
    )
    if not written.fits:
        complain(
            f"This does not fit into {room} and leave {spare} free.", None if found.chosen else _relief(job.spec, found)
        )
    chosen = found.chosen
    if chosen is not None and (not written.fits or chosen.micro_batches_per_step < written.micro_batches_per_step):
        out.print(
            f"micro_batch_tokens = {chosen.micro_batch_tokens} {'is no slower' if written.fits else 'fits'}: "
            f"{_size(chosen.peak_bytes)}, {chosen.seconds_per_step:,.1f} s a step, {duration(chosen.seconds)} in all, and the "
            f"same gradients. Write it into {path.name}.",
            soft_wrap=True,
        )


def _relief(spec: TrainingSpec, found: Forecast) -> str:
    """What makes a job smaller."""
    ways = [
        *([] if spec.gradient_checkpointing else ["gradient_checkpointing = true"]),
        f"a max_length below {min(spec.max_length, found.longest):,}",
        'method = "lora"' if spec.method.name == "full" else "a smaller rank" if spec.method.name == "lora" else "",
        "a smaller model",
    ]
    return f"Try {', '.join(filter(None, ways))}."


def _bytes(size: str | None) -> int | None:
    """An amount of memory as somebody writes it. Raises BadParameter."""
    if size is None:
        return None
    units = {unit.lower(): factor for unit, factor in _UNITS.items()}
    written = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", size.strip().lower())
    found = int(float(written[1]) * units[written[2]]) if written and written[2] in units else 0
    if not found:
        raise typer.BadParameter(
            f"it must be a number above 0 and one of {', '.join(_UNITS)}, such as 6GiB, got {size!r}",
            param_hint="--memory",
        )
    return found


def _size(size: float) -> str:
    return f"{size / 1024**3:,.2f} GiB" if size >= 1024**3 else f"{size / 1024**2:,.0f} MiB"
