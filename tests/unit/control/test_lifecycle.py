"""Every pair of statuses: which may follow which, and that an end is an end."""

from __future__ import annotations

from itertools import product

import pytest

from luthier.control.jobs.lifecycle import ACTIVE, TERMINAL, Status, check
from luthier.core.errors import InvalidTransition

ALLOWED = """
checking    queued paused failed cancelled
queued      starting paused failed cancelled
starting    running queued paused cancelling succeeded failed
running     queued paused cancelling succeeded failed
paused      checking queued cancelled
cancelling  cancelled succeeded failed
succeeded
failed
cancelled
"""
TABLE = {Status(line.split()[0]): {Status(word) for word in line.split()[1:]} for line in ALLOWED.strip().splitlines()}


def test_the_table_knows_every_status() -> None:
    assert set(TABLE) == set(Status)
    assert {status for status, after in TABLE.items() if not after} == TERMINAL
    assert ACTIVE.isdisjoint(TERMINAL)


@pytest.mark.parametrize(("now", "then"), list(product(Status, Status)), ids=str)
def test_a_status_is_followed_by_what_the_table_says_and_by_nothing_else(now: Status, then: Status) -> None:
    if then in TABLE[now]:
        check("ftjob-1", now, then)
    else:
        with pytest.raises(InvalidTransition, match=f"ftjob-1 is {now}; it cannot become {then}"):
            check("ftjob-1", now, then)


def test_every_status_can_be_reached_and_every_job_can_end() -> None:
    reached = {Status.CHECKING}.union(*TABLE.values())
    assert reached == set(Status)
    for start in set(Status) - TERMINAL:
        seen, ahead = set(), {start}
        while ahead:
            seen |= ahead
            ahead = set().union(*(TABLE[one] for one in ahead)) - seen
        assert seen >= TERMINAL
