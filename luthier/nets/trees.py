"""What sequences of tokens begin with alike, as trees. Importing it must not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True)
class Node:
    """The tokens of sequence `of` from `begin` to before `end`. They go on from those of node `parent`, absent at a root, and
    are all that the sequences of `ending` have after these. Sequences and nodes go by number.
    """

    of: int
    begin: int
    end: int
    parent: int | None
    ending: list[int]

    @property
    def tokens(self) -> int:
        return self.end - self.begin


def trees(
    sequences: Sequence[Sequence[int] | np.ndarray], shared: int | None, *, among: Sequence[int] | None = None
) -> list[Node]:
    """The trees of sequences, or of those `among` them, of which each has at least a token, in the order of their first ones.
    A node stands before those that go on from it, and these before the next that does not.

    What at least `shared` tokens of several have in common, counted from where they are told apart from the others, is one
    node; absent, each sequence is a tree of one node.
    """
    numbers = range(len(sequences)) if among is None else among
    if shared is None:
        return [Node(one, 0, len(sequences[one]), None, [one]) for one in numbers]
    arrays = {one: np.asarray(sequences[one]) for one in numbers}
    order = sorted(numbers, key=lambda one: sorting(arrays[one]))
    lengths = np.array([len(arrays[one]) for one in order])
    common = np.array(
        [0, *(in_common(arrays[one], arrays[two]) for one, two in pairwise(order))]
    )  # with the one before

    def runs(first: int, last: int, begin: int) -> list[tuple[int, int]]:
        """Of places in the order: those that have enough in common behind `begin`, up to where all of them have."""
        cuts = first + 1 + np.flatnonzero(common[first + 1 : last] < begin + shared)
        return list(pairwise([first, *cuts.tolist(), last])) if first < last else []

    nodes: list[Node] = []
    roots = sorted(runs(0, len(order), 0), key=lambda run: min(order[slice(*run)]))
    waiting: list[tuple[tuple[int, int], int | None]] = [(run, None) for run in reversed(roots)]
    while waiting:  # a tree may be as deep as there are sequences
        (first, last), parent = waiting.pop()
        begin = 0 if parent is None else nodes[parent].end
        end = int(common[first + 1 : last].min() if last - first > 1 else lengths[first])
        longer = first + int((lengths[first:last] == end).sum())  # what ends comes first
        waiting += [(run, len(nodes)) for run in reversed(runs(longer, last, end))]
        nodes.append(Node(order[first], begin, end, parent, order[first:longer]))
    return nodes


def sorting(ids: np.ndarray) -> bytes:
    """A key that sorts sequences by their first token, then the second, and so on."""
    return ids.astype(">u4").tobytes()


def in_common(one: np.ndarray, two: np.ndarray) -> int:
    """How many tokens two sequences begin with alike."""
    length = min(len(one), len(two))
    differing = np.flatnonzero(one[:length] != two[:length])
    return int(differing[0]) if len(differing) else length
