"""Our own API on files: what is wrong, what will be trained, repaired and split versions, formats and their samples."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.control.datasets import service
from luthier.formats.base import known
from luthier.testing import jsonl, toy_rows
from tests.unit.api.conftest import Api

P = "/api/platform"
FAULTY = jsonl(toy_rows(2)) + b'{"messages": [{"role": "human", "content": "Hi"},]}\n' + b'{"messages": []}\n' * 2


def put(api: Api, content: bytes, *, until: tuple[str, ...] = ("processed", "error"), **form: str) -> str:
    """A file of Ada's that has been read."""
    sent = {"files": {"file": ("rows.jsonl", content)}, "data": form}
    file = api.call("POST", f"{P}/files", api.ada, **sent)
    assert file.status_code == 200, file.text
    if until:
        api.until(f"{P}/files/{file.json()['id']}", api.ada, *until)
    return file.json()["id"]


def get(api: Api, path: str, **asked: Any) -> dict[str, Any]:
    answer = api.call("GET", f"{P}{path}", api.ada, params=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture(scope="module")
def good(api: Api) -> str:
    return put(api, jsonl(toy_rows(12)))


@pytest.fixture(scope="module")
def faulty(api: Api) -> str:
    return put(api, FAULTY)


def test_a_report_lists_every_problem_with_its_place_and_what_to_do(api: Api, faulty: str) -> None:
    told = get(api, f"/files/{faulty}/report")
    assert (told["status"], told["format"], told["kind"], told["rows"]) == ("error", "messages", "chat", 5)
    assert told["counts"]["role_word"] == told["counts"]["trailing_comma"] == 1
    problem = next(one for one in told["problems"] if one["code"] == "role_word")
    assert {"line", "column", "row", "message_index", "field", "code", "found", "expected", "fix", "text"} == set(
        problem
    )
    assert (problem["line"], problem["row"], problem["message_index"]) == (3, 3, 0)
    assert problem["field"] == "messages[0].role"
    assert problem["text"]["en"].startswith("line 3, column ")
    assert problem["text"]["zh"].startswith("第 3 行")
    assert problem["fix"]
    assert sum(told["counts"].values()) == len(told["problems"])
    assert told["status_details"].startswith(told["problems"][0]["text"]["en"])
    assert told["tokens"] is None


def test_a_report_with_a_model_says_how_long_rows_are_and_which_are_dropped(api: Api) -> None:
    rows = toy_rows(3)
    rows[1]["messages"][1]["content"] = "x" * 100
    file = put(api, jsonl(rows))
    told = get(api, f"/files/{file}/report", model="toy", objective="sft", max_length=60)["tokens"]
    assert (told["rows"], told["trained_rows"], told["dropped_rows"]) == (3, 2, 1)
    assert (told["dropped_counts"], told["overlength"]) == ({"too_long": 1}, "drop")
    [dropped] = told["dropped"]
    assert (dropped["row"], dropped["line"], dropped["reason"]) == (2, 2, "too_long")
    shown = [get(api, f"/files/{file}/rows/{row}", model="toy", max_length=60) for row in (1, 2, 3)]
    assert told["billed_tokens"] == sum(one["billed_tokens"] for one in shown)
    assert told["trained_tokens"] == sum(one["trained_tokens"] for one in shown)
    assert dropped["tokens"] == len(shown[1]["tokens"]) == told["statistics"]["percentiles"]["max"]
    assert shown[1]["marks"] == ["too_long"]
    cut = get(api, f"/files/{file}/report", model="toy", max_length=60, overlength="truncate")["tokens"]
    assert (cut["trained_rows"], cut["truncated_rows"], cut["billed_tokens"]) == (3, 1, told["billed_tokens"] + 60)


def test_without_a_limit_the_report_takes_that_of_a_job(api: Api) -> None:
    rows = [
        *toy_rows(11),
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "x" * 600}]},
    ]
    file = put(api, jsonl(rows))
    told = get(api, f"/files/{file}/report", model="toy")["tokens"]
    assert (told["max_length"], told["trained_rows"], told["dropped_rows"]) == (512, 11, 1)


