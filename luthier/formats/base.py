"""The DatasetFormat contract: which rows are of a format, everything that is wrong with one, and what it says."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib import resources
from typing import Any, ClassVar, Literal, Protocol

from luthier.chat.messages import Conversation, ImageGeneration, Message, PlainText, PreferencePair
from luthier.core.registry import Registry
from luthier.records.lenient import MOST_FAULTS, Path
from luthier.records.problems import MEANINGS, Level, Problem, shown
from luthier.records.reader import Reader, Record

Kind = Literal["chat", "preference", "image_understanding", "image_generation", "text"]
"""What an example teaches; an objective says which kinds it wants."""

Value = Conversation | PreferencePair | ImageGeneration | PlainText
Row = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """One row that can be trained. `row` counts rows, `line` is where it begins in the file; both from 1."""

    row: int
    line: int
    value: Value


@dataclass
class Findings:
    """Collects what is wrong with a record, each fault with its place in the file."""

    record: Record
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    unplaced: frozenset[Level] = frozenset()
    """Of these it is enough to say that they are there: finding their place costs a second, slow reading."""

    def add(self, code: str, path: Path, *, found: str = "", expected: str = "", of_key: bool = False) -> None:
        level = MEANINGS[code].level
        kept = self.problems if level == "error" else self.warnings
        if level in self.unplaced:
            kept.append(Problem(code=code))
        elif len(kept) < MOST_FAULTS:
            kept.append(self.record.problem(code, path, found=found, expected=expected, of_key=of_key))


class Quick(Protocol):
    """Takes lines that are rows without fault, many at a time, and counts what they hold; asked again and again for one piece
    of a file.
    """

    turns: int
    trained_turns: int
    characters: int
    tags: dict[str, int]
    counts: Counter[str]
    """Problems and warnings of the rows that were taken, by their codes."""
    hashes: array[int]
    """Of each line that was taken the hash; its number is in `lines`."""
    lines: array[int]

    def __call__(self, lines: list[bytes], first_line: int, full: frozenset[Level]) -> Sequence[int]:
        """Take over the lines that are plainly right, counted from `first_line` on; the places of all others, in order.

        What is taken is of this format, or of one that it includes. It has no problem or warning, but such whose level is
        among the `full`, of which only the number is still of interest. A line that is left costs time and nothing else,
        so all doubt goes that way.
        """
        ...


class DatasetFormat(ABC):
    """The rows of one shape. A file of `formats/` defines one; all methods are pure and may run in any process."""

    kind: ClassVar[Kind]
    includes: ClassVar[frozenset[str]] = frozenset()
    """Names of the formats whose rows are also rows of this one, so that a file may mix them."""
    describes: ClassVar[str]
    """The fields of a row, as a message to somebody who got them wrong."""
    in_archive: ClassVar[bool] = False
    """Whether the file is a zip archive of such rows and their images."""

    @classmethod
    @abstractmethod
    def recognises(cls, row: Row) -> bool:
        """Whether this row is meant to be of this format, right or wrong. Of the samples, exactly one format says so."""

    @classmethod
    def claims(cls, row: Row) -> bool:
        """Whether a row that another format recognises belongs here all the same once the file is known to be of this one."""
        return False

    @classmethod
    @abstractmethod
    def check(cls, row: Row, findings: Findings) -> None:
        """Find everything that is wrong with a row."""

    @classmethod
    @abstractmethod
    def value(cls, row: Row) -> Value:
        """What a row says, for one without problems."""

    @classmethod
    def repaired(cls, row: Row) -> Row:
        """The row with every fault removed that is marked as repairable; the same where there is none."""
        return row

    @classmethod
    def images(cls, row: Row) -> list[tuple[Path, str]]:
        """Where the images of a row without problems are: the path of each from the row on, and its URL or name."""
        return []

    @classmethod
    def quick(cls) -> Quick | None:
        """A new way to take the rows of a file that are plainly right; None where every row is looked at by itself."""
        return None

    @classmethod
    def name(cls) -> str:
        """What the format is called: the name of its file."""
        return cls.__module__.rsplit(".", 1)[-1]

    @classmethod
    def sample(cls) -> bytes:
        """The sample file of the format, as users download it."""
        suffix = "zip" if cls.in_archive else "jsonl"
        return (resources.files("luthier.formats") / "samples" / f"{cls.name()}.{suffix}").read_bytes()

    @classmethod
    def read(cls, blocks: Iterable[bytes]) -> Iterator[Example | Problem]:
        """The rows of a file in order, holding one at a time; what is wrong with one comes instead of it."""
        for found in Reader(blocks):
            if isinstance(found, Problem):
                yield found
            elif isinstance(found, Record):
                problems = problems_of(found, cls)
                yield from problems
                if not problems:
                    yield Example(found.row, found.line, cls.value(found.value))


def problems_of(record: Record, form: type[DatasetFormat]) -> list[Problem]:
    """Every error of a record in a file of that format. Of a row that was cut off, or could not be read, nothing more is said."""
    if not record.is_sure:
        return record.problems
    if not isinstance(record.value, dict):
        if record.value is None and any(not problem.meaning.repairable for problem in record.problems):
            return record.problems  # nothing could be read
        return [*record.problems, record.problem("not_an_object", (), found=shown(record.value))]
    findings = Findings(record)
    form.check(record.value, findings)
    return [*record.problems, *findings.problems]


@dataclass(frozen=True)
class Measure:
    """How large a row is: turns of a conversation, those that are trained, characters of all texts, images."""

    turns: int
    trained_turns: int
    characters: int
    images: int


def measure(value: Value) -> Measure:
    match value:
        case PlainText(text):
            return Measure(1, 1, len(text), 0)
        case ImageGeneration(prompt):
            return Measure(len(prompt.messages) + 1, 1, _characters(prompt.messages), 1)
        case PreferencePair(prompt, chosen, rejected):
            said = (*prompt.messages, chosen, rejected)
            return Measure(len(prompt.messages) + 1, 1, _characters(said), len(prompt.images))
        case Conversation(messages):
            trained = sum(1 for message in messages if message.role == "assistant" and message.trained)
            return Measure(len(messages), trained, _characters(messages), len(value.images))


def _characters(messages: Iterable[Message]) -> int:
    return sum(
        len(message.text) + sum(len(call.name) + len(call.arguments) for call in message.tool_calls)
        for message in messages
    )


formats: Registry[DatasetFormat] = Registry("luthier.formats", DatasetFormat, kind="format")


@cache
def known() -> dict[str, type[DatasetFormat]]:
    """Every format by its name."""
    return {name: formats.load(name) for name in formats.names()}


def recognised(row: Row) -> list[str]:
    """The names of the formats that a row is of: one, unless something is wrong with it."""
    return [name for name, form in known().items() if form.recognises(row)]


def form_of_row(row: Row, form: type[DatasetFormat]) -> type[DatasetFormat] | None:
    """The format that a row is judged by in a file of `form`; None where only a person can tell."""
    names = recognised(row)
    if form.claims(row) or names == [form.name()]:
        return form
    return known()[names[0]] if len(names) == 1 else None


def taken_over(theirs: Row, form: type[DatasetFormat]) -> tuple[Row, list[str]]:
    """What a row of another tool, read as ours, becomes in a file of `form`, and the codes of what is wrong with it even so."""
    of = form_of_row(theirs, form)
    if of is None:
        return theirs, ["format_unknown"]
    row = of.repaired(theirs)
    findings = Findings(Record(1, 1, "", row), unplaced=frozenset(("error", "warning")))
    of.check(row, findings)
    return row, sorted({problem.code for problem in findings.problems})


_FIELDS = ("messages", "input", "preferred_output", "non_preferred_output", "chosen", "rejected", "text")


def misspelled(row: Row) -> tuple[str, str] | None:
    """A field of a row of no format that is nearly one of ours, and that one."""
    for name in list(row)[:20]:
        if (
            isinstance(name, str)
            and len(name) < 40
            and name not in _FIELDS
            and (near := get_close_matches(name.strip().lower(), _FIELDS, 1, 0.8))
        ):
            return name, near[0]
    return None
