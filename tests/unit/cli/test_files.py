"""luthier files: what a server says of its files is shown as it stands there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from luthier.cli import files


def test_names_and_words_of_a_server_are_listed_literally(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("[x].jsonl", "[/red].jsonl", ":smile:", "a\x1b[2Jb\u202ec")
    kept = [
        SimpleNamespace(id=f"file-{place}", filename=name, bytes=5, status="error", status_details="row 1: [/bold]")
        for place, name in enumerate(names)
    ]

    @contextmanager
    def connected(*_: object) -> Iterator[Any]:
        yield SimpleNamespace(files=SimpleNamespace(list=lambda: kept))

    monkeypatch.setattr(files, "connected", connected)
    monkeypatch.setenv("COLUMNS", "200")
    files.list_(json=False)
    shown = capsys.readouterr().out
    for told in ("[x].jsonl ", "[/red].jsonl ", ":smile: ", "a␛[2Jb<U+202E>c ", "row 1: [/bold]"):
        assert told in shown
