"""How the command line speaks: tables and bars for people, JSON for scripts, errors on standard error."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def complain(message: str, hint: str | None = None) -> None:
    err.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)  # whoever searches it finds it whole
    if hint:
        err.print(Text.assemble(("  → ", "bold"), hint), soft_wrap=True)


def print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))


def table(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*("" if cell is None else str(cell) for cell in row))
    out.print(shown)


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


class _TimeLeft(ProgressColumn):
    def render(self, task: Task) -> Text:
        left = task.fields.get("seconds_left")
        return Text("" if left is None else f"{duration(left)} left", style="cyan")


class TrainingBar:
    """A live bar with step, loss, tokens a second and time left; where output is no terminal, a line now and then."""

    def __init__(self, title: str, *, quiet: bool = False) -> None:
        """With `quiet` it shows nothing at all."""
        self._quiet = quiet
        self._lines = not out.is_terminal and not quiet
        self._last_tenth = -1
        self._bar = Progress(
            TextColumn(title),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}"),
            _TimeLeft(),
            console=out,
            disable=self._lines or quiet,
        )
        self._task = self._bar.add_task("training", total=None, told="waiting to start", seconds_left=None)

    def __enter__(self) -> TrainingBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def waiting(self, why: str) -> None:
        self._bar.update(self._task, told=why)

    def step(self, step: int, total: int, loss: float, tokens_per_second: float, seconds_left: float) -> None:
        told = f"loss {loss:.3f} · {tokens_per_second:,.0f} tokens/s"
        self._bar.update(self._task, completed=step, total=total, told=told, seconds_left=seconds_left)
        if self._lines and step * 10 // total > self._last_tenth:
            self._last_tenth = step * 10 // total
            out.print(f"  step {step}/{total} · {told} · {duration(seconds_left)} left")

    def note(self, text: str) -> None:
        """A line that stays, above the bar."""
        if not self._quiet:
            self._bar.console.print(f"  {text}")
