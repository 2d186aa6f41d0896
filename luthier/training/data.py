"""Examples into rows of tokens, and the plan in which order they are trained."""

from __future__ import annotations

import hashlib
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from luthier.chat.examples import Drop, Overlength, fitted, weighed
from luthier.chat.renderers.base import Rendered, Renderer
from luthier.core.errors import DatasetInvalid, InvalidRequest, RunFailed
from luthier.formats.base import formats
from luthier.nets.trees import in_common, sorting, trees
from luthier.records.problems import Problem
from luthier.records.source import LocalFile
from luthier.storage import Storage
from luthier.training.methods.base import method_of
from luthier.training.objectives.base import Encoded, Objective
from luthier.training.precision import has_gpu
from luthier.training.spec import DataFile, TrainingSpec

if TYPE_CHECKING:
    import torch

    from luthier.nets.packing import Packed

SHARED_PREFIXES = "shared prefixes"
"""As a run and a forecast call them."""

_PROBLEMS = 1000  # listed at most
_SHARED = 8  # tokens that are worth to be computed once: each part that is shared costs a call in every layer
_TURNS = 8  # of a process, from which on one group more or less does not matter
_OPEN = 64  # micro-batches that are filled at the same time
_REPAID_ON_CPU = (
    3e13  # bytes of weights times tokens: about ten minutes on two cores, to which seconds of compiling are little
)
_REPAID_ON_GPU = 2e16  # a guess: about two minutes of LoRA on an H100 at two fifths of its peak


class RowsLost(RunFailed):
    """A file gives other rows than were promised when its job was made: rows in = rows trained + rows dropped."""

    code = "rows_lost"


@dataclass(frozen=True)
class Rows:
    """The rows of a file that are trained, in its order, and the numbers of those that are not, by reason."""

    rows: list[Encoded]
    dropped: dict[Drop, list[int]]

    @property
    def dropped_rows(self) -> int:
        return sum(map(len, self.dropped.values()))

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


def read_rows(
    storage: Storage,
    file: DataFile,
    objective: Objective,
    renderer: Renderer,
    *,
    max_length: int,
    overlength: Overlength = "drop",
) -> Rows:
    """The rows of a stored file, rendered.

    Raises InvalidRequest when the file is not the one of the spec or not of a kind that the objective wants; RowsLost when
    it does not give the rows that were promised; DatasetInvalid when it has faults or nothing in it that can be trained.
    """
    form = formats.load(file.format)
    if form.kind != objective.wants:
        raise InvalidRequest(f"{file.key} holds {form.kind} rows; the objective wants {objective.wants}.")
    rows: list[Encoded] = []
    dropped: dict[Drop, list[int]] = {}
    faults: list[Problem] = []
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows"
        storage.download(file.key, path)
        with path.open("rb") as lines:
            _check(file, hashlib.file_digest(lines, "sha256").hexdigest())
        for example in form.read(LocalFile(path).blocks()):
            if isinstance(example, Problem):
                faults.append(example)
                continue
            example = replace(example, value=weighed(example.value, file.turn_weights))
            row = fitted(objective.encode(example, renderer), max_length=max_length, overlength=overlength)
            if row.dropped:
                dropped.setdefault(row.dropped, []).append(example.row)
            else:
                rows.append(Encoded(tuple(map(_dense, row.sequences)), example.row))
    if faults:
        raise DatasetInvalid(
            f"{file.key} has {len(faults)} faults, the first: {faults[0].text.en}",
            [(problem.line or 0, problem.text.en) for problem in faults[:_PROBLEMS]],
        )
    read = Rows(rows, dropped)
    too_long = dropped.get("too_long", [])
    if overlength == "fail" and (long := [n for n, row in enumerate(rows, 1) if row.longest > max_length]):
        raise DatasetInvalid(f"{len(long)} rows of {file.key} are longer than {max_length} tokens.", [])
    if not read.trained:
        empty = read.dropped_rows - len(too_long)
        why = f"{len(too_long)} rows are longer than {max_length} tokens, {empty} have nothing to learn"
        raise DatasetInvalid(f"Nothing in {file.key} can be trained: {why}.", [])
    promised = (file.rows, file.trained_rows)
    if None not in promised and promised != (len(rows) + read.dropped_rows, len(rows)):
        raise RowsLost(
            f"{file.key} was promised to give {file.trained_rows} of {file.rows} rows; it gives {len(rows)} of "
            f"{len(rows) + read.dropped_rows}.",
            hint="Start a new job: its data is counted anew.",
        )
    return read


def _dense(one: Rendered) -> Rendered:
    """The same in 8 bytes a token: all rows of a run stay in memory."""
    return Rendered(array("i", one.tokens), array("f", one.weights))


