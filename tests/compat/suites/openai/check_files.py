"""Files and uploads."""

from __future__ import annotations

import hashlib

import openai
import pytest
from openai import OpenAI


def test_a_file_is_uploaded_read_listed_given_back_and_deleted(client: OpenAI, data) -> None:
    content = (data / "rows.jsonl").read_bytes()
    file = client.files.create(file=("数据.jsonl", content), purpose="fine-tune")
    assert (file.filename, file.bytes, file.purpose) == ("数据.jsonl", len(content), "fine-tune")
    assert client.files.wait_for_processing(file.id, poll_interval=0.1).status == "processed"
    assert client.files.retrieve(file.id).status == "processed"
    assert file.id in [one.id for one in client.files.list(purpose="fine-tune")]
    assert client.files.content(file.id).read() == content
    deleted = client.files.delete(file.id)
    assert (deleted.id, deleted.object, deleted.deleted) == (file.id, "file", True)
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_raw_bytes_have_a_name_too(client: OpenAI, data) -> None:
    file = client.files.create(file=(data / "rows.jsonl").read_bytes(), purpose="fine-tune")
    assert file.filename == "upload"


def test_lists_go_to_their_end_in_both_orders(client: OpenAI, data) -> None:
    content = (data / "rows.jsonl").read_bytes()
    made = [client.files.create(file=(f"{n}.jsonl", content), purpose="fine-tune").id for n in range(5)]

    def listed(**more) -> list[str]:
        return [file.id for file in client.files.list(limit=2, **more)]

    newest = listed()
    assert len(newest) == len(set(newest)) >= 5
    assert [one for one in newest if one in made] == made[::-1]
    assert [one for one in listed(order="asc") if one in made] == made


def test_a_broken_file_says_which_line_is_wrong_and_starts_no_job(client: OpenAI, data) -> None:
    rows = (data / "rows.jsonl").read_bytes().splitlines()
    rows[6] = b'{"messages": [{"role": "user", "content": "hi"}]}'
    file = client.files.create(file=("broken.jsonl", b"\n".join(rows)), purpose="fine-tune")
    file = client.files.wait_for_processing(file.id, poll_interval=0.1)
    assert file.status == "error"
    told = (
        "line 7, column 14, row 7: There is no assistant turn, so there is nothing to learn. Add the expected output."
    )
    assert file.status_details == told
    with pytest.raises(openai.BadRequestError) as refused:
        client.fine_tuning.jobs.create(model="toy", training_file=file.id)
    assert (refused.value.code, refused.value.param) == ("invalid_training_file", "training_file")
    assert told in refused.value.message


def test_a_file_whose_name_says_that_it_holds_no_rows_is_refused_at_once(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"ends with \.txt; files of rows end with \.jsonl or \.json"):
        client.files.create(file=("notes.txt", b"just words\n"), purpose="fine-tune")


def test_a_file_that_expires_says_when(client: OpenAI, data) -> None:
    rows, hour = data / "rows.jsonl", {"anchor": "created_at", "seconds": 3600}
    file = client.files.create(file=rows, purpose="fine-tune", expires_after=hour)
    assert file.expires_at == file.created_at + 3600
    assert client.files.retrieve(file.id).expires_at == file.expires_at
    assert [one.expires_at for one in client.files.list() if one.id == file.id] == [file.expires_at]
    assert client.files.create(file=rows, purpose="fine-tune").expires_at is None


@pytest.mark.parametrize(
    ("wrong", "named"), [({"seconds": 60}, "seconds"), ({"seconds": 2592001}, "seconds"), ({"anchor": "x"}, "anchor")]
)
def test_a_life_that_no_file_can_have_is_refused_by_the_field(client: OpenAI, data, wrong, named: str) -> None:
    asked = {"anchor": "created_at", "seconds": 3600} | wrong
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.create(file=data / "rows.jsonl", purpose="fine-tune", expires_after=asked)
    assert refused.value.param == f"expires_after[{named}]"
    with pytest.raises(openai.BadRequestError) as refused:
        client.uploads.create(
            bytes=1, filename="a.jsonl", mime_type="application/jsonl", purpose="fine-tune", expires_after=asked
        )
    assert refused.value.param == f"expires_after.{named}"


def test_the_file_of_an_upload_expires_from_when_it_was_made(client: OpenAI, data) -> None:
    content = (data / "rows.jsonl").read_bytes()
    upload = client.uploads.create(
        bytes=len(content),
        filename="a.jsonl",
        mime_type="application/jsonl",
        purpose="fine-tune",
        expires_after={"anchor": "created_at", "seconds": 7200},
    )
    part = client.uploads.parts.create(upload.id, data=content)
    file = client.uploads.complete(upload.id, part_ids=[part.id]).file
    assert file is not None and file.expires_at == file.created_at + 7200


def test_an_upload_in_parts_is_a_file_of_the_parts_in_their_order(client: OpenAI, data) -> None:
    content = (data / "rows.jsonl").read_bytes()
    upload = client.uploads.create(
        bytes=len(content), filename="parts.jsonl", mime_type="application/jsonl", purpose="fine-tune"
    )
    assert (upload.status, upload.bytes) == ("pending", len(content))
    second = client.uploads.parts.create(upload.id, data=content[100:])
    first = client.uploads.parts.create(upload.id, data=content[:100])
    assert (first.object, first.upload_id) == ("upload.part", upload.id)
    md5 = hashlib.md5(content).hexdigest()
    done = client.uploads.complete(upload.id, part_ids=[first.id, second.id], md5=md5)
    assert done.status == "completed" and done.file is not None
    assert client.files.content(done.file.id).read() == content


def test_the_clients_own_chunked_upload_makes_a_file(client: OpenAI, data) -> None:
    upload = client.uploads.upload_file_chunked(
        file=data / "rows.jsonl", mime_type="application/jsonl", purpose="fine-tune", part_size=500
    )
    assert upload.file is not None
    assert client.files.wait_for_processing(upload.file.id, poll_interval=0.1).status == "processed"


def test_an_upload_is_cancelled(client: OpenAI) -> None:
    upload = client.uploads.create(bytes=10, filename="a.jsonl", mime_type="application/jsonl", purpose="fine-tune")
    assert client.uploads.cancel(upload.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError, match="is cancelled"):
        client.uploads.complete(upload.id, part_ids=[])