def test_a_large_file_is_counted_meanwhile(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_COUNTED_AT_ONCE", 10)
    file = put(api, jsonl(toy_rows(20, seed=5)))
    seen = []
    while not seen or seen[-1] == "counting":
        told = get(api, f"/files/{file}/report", model="toy")["tokens"]
        seen.append(told["status"])
    assert seen[-1] == "counted"
    assert told["trained_rows"] == 20


def test_a_row_is_shown_as_it_will_be_trained(api: Api, good: str) -> None:
    said = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "你🙂"}]}
    file = put(api, jsonl([said]))
    shown = get(api, f"/files/{file}/rows/1", model="toy")
    assert shown["text"] == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n你🙂<|im_end|>\n"
    assert "".join(token["text"] for token in shown["tokens"]) == shown["text"]
    assert "".join(token["text"] for token in shown["tokens"] if token["trained"]) == "你🙂<|im_end|>"
    assert {"id", "text", "trained"} == set(shown["tokens"][0])
    assert shown["billed_tokens"] == len(shown["tokens"])
    assert (shown["row"], shown["line"], shown["format"], shown["marks"]) == (1, 1, "messages", [])


def test_a_repair_gives_a_new_file_and_says_what_changed(api: Api, faulty: str) -> None:
    made = api.call("POST", f"{P}/files/{faulty}/repair", api.ada).json()
    assert (made["parent"], made["operation"]["name"]) == (faulty, "repair")
    assert made["changes"]["counts"] == {"role_word": 1, "trailing_comma": 1}
    assert (made["changes"]["rows_changed"], made["changes"]["rows_left"]) == (1, 3)
    assert [one["row"] for one in made["changes"]["rows"]] == [3]
    told = api.until(f"{P}/files/{made['id']}", api.ada, "error")
    assert told["rows"] == 5
    assert made["id"] in [one["id"] for one in get(api, f"/files/{faulty}")["versions"]]
    content = api.call("GET", f"/v1/files/{made['id']}/content", api.ada).content
    assert content.splitlines()[:2] == FAULTY.splitlines()[:2]
    assert api.call("GET", f"/v1/files/{faulty}/content", api.ada).content == FAULTY


def test_a_split_gives_two_files_and_tells_its_seed(api: Api, good: str) -> None:
    told = api.call("POST", f"{P}/files/{good}/split", api.ada).json()
    assert (told["division"]["training"], told["division"]["validation"]) == (10, 2)
    again = api.call("POST", f"{P}/files/{good}/split", api.ada, json={"seed": told["options"]["seed"]}).json()
    assert [again[name]["sha256"] for name in ("training", "validation")] == [
        told[name]["sha256"] for name in ("training", "validation")
    ]
    assert told["training"]["parent"] == good


def test_every_format_is_listed_with_a_sample_that_is_fit(api: Api) -> None:
    listed = get(api, "/formats")["data"]
    assert [one["name"] for one in listed] == list(known())
    for one in listed:
        answer = api.call("GET", one["sample"], api.ada)
        assert answer.status_code == 200
        assert one["file"] in answer.headers["content-disposition"]
        assert answer.content == known()[one["name"]].sample()
        if one["name"] in ("messages", "function_calling", "chosen_rejected", "preferred_output", "text"):
            read = get(api, f"/files/{put(api, answer.content, category=one['name'])}")
            assert (read["status"], read["format"]) == ("processed", one["name"]), read


def test_a_file_of_another_category_names_what_it_is(api: Api) -> None:
    told = get(api, f"/files/{put(api, jsonl(toy_rows(3)), category='chosen_rejected')}/report")
    assert (told["status"], told["counts"]) == ("error", {"category_mismatch": 1})
    assert "messages" in told["status_details"] and "chosen_rejected" in told["status_details"]


def form(**fields: str) -> dict[str, Any]:
    return {"files": {"file": ("x", b"{}")}, "data": fields}


