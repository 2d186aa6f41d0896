"""luthier jobs: a file that is named by its path is uploaded as `luthier files upload` does it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from luthier.cli import files, jobs


def test_a_large_file_of_a_new_job_goes_up_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"x" * 25)
    monkeypatch.setattr(files, "PART_BYTES", 10)
    sent: list[bytes] = []

    def part(upload: str, data: bytes) -> Any:
        sent.append(data)
        return SimpleNamespace(id=f"part-{len(sent)}")

    uploads = SimpleNamespace(
        create=lambda **asked: SimpleNamespace(id="upload-1"),
        parts=SimpleNamespace(create=part),
        complete=lambda upload, **asked: SimpleNamespace(file=SimpleNamespace(id="file-1")),
    )
    client: Any = SimpleNamespace(uploads=uploads)
    client.with_options = lambda **asked: client
    assert jobs._file(client, str(path)) == "file-1"
    assert [len(piece) for piece in sent] == [10, 10, 5]
    assert jobs._file(client, "file-2") == "file-2"
