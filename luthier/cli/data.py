"""luthier data: check, show, repair, count and split a file on this machine, without a server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer
from rich.table import Table
from rich.text import Text

from luthier.cli.console import Json, complain, err, out, print_json, table
from luthier.core.errors import InvalidParameter, InvalidRequest, NotFound

if TYPE_CHECKING:
    from luthier.chat.examples import Overlength
    from luthier.control.datasets.report import DatasetReport
    from luthier.records.problems import Problem
    from luthier.records.source import Source

app = typer.Typer(help="Look at a training file on this machine; no server is needed.", no_args_is_help=True)

File = Annotated[
    Path, typer.Argument(exists=True, dir_okay=False, help="A .jsonl or .json file, or a .zip with images.")
]
Model = Annotated[str, typer.Option("--model", help="A model that is installed here, or a folder with its tokenizer.")]
Category = Annotated[str | None, typer.Option("--category", help="The format that the file is meant to be of.")]
MaxLength = Annotated[int, typer.Option(min=8, help="Tokens that a row may have.")]
OverlengthOption = Annotated[str, typer.Option("--overlength", help="Longer rows: drop, truncate or fail.")]
Language = Annotated[
    str | None, typer.Option("--language", help="en or zh; that of this terminal otherwise.", show_default=False)
]

EMBEDDED = "smollm2-135m-instruct"


@app.command()
def check(
    path: File,
    category: Category = None,
    most: Annotated[int, typer.Option("--most", min=1, help="Problems to print.")] = 20,
    language: Language = None,
    json: Json = False,
) -> None:
    """Find everything that is wrong with a file. Ends with 1 when there is something."""
    told_in = _language(language)
    report = _inspected(path, category)
    if json:
        print_json(report.model_dump(mode="json") | {"fit": report.fit})
    else:
        _print_report(path, report, most, told_in)
    if not report.fit:
        raise typer.Exit(1)


@app.command()
def show(
    path: File,
    row: Annotated[int, typer.Option("--row", min=1, help="Which row, counted from 1.")] = 1,
    model: Model = EMBEDDED,
    max_length: MaxLength = 2048,
    overlength: OverlengthOption = "drop",
    json: Json = False,
) -> None:
    """Show exactly what will be trained of one row: what is learned in green, the rest dim."""
    from luthier.control.datasets.preview import preview

    report = _inspected(path, None)
    if report.format is None:
        raise InvalidParameter("FILE", report.summary or "has no rows")
    with _source(path) as source:
        seen = preview(
            source, report.format, row, _folder(model), max_length=max_length, overlength=_overlength(overlength)
        )
    if json:
        print_json(seen.model_dump(mode="json"))
        return
    for problem in seen.problems:
        complain(problem.text.en)
    for one in seen.sequences:
        if len(seen.sequences) > 1:
            out.rule(one.name, align="left")
        shown = Text()
        for is_trained, run in groupby(one.tokens, lambda token: token.trained):
            shown.append("".join(token.text for token in run), style="black on green" if is_trained else "dim")
        out.print(shown, soft_wrap=True)
    if seen.said:
        complain(seen.said)
    marks = f", marks: {', '.join(seen.marks)}" if seen.marks else ""
    tokens = sum(len(one.tokens) for one in seen.sequences)
    out.print(
        f"\nrow {seen.row}, line {seen.line}: {tokens:,} tokens, {seen.trained_tokens:,} learned, "
        f"{seen.billed_tokens:,} billed{marks}"
    )


@app.command()
def repair(
    path: File,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to; FILE.repaired.jsonl otherwise.")
    ] = None,
    json: Json = False,
) -> None:
    """Write a new file without the faults that have one right answer, and show what was changed."""
    from luthier.control.datasets.repairing import repair as mend

    target = output or path.with_name(f"{path.stem}.repaired.jsonl")
    if target.exists() and target.samefile(path):
        raise InvalidParameter("--output", "must be another file than the one that is repaired")
    with _source(path) as source, _written(target) as [out_file]:
        _refuse_archive(source)
        changes = mend(source, out_file)
    if json:
        print_json(
            {
                "file": str(target),
                "rows_changed": changes.rows_changed,
                "rows_left": changes.rows_left,
                "counts": changes.counts,
                "rows": changes.rows,
            }
        )
        return
    for one in changes.rows[:20]:
        out.print(f"row {one['row']}, line {one['line']}: {', '.join(one['codes'])}")
        out.print(Text(f"- {one['before']}", style="red"))
        out.print(Text(f"+ {one['after']}", style="green"))
    counts = ", ".join(f"{code} {count:,}" for code, count in changes.counts.items())
    out.print(
        f"{target}: {changes.rows_changed:,} rows changed ({counts}); {changes.rows_left:,} rows still have a problem"
    )


@app.command()
def stats(
    path: File,
    model: Model = EMBEDDED,
    max_length: MaxLength = 2048,
    overlength: OverlengthOption = "drop",
    json: Json = False,
) -> None:
    """Count rows, turns and tokens by a model's tokenizer, and say which rows a limit would leave out."""
    from luthier.control.datasets.counting import count_file

    report = _inspected(path, None)
    if not report.fit or report.format is None:
        raise InvalidParameter("FILE", report.summary or "has no rows", hint="See `luthier data check`.")
    folder = _folder(model)
    with _source(path) as source, err.status("counting tokens"):
        lengths = count_file(source, report.format, folder, processes=_cores())
    chosen, found = lengths.under(max_length, _overlength(overlength)), lengths.statistics()
    if json:
        print_json(
            {
                "report": report.model_dump(mode="json"),
                "tokens": lengths.tokens,
                "statistics": found,
                "trained_rows": chosen.trained_rows,
                "dropped_rows": chosen.rows - chosen.trained_rows,
                "dropped": chosen.dropped,
                "truncated_rows": chosen.truncated,
                "billed_tokens": chosen.billed_tokens,
                "trained_tokens": chosen.trained_tokens,
                "refused": lengths.refused,
            }
        )
        return
    table(
        ("", ""),
        (
            ("format", report.format),
            ("rows", f"{report.rows:,}, {report.duplicate_rows:,} of them repeat another"),
            ("turns", f"{report.turns:,}, {report.trained_turns:,} trained"),
            ("tokens", f"{lengths.tokens:,} in all; {chosen.trained_tokens:,} learned in an epoch"),
            ("rows trained", f"{chosen.trained_rows:,} of {chosen.rows:,} under {max_length:,} tokens"),
            *((f"dropped: {why}", f"{count:,}") for why, count in chosen.dropped_counts.items()),
            *(((f"tag {tag}", f"{count:,}")) for tag, count in list(report.tags.items())[:10]),
            ("length", ", ".join(f"{name} {value:,}" for name, value in found["percentiles"].items())),
        ),
    )
    _print_histogram(found["histogram"])
    for row, why in lengths.refused[:5]:
        complain(f"row {row}: {why}")