WRONG: dict[str, tuple[str, str, dict[str, Any], int, str]] = {
    "row 0": ("GET", "/files/{good}/rows/0?model=toy", {}, 400, "row: must be 1 or more, got 0"),
    "row 13": (
        "GET",
        "/files/{good}/rows/13?model=toy",
        {},
        400,
        "must be at most 12, the number of rows of 'rows.jsonl', got 13",
    ),
    "no row": ("GET", "/files/{good}/rows/first?model=toy", {}, 400, "row: "),
    "no model": ("GET", "/files/{good}/rows/1", {}, 400, "model: "),
    "unknown model": ("GET", "/files/{good}/rows/1?model=gpt-4o", {}, 404, "no model 'gpt-4o'"),
    "another's model": ("GET", "/files/{good}/rows/1?model={theirs}", {}, 404, "no model"),
    "report by another's model": ("GET", "/files/{good}/report?model={theirs}", {}, 404, "no model"),
    "unknown file": ("GET", "/files/file-x/rows/1?model=toy", {}, 404, "There is no file 'file-x'"),
    "report of an unknown file": ("GET", "/files/file-x/report", {}, 404, "There is no file 'file-x'"),
    "repair of an unknown file": ("POST", "/files/file-x/repair", {}, 404, "There is no file 'file-x'"),
    "another objective": (
        "GET",
        "/files/{good}/report?model=toy&objective=dpo",
        {},
        400,
        "objective: must be sft for a file of chat rows, got dpo",
    ),
    "no objective": ("GET", "/files/{good}/report?model=toy&objective=ppo", {}, 400, "objective: "),
    "a limit of 0": ("GET", "/files/{good}/report?model=toy&max_length=0", {}, 400, "max_length: "),
    "a row's limit of 0": ("GET", "/files/{good}/rows/1?model=toy&max_length=0", {}, 400, "max_length: "),
    "a limit beyond the model": (
        "GET",
        "/files/{good}/report?model=toy&max_length=513",
        {},
        400,
        "at most 512, the context of toy",
    ),
    "no policy": ("GET", "/files/{good}/report?model=toy&overlength=squeeze", {}, 400, "overlength: "),
    "a sound file repaired": (
        "POST",
        "/files/{good}/repair",
        {},
        400,
        "nothing in 'rows.jsonl' that the repair could do",
    ),
    "a faulty file split": ("POST", "/files/{faulty}/split", {}, 400, "cannot be split, it has problems: line 3"),
    "a ratio of 1": ("POST", "/files/{good}/split", {"json": {"ratio": 1}}, 400, "ratio: "),
    "a ratio of too little": (
        "POST",
        "/files/{good}/split",
        {"json": {"ratio": 0.001}},
        400,
        "would leave one of the files empty",
    ),
    "an unknown option": (
        "POST",
        "/files/{good}/split",
        {"json": {"share": 0.2}},
        400,
        "share: is not a field that is known",
    ),
    "an unknown format": ("GET", "/formats/csv/sample", {}, 404, "There is no format 'csv'; known: chosen_rejected"),
    "an unknown category": (
        "POST",
        "/files",
        form(category="csv"),
        400,
        "category: must be one of",
    ),
    "an unknown purpose": (
        "POST",
        "/files",
        form(purpose="batch"),
        400,
        "purpose: must be 'fine-tune'",
    ),
    "nothing there": ("GET", "/nothing", {}, 404, "There is nothing at GET /api/platform/nothing"),
    "a wrong verb": ("DELETE", "/formats", {}, 405, "does not take DELETE"),
}


def test_a_file_with_problems_is_checked_again_and_a_good_one_is_not(api: Api, good: str) -> None:
    file_id = put(api, FAULTY)
    before = get(api, f"/files/{file_id}/report")
    asked = api.call("POST", f"{P}/files/{file_id}/check", api.ada)
    assert (asked.status_code, asked.json()["status"], asked.json()["rows"]) == (200, "uploaded", None)
    api.until(f"{P}/files/{file_id}", api.ada, "error")
    assert get(api, f"/files/{file_id}/report") == before
    refused = api.call("POST", f"{P}/files/{good}/check", api.ada)
    assert refused.status_code == 400
    assert refused.json()["message"] == "The file 'rows.jsonl' was checked and has no problem."


