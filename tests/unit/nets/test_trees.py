"""What sequences begin with alike is there once, and every sequence is found again."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from luthier.nets.trees import Node, trees

ROWS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=7)


def walked(nodes: list[Node], rows: list[list[int]], before: tuple[int, ...] = ()) -> Iterator[tuple[int, list[int]]]:
    """Every sequence by number, as the way to its end says it."""
    for node in nodes:
        assert node.begin == len(before)
        path = (*before, *rows[node.sequences[0]][node.begin : node.end])
        yield from ((one, list(path)) for one in node.ending)
        yield from walked(node.children, rows, path)


def nodes_of(nodes: list[Node]) -> list[Node]:
    return [one for node in nodes for one in (node, *nodes_of(node.children))]


@given(rows=ROWS, shared=st.sampled_from([None, 1, 2, 4]))
def test_every_sequence_is_found_again(rows: list[list[int]], shared: int | None) -> None:
    assert dict(walked(trees(rows, shared), rows)) == dict(enumerate(rows))


@given(rows=ROWS)
def test_with_a_token_to_share_no_beginning_is_there_twice(rows: list[list[int]]) -> None:
    grown = trees(rows, 1)
    assert sum(node.tokens for node in grown) == len(
        {tuple(row[:end]) for row in rows for end in range(1, len(row) + 1)}
    )


@given(rows=ROWS, shared=st.integers(1, 4))
def test_what_is_shared_is_long_enough(rows: list[list[int]], shared: int) -> None:
    assert all(node.end - node.begin >= shared for node in nodes_of(trees(rows, shared)) if len(node.sequences) > 1)


def test_a_pair_and_a_stranger() -> None:
    first, stranger = trees([[1, 2, 3, 4, 5], [9, 9], [1, 2, 3, 7], [1, 2, 3]], 3)
    assert (first.sequences, first.end, first.ending) == ([3, 0, 2], 3, [3])
    assert [(child.begin, child.end, child.sequences) for child in first.children] == [(3, 5, [0]), (3, 4, [2])]
    assert (first.tokens, stranger.tokens, stranger.children) == (6, 2, [])
