"""Files."""

from __future__ import annotations

import pytest


def test_a_file_is_uploaded_listed_given_back_and_deleted(client, core, data) -> None:
    content = (data / "rows.jsonl").read_bytes()
    file = client.files.create(file=("数据.jsonl", content), purpose="fine-tune")
    assert (file.filename, file.bytes, file.purpose) == ("数据.jsonl", len(content), "fine-tune")
    assert client.get(f"/files/{file.id}", cast_type=object)["id"] == file.id  # the client has no word for it
    assert file.id in [one.id for one in client.files.list(purpose="fine-tune", limit=100).data]
    assert client.files.content(file.id).content == content
    deleted = client.files.delete(file.id)
    assert (deleted.id, deleted.deleted, deleted.object) == (file.id, True, "file")
    with pytest.raises(core.APIStatusError) as gone:
        client.files.delete(file.id)
    assert gone.value.status_code == 404


def test_files_are_listed_to_their_end_in_both_orders(client, data) -> None:
    content = (data / "rows.jsonl").read_bytes()
    made = [client.files.create(file=(f"{n}.jsonl", content), purpose="fine-tune").id for n in range(3)]

    def listed(order: str) -> list[str]:
        found: list[str] = []
        more = {}
        while True:
            page = client.files.list(purpose="fine-tune", limit=2, order=order, **more)
            found += [file.id for file in page.data]
            if not page.has_more:
                return found
            more = {"after": found[-1]}

    for order, expected in (("desc", made[::-1]), ("asc", made)):
        found = listed(order)
        assert len(found) == len(set(found))
        assert [one for one in found if one in made] == expected


def test_a_purpose_that_is_not_offered_is_named(client, core, data) -> None:
    with pytest.raises(core.APIRequestFailedError, match="purpose"):
        client.files.create(file=(data / "rows.jsonl").open("rb"), purpose="retrieval")