@pytest.mark.parametrize("case", WRONG)
def test_what_is_asked_wrongly_is_told_in_words(api: Api, good: str, faulty: str, case: str) -> None:
    method, path, sent, status, said = WRONG[case]
    path = path.format(good=good, faulty=faulty, theirs=api.bobs["name"])
    found, error = api.refused(method, f"{P}{path}", api.ada, **sent)
    assert found == status, error
    assert said in error["message"], error
    if "pydantic" in error["message"] or "NoneType" in error["message"]:
        raise AssertionError(error)


def test_a_file_that_was_not_checked_yet_says_so(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(api.parts.inspector), "due", lambda self: [service.FileRow.status == "never"])
    file = put(api, jsonl(toy_rows(3)), until=())
    told = get(api, f"/files/{file}/report", model="toy")
    assert (told["status"], told["status_details"], told["rows"], told["tokens"]) == ("uploaded", None, None, None)
    for method, path in (("GET", "rows/1?model=toy"), ("POST", "repair"), ("POST", "split")):
        status, error = api.refused(method, f"{P}/files/{file}/{path}", api.ada)
        assert (status, error["message"]) == (400, "The file 'rows.jsonl' has not been checked yet.")
        assert error["hint"] == "Ask again in a moment."
    monkeypatch.undo()
    assert api.until(f"{P}/files/{file}", api.ada, "processed")["rows"] == 3


def test_a_file_without_any_row_says_what_it_is(api: Api) -> None:
    file = put(api, b"a,b\n1,2\n")
    status, error = api.refused("GET", f"{P}/files/{file}/rows/1?model=toy", api.ada)
    assert (status, "no rows that can be read: line 1" in error["message"]) == (400, True)
    assert get(api, f"/files/{file}/report", model="toy")["tokens"] is None


# As the OpenAI dialect tells of the same files


def test_the_openai_file_has_the_first_problem_and_the_count_in_one_line(api: Api, faulty: str) -> None:
    told = api.call("GET", f"/v1/files/{faulty}", api.ada).json()
    report = get(api, f"/files/{faulty}/report")
    assert told["status"] == "error"
    assert told["status_details"] == report["status_details"]
    assert "\n" not in told["status_details"]
    assert told["status_details"].endswith(f"({len(report['problems']) - 1} more)")
    sent = {"model": "toy", "training_file": faulty}
    status, error = api.refused("POST", "/v1/fine_tuning/jobs", api.ada, json=sent)
    assert (status, told["status_details"] in error["message"]) == (400, True)


def test_ten_rows_are_asked_for_when_a_job_is_made_not_at_upload(api: Api) -> None:
    file = put(api, jsonl(toy_rows(9)))
    assert api.call("GET", f"/v1/files/{file}", api.ada).json()["status"] == "processed"
    sent = {"model": "toy", "training_file": file}
    status, error = api.refused("POST", "/v1/fine_tuning/jobs", api.ada, json=sent)
    assert (status, "has 9 rows; at least 10 are needed" in error["message"]) == (400, True)


def test_a_job_is_taken_though_its_file_is_still_being_checked(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(api.parts.inspector), "due", lambda self: [service.FileRow.status == "never"])
    monkeypatch.setattr(api.parts.services.jobs, "patience_seconds", 0.2)
    file = api.upload(api.ada, jsonl(toy_rows(12)))
    sent = {"model": "toy", "training_file": file}
    job = api.call("POST", "/v1/fine_tuning/jobs", api.ada, json=sent).json()
    assert (job["status"], job["training_file"]) == ("validating_files", file)
    assert api.call("POST", f"/v1/fine_tuning/jobs/{job['id']}/cancel", api.ada).json()["status"] == "cancelled"
