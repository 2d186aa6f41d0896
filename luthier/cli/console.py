"""How the command line speaks: tables and bars for people, JSON for scripts, errors on standard error."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Signs that a terminal obeys instead of showing them: controls but newline and tab, those that turn text around, and halves
of characters, which nothing can print."""


def visible(text: str) -> str:
    """What a file, a name or a server says, for people to look at: no sign of it acts on their terminal."""
    return _ACTING.sub(lambda sign: _picture(ord(sign[0])), text)


def _picture(sign: int) -> str:
    """Unicode's picture of a control sign, otherwise its number."""
    if sign < 0x20 or sign == 0x7F:
        return chr(0x2400 + sign) if sign < 0x20 else "\u2421"
    return f"<U+{sign:04X}>"


def literal(text: str, style: str = "") -> Text:
    """The same as a renderable, for what rich would otherwise read as markup."""
    return Text(visible(text), style=style)


class _Literal(Console):
    """Shows every string as it stands there: a word in brackets is a word, and no sign acts on the terminal."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(visible(text), **how)


out = _Literal()
err = _Literal(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def complain(message: str, hint: str | None = None) -> None:
    told = Text.assemble(("error: ", "bold red"), literal(message))
    err.print(told, soft_wrap=True)  # whoever searches it finds it whole
    if hint:
        err.print(Text.assemble(("  → ", "bold"), literal(hint)), soft_wrap=True)


def print_json(value: Any) -> None:
    """The same value for a script, without a sign that acts on the terminal of a person."""
    written = json.dumps(value, ensure_ascii=False, indent=2)
    print(_ACTING.sub(lambda sign: f"\\u{ord(sign[0]):04x}", written))


def table(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(*("" if cell is None else literal(str(cell)) for cell in row))
    out.print(shown)


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class _TimeLeft(ProgressColumn):
    def render(self, task: Task) -> Text:
        left = task.fields.get("seconds_left")
        return Text("" if left is None else f"{duration(left)} left", style="cyan")


class TrainingBar:
    """A live bar with step, losses, tokens a second and time left; where output is no terminal, a line now and then."""

    def __init__(self, title: str, *, quiet: bool = False, best: float | None = None) -> None:
        """With `quiet` it shows nothing at all; `best` is the best validation loss so far."""
        self._quiet = quiet
        self._best = best
        self._valid = ""
        self._is_over = False
        self._lines = not out.is_terminal and not quiet
        self._last_tenth = -1
        self._bar = Progress(
            TextColumn(title, markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[told]}", markup=False),
            _TimeLeft(),
            console=out,
            disable=self._lines or quiet,
        )
        self._task = self._bar.add_task("training", total=None, told="waiting to start", seconds_left=None)

    def __enter__(self) -> TrainingBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Show no more of the bar; what follows stands below it. May be called twice."""
        if not self._is_over:
            self._is_over = True
            self._bar.stop()

    def waiting(self, why: str) -> None:
        self._bar.update(self._task, told=visible(why))

    def step(self, step: int, total: int, loss: float, tokens_per_second: float, seconds_left: float) -> None:
        told = f"loss {loss:.3f}{self._valid} · {tokens_per_second:,.0f} tokens/s"
        self._bar.update(self._task, completed=step, total=total, told=told, seconds_left=seconds_left)
        if self._lines and step * 10 // total > self._last_tenth:
            self._last_tenth = step * 10 // total
            out.print(f"  step {step}/{total} · {told} · {duration(seconds_left)} left")

    def evaluated(self, step: int, loss: float, accuracy: float) -> None:
        """Take a validation loss: a line that stays, with a star where it is the best so far, and a word in the bar.

        That of step 0 is the untrained model's: it is shown and not counted.
        """
        is_best = step > 0 and (self._best is None or loss < self._best)
        self._best = loss if is_best else self._best
        self._valid = f" · valid {loss:.3f}{' ★' if is_best else ''}"
        self.note(
            f"step {step}: validation loss {loss:.4f}{' ★ best' if is_best else ''}, token accuracy {accuracy:.3f}"
        )

    def note(self, text: str) -> None:
        """A line that stays, above the bar."""
        if not self._quiet:
            self._bar.console.print(f"  {text}", soft_wrap=True)
