"""Nobody is answered by somebody else's adapter: a short form of tests/fuzz/isolation.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.isolation import isolation

pytestmark = pytest.mark.timeout(600)  # a real process that imports torch


def test_every_answer_comes_from_the_adapter_that_was_asked_for(tmp_path: Path) -> None:
    seen = isolation(tmp_path, adapters=10, places=3, clients=6, seconds=60)
    assert not seen.faults, seen.faults
    assert all(seen.counts[what] for what in ("answers", "evictions", "overwrites", "refused")), seen.counts
