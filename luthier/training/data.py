"""Examples into rows of tokens, and the plan in which order they are trained."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

from luthier.chat.renderers.base import Renderer
from luthier.core.errors import DatasetInvalid, InvalidRequest
from luthier.formats.base import BadLine, formats
from luthier.storage import Storage
from luthier.training.objectives.base import Encoded, Objective
from luthier.training.spec import DataFile

_PROBLEMS = 1000  # listed at most


@dataclass(frozen=True)
class Rows:
    """The rows of a file that are trained, in its order, and the lines of those that were too long."""

    rows: list[Encoded]
    dropped: list[int]

    @property
    def tokens(self) -> int:
        return sum(row.length for row in self.rows)

    @property
    def trained(self) -> int:
        return sum(row.trained for row in self.rows)


@dataclass(frozen=True)
class BatchPlan:
    """Which rows each step takes: a pure function of its four numbers, so a run's position is one integer, the step.

    Every epoch takes every row once, in an order of its own; the last batch of an epoch may be smaller.
    """

    rows: int
    seed: int
    batch_size: int
    epochs: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.rows // self.batch_size)

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def rows_of(self, step: int) -> list[int]:
        """Indices of the rows of a step, steps counted from 1."""
        epoch, place = divmod(step - 1, self.steps_per_epoch)
        return _order(self.rows, self.seed, epoch)[place * self.batch_size : (place + 1) * self.batch_size]


def read_rows(storage: Storage, file: DataFile, objective: Objective, renderer: Renderer, *, max_length: int) -> Rows:
    """The rows of a stored file, rendered.

    Raises InvalidRequest when the file is not the one of the spec or not of a kind that the objective wants,
    DatasetInvalid when it has faults or nothing in it that can be trained.
    """
    form = formats.load(file.format)()
    if form.kind != objective.wants:
        raise InvalidRequest(f"{file.key} holds {form.kind} rows; the objective wants {objective.wants}.")
    rows: list[Encoded] = []
    too_long: list[tuple[int, str]] = []
    faults: list[tuple[int, str]] = []
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows"
        storage.download(file.key, path)
        with path.open("rb") as lines:
            _check(file, hashlib.file_digest(lines, "sha256").hexdigest())
            lines.seek(0)
            for example in form.read(lines):
                if isinstance(example, BadLine):
                    faults.append((example.line, example.message))
                    continue
                row = objective.encode(example, renderer)
                if row.length > max_length:
                    too_long.append((example.line, f"{row.length} tokens; at most {max_length} are trained"))
                else:
                    rows.append(row)
    if faults:
        line, what = faults[0]
        message = f"{file.key} has {len(faults)} faults, the first in line {line}: {what}"
        raise DatasetInvalid(message, faults[:_PROBLEMS])
    read = Rows(rows, [line for line, _ in too_long])
    if not read.trained:
        why = f"{len(too_long)} rows are longer than {max_length} tokens, {len(rows)} have nothing to learn"
        raise DatasetInvalid(f"Nothing in {file.key} can be trained: {why}.", too_long[:_PROBLEMS])
    return read


def micro_batches(rows: Sequence[Encoded], limit_tokens: int) -> list[list[Encoded]]:
    """Rows of like length together, each group at most `limit_tokens` with its padding; a longer row goes alone."""
    groups: list[list[Encoded]] = []
    for row in sorted(rows, key=lambda row: row.length):
        if groups and (len(groups[-1]) + 1) * row.length <= limit_tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


@lru_cache(maxsize=2)
def _order(rows: int, seed: int, epoch: int) -> list[int]:
    order = list(range(rows))
    random.Random(f"{seed}/{epoch}").shuffle(order)  # noqa: S311
    return order


def _check(file: DataFile, sha256: str) -> None:
    if sha256 != file.sha256:
        raise InvalidRequest(
            f"{file.key} is not the file this job was made for (sha256 {sha256[:12]}…, expected {file.sha256[:12]}…).",
            hint="Start a new job with the file as it is now.",
        )