@app.command()
def split(
    path: File,
    ratio: Annotated[float, typer.Option(help="Share of the rows that go to validation.")] = 0.2,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    by_tag: Annotated[bool, typer.Option(help="Split each tag in the same proportion.")] = True,
    json: Json = False,
) -> None:
    """Split a file at random into FILE.training.jsonl and FILE.validation.jsonl; the same seed gives the same rows."""
    from pydantic import ValidationError

    from luthier.control.datasets.transforms.split import SplitOptions
    from luthier.control.datasets.transforms.split import split as divide

    report = _inspected(path, None)
    if not report.fit:
        raise InvalidParameter("FILE", report.summary or "has no rows", hint="See `luthier data check`.")
    try:
        options = SplitOptions(ratio=ratio, seed=seed, by_tag=by_tag)
    except ValidationError as wrong:
        raise InvalidParameter("--ratio", f"must be above 0 and below 1, got {ratio:g}") from wrong
    targets = {name: path.with_name(f"{path.stem}.{name}.jsonl") for name in ("training", "validation")}
    with _source(path) as source, _written(*targets.values()) as [training, validation]:
        _refuse_archive(source)
        division = divide(source, options, training, validation)
    if json:
        print_json({"files": {name: str(target) for name, target in targets.items()}, "division": division})
        return
    for name, target in targets.items():
        out.print(f"{target}: {division[name]:,} rows")
    if division["tags"]:
        table(
            ("tag", "rows", "training", "validation"),
            (
                (tag, f"{one['rows']:,}", f"{one['training']:,}", f"{one['validation']:,}")
                for tag, one in division["tags"].items()
            ),
        )


@app.command()
def sample(
    name: Annotated[str | None, typer.Argument(help="Name of a format; absent: list them.")] = None,
) -> None:
    """Write the sample file of a format into this folder."""
    from luthier.formats.base import known

    forms = known()
    if name is None:
        table(("format", "rows"), ((one, form.describes) for one, form in forms.items()))
        return
    if name not in forms:
        raise NotFound(f"There is no format {name!r}; known: {', '.join(forms)}.")
    target = Path(f"{name}.zip" if forms[name].in_archive else f"{name}.jsonl")
    target.write_bytes(forms[name].sample())
    out.print(str(target))


