"""luthier demo: the main job, from data to a tuned answer, over HTTP by the official client."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.progress import track
from rich.table import Table

from luthier.cli.client import connected
from luthier.cli.console import complain, duration, literal, out
from luthier.cli.jobs import follow
from luthier.core.errors import Unavailable
from luthier.demo import scoring

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.fine_tuning import FineTuningJob
    from openai.types.fine_tuning.supervised_hyperparameters_param import (
        SupervisedHyperparametersParam as SupervisedHyperparameters,
    )

BASE = "smollm2-135m-instruct"
SEED = 17
SHORT_ROWS, SHORT_QUESTIONS = 80, 3
SHOWN = (
    "My sound post fell over. Can you help?",
    "How do I clean rosin dust off the top?",
    "What does rosin do for the sound?",
    "Which string breaks most often?",
)
"""Held-out questions that are shown with both answers; all of them are measured."""

LONGEST_ANSWER = 48  # tokens
START_WITHIN_SECONDS = 600.0  # the first start downloads and converts the model

LEAST_NEW, MOST_NEW_BEFORE, LEAST_RIGHT = 0.8, 0.1, 0.8
"""What the demo must show: shares of held-out questions in the new way, tuned and base, and of general ones still right."""


@dataclass(frozen=True)
class Figures:
    """What was measured: validation loss and token accuracy before and after, and shares of questions."""

    valid_before: tuple[float, float]
    valid_after: tuple[float, float]
    new_base: float
    new_tuned: float
    right_base: float
    right_tuned: float

    @property
    def is_better(self) -> bool:
        """Whether anything was learned: all that a short run is held to."""
        return self.valid_after[0] < self.valid_before[0]

    @property
    def hold(self) -> bool:
        return self.new_tuned >= LEAST_NEW and self.new_base <= MOST_NEW_BEFORE and self.right_tuned >= LEAST_RIGHT


def demo(
    data: Annotated[Path, typer.Option("--data", help="Folder that the demo's server keeps its things in.")] = Path(
        "luthier-demo"
    ),
    port: Annotated[int, typer.Option(min=0, help="Port of the demo's server; 0 takes a free one.")] = 8321,
    exit_: Annotated[
        bool, typer.Option("--exit", help="End when it is done, instead of leaving the server up.")
    ] = False,
    short: Annotated[
        bool,
        typer.Option("--short", help="See only that it works: a quarter of the rows, once, and a few questions."),
    ] = False,
) -> None:
    """Start a server, fine-tune the embedded model on the bundled data, and compare the answers."""
    parts = Parts()
    data.mkdir(parents=True, exist_ok=True)
    key = _own_key(data)
    with _server(data, port, key, parts) as url, connected(url, key) as client:
        rows = SHORT_ROWS if short else len(scoring.train())
        _headline(f"Fine-tuning {BASE} on {rows} rows")
        with parts("upload"):
            training, validation = _upload(client, "train.jsonl", rows), _upload(client, "validation.jsonl")
        with parts("fine-tune"):
            job = _tune(client, training, validation, epochs=1 if short else "auto")
        tuned = job.fine_tuned_model
        assert tuned is not None
        with parts("first answers"):
            _side_by_side(client, tuned)
        with parts("measure"):
            figures = _measure(client, job.id, tuned, questions=SHORT_QUESTIONS if short else None)
        _report(figures, parts)
        is_done = figures.is_better if short else figures.hold
        if not is_done:
            _complain(short=short)
        if not exit_:
            _stay(url, key, tuned)
    if not is_done:
        raise typer.Exit(1)


class Parts:
    """How long each part took, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began


def _own_key(data: Path) -> str:
    """The demo's key, the same each time in the same folder."""
    path = data / "demo.key"
    if not path.exists():
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(f"demo.{secrets.token_hex(20)}")
    return path.read_text()


@contextmanager
def _server(data: Path, port: int, key: str, parts: Parts) -> Iterator[str]:
    """A server of the demo's own, as a user would start it; its URL once it is ready."""
    if port == 0 or _is_taken(port):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    url, log = f"http://127.0.0.1:{port}", data / "server.log"
    command = [sys.executable, "-m", "luthier", "serve", "--port", str(port), "--data", str(data)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "LUTHIER_BOOTSTRAP_KEY": key},
            start_new_session=True,  # Ctrl-C is ours; we end the server ourselves
        )
    try:
        with parts("start"), out.status("Starting Luthier; the first time this brings the model, about a minute ..."):
            _await(url, process, log)
        out.print(f"Luthier answers at {url}, its log is {log}")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _await(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_WITHIN_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            lines = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
            raise Unavailable(f"The server ended while it started: {lines[0]}", hint=f"See {log}.")
        try:
            with urllib.request.urlopen(f"{url}/healthz", timeout=5):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.3)
    raise Unavailable("The server did not become ready.", hint=f"See {log}.")


def _upload(client: OpenAI, name: str, rows: int | None = None) -> str:
    content = b"".join(scoring.data(name).read_bytes().splitlines(keepends=True)[:rows])
    file = client.files.create(file=(name, content), purpose="fine-tune")
    out.print(f"  uploaded {name}: {len(content.splitlines())} rows as {file.id}")
    return file.id


def _tune(client: OpenAI, training: str, validation: str, *, epochs: int | Literal["auto"]) -> FineTuningJob:
    chosen: SupervisedHyperparameters = {"n_epochs": epochs}
    job = client.fine_tuning.jobs.create(
        model=BASE,
        training_file=training,
        validation_file=validation,
        suffix=scoring.NAME,
        seed=SEED,
        method={"type": "supervised", "supervised": {"hyperparameters": chosen}},
    )
    ended = follow(client, job.id)
    if ended.status != "succeeded":
        raise Unavailable(
            f"The job {job.id} {ended.status}: {ended.error.message if ended.error else 'no reason given'}"
        )
    return ended


