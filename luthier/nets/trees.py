"""What sequences of tokens begin with alike, as trees. Importing it must not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np


@dataclass(frozen=True)
class Node:
    """What `sequences`, by number, have in common from `begin` to before `end`; those of `ending` have nothing after it."""

    sequences: list[int]
    begin: int
    end: int
    children: list[Node]
    ending: list[int]

    @cached_property
    def tokens(self) -> int:
        """Of this and all that goes on from it."""
        return self.end - self.begin + sum(child.tokens for child in self.children)


def trees(sequences: Sequence[Sequence[int]], shared: int | None, *, among: Sequence[int] | None = None) -> list[Node]:
    """The trees of sequences, or of those `among` them, of which each has at least a token, in the order of their first ones.

    What at least `shared` tokens of several have in common, counted from where they are told apart from the others, is one
    node; absent, each sequence is a tree of one node.
    """
    numbers = range(len(sequences)) if among is None else among
    if shared is None:
        return [Node([one], 0, len(sequences[one]), [], [one]) for one in numbers]
    arrays = {one: np.asarray(sequences[one]) for one in numbers}
    order = sorted(numbers, key=lambda one: sorting(arrays[one]))
    common = {two: in_common(arrays[one], arrays[two]) for one, two in pairwise(order)}  # with the one before

    def grown(group: list[int], begin: int) -> list[Node]:
        """Of sequences in order that have everything before `begin` in common, and go on from there."""
        nodes: list[Node] = []
        first = 0
        for last in range(1, len(group) + 1):
            if last < len(group) and common[group[last]] >= begin + shared:
                continue
            run, first = group[first:last], last
            end = min((common[one] for one in run[1:]), default=len(arrays[run[0]]))
            longer = [one for one in run if len(arrays[one]) > end]
            ending = [one for one in run if len(arrays[one]) == end]
            nodes.append(Node(run, begin, end, grown(longer, end) if longer else [], ending))
        return nodes

    return sorted(grown(order, 0), key=lambda node: min(node.sequences))


def sorting(ids: np.ndarray) -> bytes:
    """A key that sorts sequences by their first token, then the second, and so on."""
    return ids.astype(">u4").tobytes()


def in_common(one: np.ndarray, two: np.ndarray) -> int:
    """How many tokens two sequences begin with alike."""
    length = min(len(one), len(two))
    differing = np.flatnonzero(one[:length] != two[:length])
    return int(differing[0]) if len(differing) else length
