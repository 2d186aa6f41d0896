"""What sequences begin with alike is there once, and every sequence is found again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from luthier.nets.trees import Node, trees

ROWS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=7)


def followed(nodes: list[Node], rows: list[list[int]]) -> dict[int, list[int]]:
    """Every sequence by number, as the way to its end says it."""
    ways: list[list[int]] = []
    for node in nodes:
        before = [] if node.parent is None else ways[node.parent]
        assert node.begin == len(before)
        ways.append([*before, *rows[node.of][node.begin : node.end]])
    return {one: way for node, way in zip(nodes, ways, strict=True) for one in node.ending}


def children_of(nodes: list[Node], parent: int) -> list[Node]:
    return [node for node in nodes if node.parent == parent]


@given(rows=ROWS, shared=st.sampled_from([None, 1, 2, 4]))
def test_every_sequence_is_found_again(rows: list[list[int]], shared: int | None) -> None:
    assert followed(trees(rows, shared), rows) == dict(enumerate(rows))


@given(rows=ROWS, shared=st.sampled_from([None, 1, 2, 4]))
def test_what_goes_on_from_a_node_stands_behind_it_before_all_else(rows: list[list[int]], shared: int | None) -> None:
    way: list[int] = []
    for number, node in enumerate(trees(rows, shared)):
        while way and way[-1] != node.parent:
            way.pop()
        assert way or node.parent is None
        way.append(number)


@given(rows=ROWS)
def test_with_a_token_to_share_no_beginning_is_there_twice(rows: list[list[int]]) -> None:
    grown = trees(rows, 1)
    assert sum(node.tokens for node in grown) == len(
        {tuple(row[:end]) for row in rows for end in range(1, len(row) + 1)}
    )


@given(rows=ROWS, shared=st.integers(1, 4))
def test_what_is_shared_is_long_enough(rows: list[list[int]], shared: int) -> None:
    nodes = trees(rows, shared)
    for number, node in enumerate(nodes):
        if len(node.ending) + len(children_of(nodes, number)) > 1:
            assert node.tokens >= shared


def test_a_pair_and_a_stranger() -> None:
    nodes = trees([[1, 2, 3, 4, 5], [9, 9], [1, 2, 3, 7], [1, 2, 3]], 3)
    assert [(node.begin, node.end, node.parent, node.ending) for node in nodes] == [
        (0, 3, None, [3]), (3, 5, 0, [0]), (3, 4, 0, [2]), (0, 2, None, [1]),
    ]  # fmt: skip


def test_a_tree_may_be_as_deep_as_there_are_sequences() -> None:
    whole = list(range(3000))
    nodes = trees([whole[:end] for end in range(1, 3001)], 1)
    assert [(node.begin, node.end, node.ending) for node in nodes] == [(at, at + 1, [at]) for at in range(3000)]