def _side_by_side(client: OpenAI, tuned: str) -> None:
    """A few held-out questions, and one general one, answered by both."""
    general = scoring.general()[0].question
    asked = [*SHOWN, general]
    shown = Table(
        title="The same questions before and after; none of them was trained", show_lines=True, title_justify="left"
    )
    for column in ("question", BASE, tuned):
        shown.add_column(column, ratio=1 if column == "question" else 2, overflow="fold")
    with out.status("Asking both models ..."):
        for question in asked:
            before, after = (_answer(client, model, question) for model in (BASE, tuned))
            shown.add_row(question, literal(_shortened(before)), literal(after, "green"))
    out.print(shown)


def _measure(client: OpenAI, job: str, tuned: str, *, questions: int | None) -> Figures:
    """Of every third held-out question, and of the general ones; of no more than `questions` each."""
    held_out = [item.question for item in scoring.held_out()][::3][:questions]  # all of them take a processor minutes
    is_new = scoring.answers_in_the_new_way
    general = scoring.general()[:questions]

    def stays_right(model: str, item: scoring.GeneralQuestion) -> bool:
        return scoring.stays_right(item, _answer(client, model, item.question))

    return Figures(
        *_validation(client, job),
        new_base=_share("base model, held-out questions", held_out, lambda q: is_new(_opening(client, BASE, q))),
        new_tuned=_share("tuned model, held-out questions", held_out, lambda q: is_new(_answer(client, tuned, q))),
        right_base=_share("base model, general questions", general, lambda item: stays_right(BASE, item)),
        right_tuned=_share("tuned model, general questions", general, lambda item: stays_right(tuned, item)),
    )


def _share(what: str, items: Sequence, holds: Callable[..., bool]) -> float:
    return sum(holds(item) for item in track(items, f"  {what}", console=out, transient=True)) / len(items)


@cache
def _answer(client: OpenAI, model: str, question: str) -> str:
    """The whole answer; what is shown is not asked again to be measured."""
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=LONGEST_ANSWER
    )
    return answer.choices[0].message.content or ""


def _opening(client: OpenAI, model: str, question: str) -> str:
    """The answer, read only as far as it may still be JSON: what does not open with a brace never will be."""
    text = ""
    with client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=LONGEST_ANSWER,
        stream=True,
    ) as stream:
        for chunk in stream:
            text += chunk.choices[0].delta.content or ""
            if text.strip() and not text.lstrip().startswith("{"):
                break
    return text


def _validation(client: OpenAI, job: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """(loss, token accuracy) on the validation rows before the first step and after the last."""
    told = [
        event.data for event in client.fine_tuning.jobs.list_events(job, limit=1000) if isinstance(event.data, dict)
    ]
    found = [
        (data["full_valid_loss"], data["full_valid_mean_token_accuracy"]) for data in told if "full_valid_loss" in data
    ]
    return found[-1], found[0]  # events come newest first


def _report(figures: Figures, parts: Parts) -> None:
    shown = Table(title="Measured on rows and questions that were never trained", title_justify="left")
    for column in ("", "before", "after"):
        shown.add_column(column, justify="left" if not column else "right")
    (loss_before, right_before), (loss_after, right_after) = figures.valid_before, figures.valid_after
    shown.add_row("validation loss", f"{loss_before:.3f}", f"{loss_after:.3f}")
    shown.add_row("validation token accuracy", f"{right_before:.1%}", f"{right_after:.1%}")
    shown.add_row(
        f"held-out questions answered as {scoring.NAME}", f"{figures.new_base:.0%}", f"{figures.new_tuned:.0%}"
    )
    shown.add_row("general questions answered rightly", f"{figures.right_base:.0%}", f"{figures.right_tuned:.0%}")
    out.print(shown)
    out.print("Time: " + ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts.seconds.items()))


def _complain(*, short: bool) -> None:
    if short:
        complain("The validation loss did not fall: nothing was learned.")
    else:
        complain(
            f"These figures fall short of what the demo promises: at least {LEAST_NEW:.0%} in the new way after, at most "
            f"{MOST_NEW_BEFORE:.0%} before, at least {LEAST_RIGHT:.0%} still right."
        )


def _stay(url: str, key: str, tuned: str) -> None:
    _headline("Luthier stays up. Talk to your model:")
    out.print(f"  {sys.argv[0]} chat {tuned} --url {url} --key {key}\n", soft_wrap=True)
    out.print("or from Python, by the official client (pip install openai):\n")
    out.print(client_lines(url, key, tuned), soft_wrap=True)
    out.print("\nCtrl-C ends it.")
    try:
        signal.pause()
    except KeyboardInterrupt:
        out.print("Stopping.")


def client_lines(url: str, key: str, model: str) -> str:
    """Eight lines of the official client that talk to a model."""
    question = SHOWN[0]
    return f"""\
from openai import OpenAI

client = OpenAI(base_url="{url}/v1", api_key="{key}")
answer = client.chat.completions.create(
    model="{model}",
    messages=[{{"role": "user", "content": "{question}"}}],
    temperature=0)
print(answer.choices[0].message.content)"""


def _shortened(text: str) -> str:
    return text if len(text) <= 220 else text[:217] + "..."


def _headline(text: str) -> None:
    out.print()
    out.rule(literal(text, "bold"), align="left")
