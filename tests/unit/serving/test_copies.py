"""Copies of a process that was killed go with the next one, those of one that lives stay."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from luthier.serving import copies

HOLD = "import sys; from luthier.serving import copies; print(copies.folder(), flush=True); sys.stdin.read()"


def _holder(room: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"TMPDIR": str(room)},
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_process_left_is_taken_away_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed, left = _holder(tmp_path)
    living, kept = _holder(tmp_path)
    ended, gone = _holder(tmp_path)
    for folder in (left, kept, gone):
        (folder / "adapter.bin").write_bytes(b"1")
    stranger = tmp_path / "luthier-copies-of-somebody"
    stranger.symlink_to(tmp_path)
    killed.kill()
    killed.communicate()
    ended.communicate()
    assert not gone.exists()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mine = copies.folder.__wrapped__()
    assert mine.stat().st_mode & 0o077 == 0
    assert {entry.name for entry in tmp_path.iterdir()} == {mine.name, kept.name, stranger.name}
    living.communicate()
