"""dashscope.Files."""

from __future__ import annotations

from pathlib import Path

import dashscope
import pytest
from dashscope.common.error import InvalidFileFormat


def test_a_file_is_uploaded_described_and_deleted(tmp_path: Path, data: Path) -> None:
    path = tmp_path / "训练.jsonl"
    path.write_bytes((data / "rows.jsonl").read_bytes())
    sent = dashscope.Files.upload(str(path), purpose="fine-tune", description="语气")
    assert (sent.status_code, sent.code, sent.output["failed_uploads"]) == (200, None, [])
    (made,) = sent.output["uploaded_files"]
    assert made["name"] == "训练.jsonl"
    file = dashscope.Files.get(made["file_id"]).output
    assert (file["name"], file["description"], file["size"]) == ("训练.jsonl", "语气", path.stat().st_size)
    assert len(file["md5"]) == 32 and file["gmt_create"]
    assert dashscope.Files.delete(made["file_id"]).status_code == 200
    gone = dashscope.Files.get(made["file_id"])
    assert (gone.status_code, gone.code) == (404, "NotFound")
    assert made["file_id"] in gone.message and gone.request_id.startswith("req-")


def test_files_are_listed_to_the_end(rows: str, validation: str, all_pages) -> None:
    def page_of(page: int) -> tuple[list[str], int]:
        listed = dashscope.Files.list(page=page, page_size=2)
        assert listed.status_code == 200
        assert (listed.output["page_no"], listed.output["page_size"]) == (page, 2)
        return [file["file_id"] for file in listed.output["files"]], listed.output["total"]

    assert {rows, validation} <= set(all_pages(page_of))


def test_a_file_that_is_refused_says_why(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text('{"a": 1}\n')
    refused = dashscope.Files.upload(str(path))
    assert (refused.status_code, refused.code) == (400, "InvalidParameter")
    assert "ends with .txt" in refused.message


def test_the_client_checks_the_lines_before_they_are_sent(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("no JSON\n")
    with pytest.raises(InvalidFileFormat):
        dashscope.Files.upload(str(path))


def test_what_is_wrong_with_a_file_can_be_read(tmp_path: Path, waiting) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"messages": []}\n')
    file_id = dashscope.Files.upload(str(path)).output["uploaded_files"][0]["file_id"]

    def read():
        file = dashscope.Files.get(file_id).output
        return file if file["status"] != "uploaded" else None

    file = waiting(read)
    assert file["status"] == "error" and "line 1" in file["status_details"]
    refused = dashscope.FineTunes.call("toy", file_id, mode="efficient_sft")
    assert (refused.status_code, refused.code) == (400, "InvalidParameter")
    assert "line 1" in refused.message
