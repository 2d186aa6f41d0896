"""luthier jobs: create, list, watch, pause, resume, cancel, delete."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from luthier.cli.client import DEFAULT_URL, Key, Refused, Url, connected
from luthier.cli.console import Json, TrainingBar, literal, out, print_json, table
from luthier.cli.files import send

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.fine_tuning import FineTuningJob

app = typer.Typer(help="Training jobs on the server.", no_args_is_help=True)

ENDED = ("succeeded", "failed", "cancelled")
_PAUSED_WITHIN_SECONDS = 120.0  # a trainer has half of that to save where it is


@app.command()
def create(
    model: Annotated[str, typer.Option("--model", "-m", help="Base model.")],
    file: Annotated[str, typer.Option("--file", "-f", help="Training file: its id, or a path to upload.")],
    validation: Annotated[str | None, typer.Option("--validation", "-v", help="Validation file, likewise.")] = None,
    method: Annotated[
        str | None, typer.Option(help="Which numbers learn: lora, qlora, full or ptuning_v2; lora when absent.")
    ] = None,
    preferences: Annotated[
        bool, typer.Option("--preferences", help="The rows are preference pairs: train by DPO.")
    ] = False,
    suffix: Annotated[str | None, typer.Option(help="Part of the tuned model's name.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data; chosen for you when absent.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows a step; chosen for you when absent.")] = None,
    learning_rate_multiplier: Annotated[float | None, typer.Option(help="Factor on the chosen learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same numbers.")] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow it to its end.")] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    json: Json = False,
) -> None:
    """Start a fine-tuning job."""
    numbers = {"n_epochs": epochs, "batch_size": batch_size, "learning_rate_multiplier": learning_rate_multiplier}
    given = {name: value for name, value in numbers.items() if value is not None}
    kind = "dpo" if preferences else "supervised"
    with connected(url, key) as client:
        job = client.fine_tuning.jobs.create(
            model=model,
            training_file=_file(client, file),
            validation_file=_file(client, validation) if validation else None,
            suffix=suffix,
            seed=seed,
            method={"type": kind, kind: {"hyperparameters": given}},  # pyright: ignore[reportArgumentType]
            extra_body={"tuning": method},
        )
        if watch:
            job = follow(client, job.id, quiet=json)
    if not watch and not json:
        out.print(f"{job.id} is {job.status}; follow it with: luthier jobs watch {job.id}")
        return
    _judge(job, json)


@app.command("list")
def list_(url: Url = DEFAULT_URL, key: Key = None, json: Json = False) -> None:
    """List the jobs, newest first."""
    with connected(url, key) as client:
        jobs = list(client.fine_tuning.jobs.list(limit=100))
    if json:
        print_json([job.model_dump() for job in jobs])
        return
    rows = (
        (j.id, j.status, j.model, j.fine_tuned_model, f"{datetime.fromtimestamp(j.created_at):%Y-%m-%d %H:%M}")
        for j in jobs
    )
    table(("id", "status", "base model", "tuned model", "created"), rows)


@app.command()
def watch(job_id: str, url: Url = DEFAULT_URL, key: Key = None, json: Json = False) -> None:
    """Follow a job to its end."""
    with connected(url, key) as client:
        job = follow(client, job_id, quiet=json)
    _judge(job, json)


@app.command()
def pause(job_id: str, url: Url = DEFAULT_URL, key: Key = None, json: Json = False) -> None:
    """Stop a job for a while: it saves where it is, and `resume` goes on from there."""
    with connected(url, key) as client:
        job = client.fine_tuning.jobs.pause(job_id)
        until = time.monotonic() + _PAUSED_WITHIN_SECONDS  # somebody may have resumed it meanwhile
        while job.status not in (*ENDED, "paused") and time.monotonic() < until:
            time.sleep(0.3)
            job = client.fine_tuning.jobs.retrieve(job_id)
    _tell(job, json)


@app.command()
def resume(job_id: str, url: Url = DEFAULT_URL, key: Key = None, json: Json = False) -> None:
    """Let a paused job go on."""
    with connected(url, key) as client:
        job = client.fine_tuning.jobs.resume(job_id)
    _tell(job, json)


@app.command()
def cancel(job_id: str, url: Url = DEFAULT_URL, key: Key = None, json: Json = False) -> None:
    """Stop a job; its checkpoints stay."""
    with connected(url, key) as client:
        job = client.fine_tuning.jobs.cancel(job_id)
        while job.status not in ENDED:
            time.sleep(0.3)
            job = client.fine_tuning.jobs.retrieve(job_id)
    _tell(job, json)


@app.command()
def delete(job_id: str, url: Url = DEFAULT_URL, key: Key = None, json: Json = False) -> None:
    """Forget a job that is not being trained; the model that it made stays."""
    with connected(url, key) as client:
        gone = client.delete(f"/fine_tuning/jobs/{job_id}", cast_to=dict[str, object])  # no client of OpenAI's has this
    if json:
        print_json(gone)
        return
    out.print(f"{job_id} is deleted")


def follow(client: OpenAI, job_id: str, *, quiet: bool = False) -> FineTuningJob:
    """Show a job's events as they come, and return it when it has ended. Safe to leave and to begin again."""
    shown: str | None = None
    with TrainingBar("training", quiet=quiet) as bar:
        while True:
            job = client.fine_tuning.jobs.retrieve(job_id)
            for event in reversed(_new_events(client, job_id, shown)):
                shown = event.id
                data = event.data if isinstance(event.data, dict) else {}
                if "current_steps" in data:
                    bar.step(
                        data["current_steps"],
                        data["total_steps"],
                        data["loss"],
                        data["tokens_per_second"],
                        _seconds(data["remaining_time"]),
                    )
                elif event.type == "metrics":
                    bar.note(event.message)
                else:
                    bar.waiting(event.message)
            if job.status in ENDED:
                return job
            time.sleep(1)


def _new_events(client: OpenAI, job_id: str, shown: str | None) -> list:
    """Events newer than the one shown last, newest first."""
    new = []
    for event in client.fine_tuning.jobs.list_events(job_id, limit=10):  # pages on by itself
        if shown and event.id <= shown:  # ids sort by time; the one shown last may be listed no more
            break
        new.append(event)
    return new


def _seconds(clock: str) -> int:
    hours, minutes, seconds = clock.split(", ")[-1].split(":")
    days = int(clock.split(" ")[0]) if "day" in clock else 0
    return ((days * 24 + int(hours)) * 60 + int(minutes)) * 60 + int(seconds)


def _file(client: OpenAI, named: str) -> str:
    path = Path(named)
    if not path.is_file():
        return named
    return send(client, path).id


def _tell(job: FineTuningJob, json: bool) -> None:
    if json:
        print_json(job.model_dump())
        return
    out.print(f"{job.id} is {job.status}")


def _judge(job: FineTuningJob, json: bool) -> None:
    if json:
        print_json(job.model_dump())
    if job.status == "failed":
        raise Refused(f"The job {job.id} failed: {job.error.message if job.error else 'no reason was given'}")
    if job.status == "succeeded" and not json:
        name = job.fine_tuned_model or ""
        told = Text.assemble("The tuned model is ", literal(name, "bold"), literal(f"; try: luthier chat {name}"))
        out.print(told, soft_wrap=True)