def _inspected(path: Path, category: str | None) -> DatasetReport:
    from luthier.control.datasets.inspection import inspect
    from luthier.core.settings import Settings
    from luthier.formats.base import known

    if category is not None and category not in known():
        raise InvalidParameter("--category", f"must be one of {', '.join(known())}, got {category!r}")
    with _source(path) as source, err.status(f"checking {path.name}"):
        asked = Settings.read().data
        return inspect(
            source,
            category=category,
            processes=_cores(),
            image_hosts=asked.image_hosts,
            advised_rows=asked.advised_rows,
        )


def _print_report(path: Path, report: DatasetReport, most: int, language: str) -> None:
    for style, found in (("red", report.problems), ("yellow", report.warnings)):
        for problem in found[:most]:
            out.print(_told(problem, language, style), soft_wrap=True)
    left = sum(report.counts.values()) - min(most, len(report.problems))
    if left > 0:
        counts = ", ".join(f"{code} {count:,}" for code, count in report.counts.items())
        out.print(f"... and {left:,} more; in all: {counts}")
    if report.fit:
        out.print(f"{path.name}: {report.rows:,} rows of {report.format}, fit for training")
    else:
        out.print(f"{path.name}: {report.rows:,} rows, {sum(report.counts.values()):,} problems")
        if report.repairable:
            out.print(f"All of them can be repaired: luthier data repair {path}")


def _told(problem: Problem, language: str, style: str) -> Text:
    return Text.assemble(
        (f"{problem.code}: ", f"bold {style}"), problem.text.zh if language == "zh" else problem.text.en
    )


def _print_histogram(bars: list[dict[str, int]]) -> None:
    highest = max((bar["rows"] for bar in bars), default=0)
    shown = Table(box=None, pad_edge=False, show_header=False)
    for bar in bars:
        shown.add_row(f"{bar['from']:,}-{bar['to']:,}", "█" * (40 * bar["rows"] // max(highest, 1)), f"{bar['rows']:,}")
    out.print(shown)


@contextmanager
def _source(path: Path) -> Iterator[Source]:
    from luthier.records.source import LocalFile

    yield LocalFile(path)


@contextmanager
def _written(*targets: Path) -> Iterator[list[BinaryIO]]:
    """Files that appear under their names when the block has ended well; what was there before stays until then."""
    partials = [target.with_name(f".{target.name}.{os.getpid()}") for target in targets]
    try:
        with ExitStack() as open_files:
            yield [open_files.enter_context(partial.open("wb")) for partial in partials]
        for partial, target in zip(partials, targets, strict=True):
            partial.replace(target)
    except OSError as refused:
        raise InvalidRequest(f"{targets[0]} cannot be written: {refused.strerror}.") from refused
    finally:
        for partial in partials:
            with suppress(OSError):
                partial.unlink(missing_ok=True)


def _refuse_archive(source: Source) -> None:
    from luthier.control.datasets.archives import is_archive

    if is_archive(source):
        raise InvalidParameter(
            "FILE",
            "is a zip archive; only files of lines can be repaired or split",
            hint="Do it with the text file in the archive, then pack it again.",
        )


def _language(asked: str | None) -> str:
    if asked is None:
        spoken = next(filter(None, (os.environ.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))), "")
        return "zh" if spoken.startswith("zh") else "en"
    if asked not in ("en", "zh"):
        raise InvalidParameter("--language", f"must be en or zh, got {asked!r}")
    return asked


def _overlength(asked: str) -> Overlength:
    if asked not in ("drop", "truncate", "fail"):
        raise InvalidParameter("--overlength", f"must be drop, truncate or fail, got {asked!r}")
    return asked


def _folder(model: str) -> Path:
    """The folder with a model's tokenizer: a path, or one that is installed in the data folder of this machine."""
    if (Path(model) / "tokenizer.json").is_file():
        return Path(model)
    from luthier.control.catalog.cards import installed
    from luthier.control.datasets.tasks import TOKENIZER_FILES
    from luthier.core.settings import Settings
    from luthier.storage import Storage

    settings = Settings.read()
    card, storage = None, None
    if not settings.storage_url.startswith("file://") or settings.server.data.is_dir():  # looking makes no folder
        storage = Storage(settings.storage_url, cache=settings.server.data / "cache")
        card = installed(storage, model)
    if storage is None or card is None:
        raise NotFound(
            f"The model {model!r} is not installed in {settings.server.data}.",
            hint="Pass --model with a folder that holds its tokenizer.json, or start `luthier serve` once to bring the model.",
        )
    return storage.folder(card.weights, only=TOKENIZER_FILES)


def _cores() -> int:
    from luthier.core.settings import Settings

    return Settings.read().cores
