"""A storage in a folder of its own, and ways to play a toy job and read what it told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.core import logs
from luthier.storage import Storage
from luthier.training.events import Evaluated, Progress, RunEvent, read_events
from luthier.training.spec import TrainingSpec


@pytest.fixture(autouse=True)
def _plain_logs() -> None:
    logs.configure()


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage((tmp_path / "objects").as_uri())


@pytest.fixture
def told(storage: Storage) -> Callable[..., list[RunEvent]]:
    """The events of an attempt at a job."""
    return lambda spec, attempt=1: read_events(storage, spec.run_key, attempt, -1)


@pytest.fixture
def series(told: Callable[..., list[RunEvent]]) -> Callable[..., dict[tuple[str, int], tuple[float, float]]]:
    """Loss and accuracy by (event, step), of one attempt or of several, later ones overruling earlier ones."""

    def of(spec: TrainingSpec, *attempts: int) -> dict[tuple[str, int], tuple[float, float]]:
        events = [event for attempt in attempts or (1,) for event in told(spec, attempt)]
        return {(e.type, e.step): (e.loss, e.token_accuracy) for e in events if isinstance(e, Progress | Evaluated)}

    return of
