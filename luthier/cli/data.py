"""luthier data: check, show, repair, count and split a file on this machine, without a server."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from json import loads as read_json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer
from rich.table import Table
from rich.text import Text

from luthier.cli.console import Json, complain, err, literal, out, print_json, table, visible
from luthier.cli.language import Language, Speech, counted, spoken
from luthier.core.errors import InvalidParameter, InvalidRequest, NotFound

if TYPE_CHECKING:
    from luthier.chat.examples import Overlength
    from luthier.control.datasets.lengths import Selection, Summary
    from luthier.control.datasets.preview import Preview
    from luthier.control.datasets.report import DatasetReport
    from luthier.records.problems import Problem
    from luthier.records.source import Source

app = typer.Typer(help="Look at a training file on this machine; no server is needed.", no_args_is_help=True)

File = Annotated[
    Path, typer.Argument(exists=True, dir_okay=False, help="A .jsonl or .json file, or a .zip with images.")
]
Model = Annotated[str, typer.Option("--model", help="A model that is installed here, or a folder with its tokenizer.")]
Category = Annotated[str | None, typer.Option("--category", help="The format that the file is meant to be of.")]
MaxLength = Annotated[
    int | None,
    typer.Option(
        min=8,
        help="Tokens that a row may have; 2,048 otherwise, or the model's context where that is less.",
        show_default=False,
    ),
]
OverlengthOption = Annotated[str, typer.Option("--overlength", help="Longer rows: drop, truncate or fail.")]

EMBEDDED = "smollm2-135m-instruct"

_MARKS = {
    "too_long": ("dropped: too long", "不训练：过长"),
    "nothing_trained": ("dropped: nothing to learn", "不训练：没有可学习的内容"),
    "refused": ("dropped: the model cannot take it", "不训练：该模型无法接受"),
    "truncated": ("cut behind the limit", "在上限处截断"),
    "images": ("with images", "含图片"),
}
"""What the marks of a row say and why rows are dropped, English and Chinese."""

_BLOCK = 1024 * 1024  # bytes


@app.command()
def check(
    path: File,
    category: Category = None,
    most: Annotated[int, typer.Option("--most", min=1, help="Problems to print.")] = 20,
    language: Language = None,
    json: Json = False,
) -> None:
    """Find everything that is wrong with a file. Ends with 1 when there is something."""
    say = spoken(language)
    report = _inspected(path, category)
    if json:
        print_json(report.model_dump(mode="json") | {"fit": report.fit})
    else:
        _print_report(path, report, most, say)
    if not report.fit:
        raise typer.Exit(1)


@app.command()
def show(
    path: File,
    row: Annotated[int, typer.Option("--row", min=1, help="Which row, counted from 1.")] = 1,
    model: Model = EMBEDDED,
    max_length: MaxLength = None,
    overlength: OverlengthOption = "drop",
    language: Language = None,
    json: Json = False,
) -> None:
    """Show exactly what will be trained of one row: what is learned in green, the rest dim."""
    from luthier.control.datasets.preview import preview

    say, way = spoken(language), _overlength(overlength)
    form, known_model = _format(path, say), _known(model)
    limit = known_model.limit(max_length)
    with _source(path) as source:
        seen = preview(source, form, row, known_model.folder, max_length=limit, overlength=way)
        if seen.problems and (wider := _wider(source, form, row)) is not None:
            seen = preview(source, wider, row, known_model.folder, max_length=limit, overlength=way)
    if json:
        print_json(seen.model_dump(mode="json"))
    else:
        _print_row(seen, limit, way, say)
    if seen.problems:
        raise typer.Exit(1)


@app.command()
def repair(
    path: File,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to; FILE.repaired.jsonl (or .zip) otherwise.")
    ] = None,
    language: Language = None,
    json: Json = False,
) -> None:
    """Write a new file without the faults that have one right answer, and show what was changed."""
    from luthier.control.datasets.archives import suffix_of
    from luthier.control.datasets.repairing import repair as mend

    say = spoken(language)
    with _source(path) as source:
        target = output or path.with_name(f"{path.stem}.repaired{suffix_of(source)}")
    if target.exists() and target.samefile(path):
        raise InvalidParameter("--output", "must be another file than the one that is repaired")
    with _source(path) as source, _written(target) as [out_file]:
        changes = mend(source, out_file)
    if json:
        print_json(
            {
                "file": str(target),
                "rows_changed": changes.rows_changed,
                "rows_left": changes.rows_left,
                "images": changes.images,
                "counts": changes.counts,
                "rows": changes.rows,
            }
        )
        return
    for one in changes.rows[:20]:
        codes = ", ".join(one["codes"])
        out.print(
            say(
                f"row {one['row']}, line {one['line']}: {codes}",
                f"第 {one['row']} 条数据，第 {one['line']} 行：{codes}",
            )
        )
        out.print(literal(f"- {one['before']}", "red"))
        out.print(literal(f"+ {one['after']}", "green"))
    counts = ", ".join(f"{code} {count:,}" for code, count in changes.counts.items())
    out.print(
        say(
            f"{target}: {counted(changes.rows_changed, 'row')} changed ({counts}); {counted(changes.rows_left, 'row')} still "
            f"{'has' if changes.rows_left == 1 else 'have'} a problem{', images not looked at' if changes.images else ''}",
            f"{target}：修改了 {changes.rows_changed:,} 条数据（{counts}）；仍有问题的数据：{changes.rows_left:,} 条"
            f"{'，图片未检查' if changes.images else ''}",
        )
    )


@app.command()
def stats(
    path: File,
    model: Model = EMBEDDED,
    max_length: MaxLength = None,
    overlength: OverlengthOption = "drop",
    language: Language = None,
    json: Json = False,
) -> None:
    """Count rows, turns and tokens by a model's tokenizer, and say which rows a limit would leave out.

    Ends with 1 when a job would be refused.
    """
    from luthier.control.datasets.counting import count_file
    from luthier.control.datasets.lengths import kept, summed, under

    say, way = spoken(language), _overlength(overlength)
    report = _inspected(path, None)
    if not report.fit or report.format is None:
        raise _unfit(report, say)
    known_model = _known(model)
    limit = known_model.limit(max_length)
    with tempfile.TemporaryFile() as lengths:
        with _source(path) as source, err.status("counting tokens"):
            found = summed(count_file(source, report.format, known_model.folder, processes=_cores()), lengths)
        lengths.seek(0)
        chosen = under(kept(iter(lambda: lengths.read(_BLOCK), b"")), limit, way)
    refusals = _refusals(found, chosen, limit, way, say)
    if json:
        print_json(
            {
                "report": report.model_dump(mode="json"),
                "max_length": limit,
                "tokens": found.tokens,
                "statistics": found.statistics,
                "trained_rows": chosen.trained_rows,
                "dropped_rows": chosen.rows - chosen.trained_rows,
                "dropped": chosen.dropped,
                "truncated_rows": chosen.truncated,
                "too_long_rows": chosen.too_long,
                "billed_tokens": chosen.billed_tokens,
                "trained_tokens": chosen.trained_tokens,
                "refused": found.refused,
            }
        )
    else:
        _print_stats(report, found, chosen, limit, say)
    for refusal in refusals:
        complain(refusal)
    if refusals:
        raise typer.Exit(1)


@app.command()
def split(
    path: File,
    ratio: Annotated[float, typer.Option(help="Share of the rows that go to validation.")] = 0.2,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    by_tag: Annotated[bool, typer.Option(help="Split each tag in the same proportion.")] = True,
    language: Language = None,
    json: Json = False,
) -> None:
    """Split a file at random into FILE.training.jsonl and FILE.validation.jsonl (or .zip); the same seed gives the same rows."""
    from pydantic import ValidationError

    from luthier.control.datasets.archives import suffix_of
    from luthier.control.datasets.transforms.split import SplitOptions
    from luthier.control.datasets.transforms.split import split as divide

    say = spoken(language)
    report = _inspected(path, None)
    if not report.fit:
        raise _unfit(report, say)
    try:
        options = SplitOptions(ratio=ratio, seed=seed, by_tag=by_tag)
    except ValidationError as wrong:
        fault = wrong.errors()[0]
        name, given = fault["loc"][0], fault["input"]
        allowed = "above 0 and below 1" if name == "ratio" else "at least 0 and below 2,147,483,648"
        raise InvalidParameter(f"--{name}", f"must be {allowed}, got {given}") from wrong
    with _source(path) as source:
        suffix = suffix_of(source)
    targets = {name: path.with_name(f"{path.stem}.{name}{suffix}") for name in ("training", "validation")}
    with _source(path) as source, _written(*targets.values()) as [training, validation]:
        division = divide(source, options, training, validation)
    if json:
        print_json({"files": {name: str(target) for name, target in targets.items()}, "division": division})
        return
    for name, target in targets.items():
        out.print(say(f"{target}: {counted(division[name], 'row')}", f"{target}：{division[name]:,} 条数据"))
    if division["tags"]:
        table(
            (say("tag", "标签"), say("rows", "数据"), say("training", "训练集"), say("validation", "验证集")),
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
    with _source(path) as source, err.status(literal(f"checking {path.name}")):
        asked = Settings.read().data
        return inspect(
            source,
            category=category,
            processes=_cores(),
            image_hosts=asked.image_hosts,
            advised_rows=asked.advised_rows,
        )


def _format(path: Path, say: Speech) -> str:
    """The format that the first rows are of; what follows them is not read."""
    from luthier.control.datasets.archives import rows_in
    from luthier.control.datasets.inspection import format_of
    from luthier.images.archives import ArchiveRefused

    with _source(path) as source, suppress(ArchiveRefused), rows_in(source) as (rows, _):
        if (form := format_of(rows)[0]) is not None:
            return form.name()
    raise _unfit(_inspected(path, None), say)


def _wider(source: Source, head: str, row: int) -> str | None:
    """The format of one row, where it includes the one that the first rows are of: a file may mix the two, and is of the wider
    one then. None where the row is of no such format.
    """
    from luthier.control.datasets.archives import rows_in
    from luthier.control.datasets.preview import record_at
    from luthier.formats.base import known, recognised
    from luthier.records.problems import Problem

    with rows_in(source) as (rows, _):
        record = record_at(rows, row)
    if isinstance(record, Problem) or not isinstance(record.value, dict):
        return None
    names = recognised(record.value)
    return names[0] if len(names) == 1 and head in known()[names[0]].includes else None


def _print_row(seen: Preview, limit: int, way: Overlength, say: Speech) -> None:
    for problem in seen.problems:
        complain(say(problem.text.en, problem.text.zh))
    if seen.problems:
        return
    for one in seen.sequences:
        if len(seen.sequences) > 1:
            out.rule(one.name, align="left")
        shown = Text()
        for is_trained, run in groupby(one.tokens, lambda token: token.trained):
            told = visible("".join(token.text for token in run))
            shown.append(told, style="black on green" if is_trained else "dim")
        out.print(shown, soft_wrap=True)
    if seen.said:
        complain(seen.said)
    if way == "fail" and any(len(one.tokens) > limit for one in seen.sequences):
        complain(
            say(
                f"A job would be refused: this row is longer than {limit:,} tokens.",
                f"任务会被拒绝：这条数据超过 {limit:,} 个 token。",
            )
        )
    marks = "".join(say(", ", "，") + say(*_MARKS[mark]) for mark in seen.marks)
    tokens = sum(len(one.tokens) for one in seen.sequences)
    out.print(
        say(
            f"\nrow {seen.row}, line {seen.line}: {counted(tokens, 'token')}, {seen.trained_tokens:,} learned, "
            f"{seen.billed_tokens:,} billed{marks}",
            f"\n第 {seen.row} 条数据，第 {seen.line} 行：{tokens:,} 个 token，学习 {seen.trained_tokens:,} 个，"
            f"计费 {seen.billed_tokens:,} 个{marks}",
        )
    )


def _unfit(report: DatasetReport, say: Speech) -> InvalidParameter:
    """The first problem of a file, and how many more there are."""
    if not report.problems:
        return InvalidParameter("FILE", say("has no rows", "没有数据"))
    first, more = report.problems[0].text, sum(report.counts.values()) - 1
    behind = say(f" ({more:,} more)", f"（另有 {more:,} 个问题）") if more else ""
    return InvalidParameter(
        "FILE", say(first.en, first.zh) + behind, hint=say("See `luthier data check`.", "请运行 `luthier data check`。")
    )


def _print_report(path: Path, report: DatasetReport, most: int, say: Speech) -> None:
    for style, found in (("red", report.problems), ("yellow", report.warnings)):
        for problem in found[:most]:
            out.print(_told(problem, say, style), soft_wrap=True)
    problems = sum(report.counts.values())
    left = problems - min(most, len(report.problems))
    if left > 0:
        counts = ", ".join(f"{code} {count:,}" for code, count in report.counts.items())
        out.print(say(f"... and {left:,} more; in all: {counts}", f"……还有 {left:,} 个问题；合计：{counts}"))
    if report.fit:
        out.print(
            say(
                f"{path.name}: {counted(report.rows, 'row')} of {report.format}, fit for training",
                f"{path.name}：{report.rows:,} 条 {report.format} 数据，可以训练",
            )
        )
        return
    out.print(
        say(
            f"{path.name}: {counted(report.rows, 'row')}, {counted(problems, 'problem')}",
            f"{path.name}：{report.rows:,} 条数据，{problems:,} 个问题",
        )
    )
    if report.repairable:
        out.print(
            say(
                f"All that was found can be repaired: luthier data repair {path}",
                f"已发现的问题都可以修复：luthier data repair {path}",
            )
        )


def _told(problem: Problem, say: Speech, style: str) -> Text:
    return Text.assemble((f"{problem.code}: ", f"bold {style}"), literal(say(problem.text.en, problem.text.zh)))


def _refusals(found: Summary, chosen: Selection, limit: int, way: Overlength, say: Speech) -> list[str]:
    """Why a job with this file would be refused, and by how many rows."""
    refusals: list[str] = []
    if found.refused_rows:
        row, _, why = found.refused[0]
        refusals.append(
            say(
                f"A job would be refused: {counted(found.refused_rows, 'row')} cannot be written for this model; "
                f"row {row}: {why}",
                f"任务会被拒绝：有 {found.refused_rows:,} 条数据无法用于该模型；第 {row} 条：{why}",
            )
        )
    if way == "fail" and chosen.too_long:
        refusals.append(
            say(
                f"A job would be refused: {counted(chosen.too_long, 'row')} of more than {limit:,} tokens; the longest "
                f"has {found.longest:,}.",
                f"任务会被拒绝：有 {chosen.too_long:,} 条数据超过 {limit:,} 个 token；最长的有 {found.longest:,} 个。",
            )
        )
    if not chosen.trained_rows and not refusals:
        refusals.append(
            say(
                f"A job would be refused: of {counted(chosen.rows, 'row')} none is left to train.",
                f"任务会被拒绝：{chosen.rows:,} 条数据中没有可以训练的。",
            )
        )
    return refusals


def _print_stats(report: DatasetReport, found: Summary, chosen: Selection, limit: int, say: Speech) -> None:
    under_limit = chosen.trained_rows - chosen.too_long
    counts = chosen.dropped_counts | ({"truncated": chosen.truncated} if chosen.truncated else {})
    table(
        ("", ""),
        (
            (say("format", "格式"), report.format),
            (
                say("rows", "数据"),
                say(
                    f"{report.rows:,}, {report.duplicate_rows:,} of them repeat another",
                    f"{report.rows:,} 条，其中 {report.duplicate_rows:,} 条重复",
                ),
            ),
            (
                say("turns", "轮次"),
                say(
                    f"{report.turns:,}, {report.trained_turns:,} trained",
                    f"{report.turns:,}，参与训练 {report.trained_turns:,}",
                ),
            ),
            (
                "token" if say.is_chinese else "tokens",
                say(
                    f"{found.tokens:,} in all; {chosen.trained_tokens:,} learned in an epoch",
                    f"共 {found.tokens:,}；每轮训练学习 {chosen.trained_tokens:,}",
                ),
            ),
            (
                say("rows trained", "训练的数据"),
                say(
                    f"{under_limit:,} of {chosen.rows:,} under {limit:,} tokens",
                    f"{chosen.rows:,} 条中的 {under_limit:,} 条，不超过 {limit:,} 个 token",
                ),
            ),
            *((say(*_MARKS[mark]), f"{count:,}") for mark, count in counts.items()),
            *((say(f"tag {tag}", f"标签 {tag}"), f"{count:,}") for tag, count in list(report.tags.items())[:10]),
            (
                say("length", "长度"),
                ", ".join(f"{name} {value:,}" for name, value in found.statistics["percentiles"].items()),
            ),
        ),
    )
    _print_histogram(found.statistics["histogram"])
    for row, _, why in found.refused[:5]:
        complain(say(f"row {row}: {why}", f"第 {row} 条数据：{why}"))


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


def _overlength(asked: str) -> Overlength:
    if asked not in ("drop", "truncate", "fail"):
        raise InvalidParameter("--overlength", f"must be drop, truncate or fail, got {asked!r}")
    return asked


@dataclass(frozen=True)
class _Model:
    """The folder with a model's tokenizer, and how many tokens it reads; None where its folder does not say."""

    name: str
    folder: Path
    context_length: int | None

    def limit(self, asked: int | None) -> int:
        """Tokens that a row may have, as a job would have it. Raises InvalidParameter where the model reads less."""
        from luthier.training.defaults import LONGEST

        most = self.context_length
        if asked is None:
            return min(most or LONGEST, LONGEST)
        if most is not None and asked > most:
            raise InvalidParameter(
                "--max-length", f"must be at most {most:,}, the context of {self.name}, got {asked:,}"
            )
        return asked


def _known(model: str) -> _Model:
    """A model by the path of its folder, or one that is installed in the data folder of this machine."""
    if (Path(model) / "tokenizer.json").is_file():
        return _Model(model, Path(model), _context_length(Path(model)))
    from luthier.chat.tokenizer import TOKENIZER_FILES
    from luthier.control.catalog.cards import installed
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
    return _Model(model, storage.folder(card.weights, only=TOKENIZER_FILES), card.context_length)


def _context_length(folder: Path) -> int | None:
    from luthier.control.catalog.installing import context_length_of

    try:
        return context_length_of(read_json((folder / "config.json").read_bytes()))
    except (OSError, ValueError, InvalidRequest):
        return None


def _cores() -> int:
    from luthier.core.settings import Settings

    return Settings.read().cores