def shared_from(spec: TrainingSpec) -> int | None:
    """How many tokens rows of a micro-batch must begin with alike to have them once; None where each has its own."""
    return _SHARED if why_apart(spec) is None else None


def why_apart(spec: TrainingSpec) -> str | None:
    """Why rows that begin alike are each computed by themselves, where they are."""
    if spec.share_prefixes:
        return None
    drops = method_of(spec.method.name, spec.method.options).drops
    return "dropout would be drawn once for all rows" if drops else "it was not asked for"


def why_eager(spec: TrainingSpec, tokens: int, weights: Path) -> str | None:
    """Why nothing is compiled for a run over rows of so many tokens; None where it is."""
    if spec.compiled is not None or not spec.fused:  # an older version's spec has neither
        return None if spec.compiled else "it was not asked for"
    held = sum(path.stat().st_size for path in weights.glob("*.safetensors"))
    work = held * tokens * spec.epochs / spec.processes
    return (
        None if work >= (_REPAID_ON_GPU if has_gpu() else _REPAID_ON_CPU) else "the job is too short to repay compiling"
    )


def micro_batches(
    rows: Sequence[Encoded], limit_tokens: int, *, shared: int | None = None, processes: int = 1
) -> list[list[Encoded]]:
    """Rows in groups of at most `limit_tokens`, the longest first, each where it fits first; a longer row goes alone.

    With `shared`, rows that begin with as many tokens alike stay together, and what `packed` lays once counts once. Several
    `processes`, who take the groups in turns, then get smaller ones of like size, where one would have none or much less.
    """
    begun = _begun(rows, shared)
    groups = _filled(begun, limit_tokens)
    turns = -(-len(groups) // processes)
    if shared is None or processes == 1 or turns > _TURNS:
        return groups
    too_small, limit = 0, limit_tokens
    while limit - too_small > max(limit // 32, 1):
        smaller = (too_small + limit) // 2
        if len(found := _filled(begun, smaller)) <= turns * processes:
            groups, limit = found, smaller
        else:
            too_small = smaller
    return groups


class _Begun(NamedTuple):
    """A row, the tokens that it takes at most, and how many fewer it is sure to take behind the row before it."""

    row: Encoded
    tokens: int
    fewer: int


def _begun(rows: Sequence[Encoded], shared: int | None) -> list[_Begun]:
    """Rows as they are, or in the order of what they begin with."""
    if shared is None:
        return [_Begun(row, row.length, 0) for row in rows]
    unsure = shared - 1  # tokens more than others share are laid apart where they are fewer than `shared`
    found: list[_Begun] = []
    before = np.empty(0)
    for row in sorted(rows, key=lambda row: sorting(np.asarray(row.sequences[0].tokens))):
        ids = [np.asarray(one.tokens) for one in row.sequences]
        within = sum(max(in_common(one, two) - unsure, 0) for one, two in pairwise(ids))
        found.append(_Begun(row, row.length - within, max(in_common(before, ids[0]) - unsure, 0)))
        before = ids[0]
    return found


def _filled(begun: Sequence[_Begun], limit_tokens: int) -> list[list[Encoded]]:
    blocks: list[tuple[list[Encoded], int]] = []  # rows that go together, and their tokens at most
    for row, tokens, fewer in begun:
        if fewer and (together := blocks[-1][1] + tokens - fewer) <= limit_tokens:
            blocks[-1][0].append(row)
            blocks[-1] = blocks[-1][0], together
        else:
            blocks.append(([row], tokens))
    groups: list[list[Encoded]] = []
    open_groups: list[tuple[list[Encoded], int]] = []  # and the tokens that each still takes
    for block, tokens in sorted(blocks, key=lambda block: -block[1]):
        place = next((place for place, (_, left) in enumerate(open_groups) if tokens <= left), None)
        if place is None:
            groups.append(group := [*block])
            open_groups = [*open_groups[-_OPEN + 1 :], (group, limit_tokens - tokens)]
        else:
            group, left = open_groups[place]
            group += block
            open_groups[place] = group, left - tokens
    return groups


def tokens_of(group: Sequence[Encoded], shared: int | None) -> int:
    """Tokens that go through the model for a group of rows: those of `packed`."""
    if shared is None:
        return sum(row.length for row in group)
    return sum(node.tokens for node in trees([one.tokens for row in group for one in row.sequences], shared))


def packed(rows: Sequence[Encoded], device: torch.device, shared: int | None = None) -> Packed:
    """The sequences of rows laid end to end; what at least `shared` tokens of them begin with alike is there once."""
    from luthier.nets.packing import pack

    return pack([(one.tokens, one.weights) for row in rows for one in row.sequences], device, shared=shared)


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
