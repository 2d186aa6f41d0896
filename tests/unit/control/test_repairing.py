"""A repair removes what has one right answer, leaves the rest as it stands, and loses nothing."""

from __future__ import annotations

import io
import json
import random
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.control.datasets.inspection import inspect
from luthier.control.datasets.repairing import Changes, repair
from luthier.core.errors import FileNotFound, InvalidRequest
from luthier.images.archives import Archive
from luthier.records.problems import MEANINGS
from luthier.records.source import Given, LocalFile
from luthier.testing import jsonl, toy_rows
from tests.unit.control.conftest import ADA, BOB, House
from tests.unit.images.pictures import archive, picture

U, A = '{"role": "user", "content": "Hi"}', '{"role": "assistant", "content": "Yes"}'
GOOD = f'{{"messages": [{U}, {A}]}}'
CALL = '"tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]'
STRINGS = CALL.replace('{"a": 1}', '"{}"')
TOOLS = '"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]'

FAULTY: dict[str, str | bytes] = {
    "utf16": (GOOD + "\n").encode("utf-16"),
    "byte_order_mark": b"\xef\xbb\xbf" + GOOD.encode(),
    "json_array": f"[{GOOD},\n {GOOD}]",
    "several_lines": json.dumps(json.loads(GOOD), indent=2),
    "shares_line": f"{GOOD} {GOOD}",
    "comma_after_record": f"{GOOD},\n{GOOD}",
    "trailing_comma": f'{{"messages": [{U}, {A},],}}',
    "missing_comma": f'{{"messages": [{U} {A}]}}',
    "missing_colon": GOOD.replace('"messages":', '"messages"'),
    "single_quotes": GOOD.replace('"', "'"),
    "key_not_quoted": GOOD.replace('"messages"', "messages"),
    "python_literal": f'{{"messages": [{U}, {{"role": "assistant", "content": None, {STRINGS}}}], {TOOLS}}}',
    "comment": f'{{/* the first */ "messages": [{U}, {A}]}}',
    "quote_not_escaped": GOOD.replace("Yes", 'Say "yes" now'),
    "line_break_in_string": GOOD.replace("Yes", "Yes\nand no"),
    "control_character": GOOD.replace("Yes", "Yes\tand no"),
    "bad_escape": GOOD.replace("Yes", r"C:\windows"),
    "unclosed_string": GOOD.replace('"Yes"}', '"Yes}'),
    "unknown_field": GOOD[:-1] + ', "source": "web"}',
    "other_rows": '{"instruction": "Say hi", "input": "", "output": "Hi"}',
    "role_word": GOOD.replace('"user"', '"human"').replace('"assistant"', '"gpt"'),
    "arguments_object": f'{{"messages": [{U}, {{"role": "assistant", {CALL}}}], {TOOLS}}}',
}


def mend(content: bytes) -> tuple[bytes, Changes]:
    out = io.BytesIO()
    changes = repair(Given(content), out)
    return out.getvalue(), changes


def test_every_code_that_can_be_repaired_has_a_case_here() -> None:
    assert set(FAULTY) == {
        code for code, meaning in MEANINGS.items() if meaning.repairable and meaning.level == "error"
    }


@pytest.mark.parametrize("code", FAULTY)
def test_what_is_repaired_is_gone_and_nothing_else_is_wrong(code: str) -> None:
    content = FAULTY[code] if isinstance(FAULTY[code], bytes) else FAULTY[code].encode()  # type: ignore[union-attr]
    before = inspect(Given(content))
    assert code in before.counts
    assert before.repairable, before.counts
    repaired, changes = mend(content)
    after = inspect(Given(repaired))
    assert after.fit, (after.counts, repaired)
    assert after.rows == (before.rows or 1)
    assert changes.counts[code] >= 1
    assert changes.rows_left == 0
    with pytest.raises(InvalidRequest, match="nothing in this file"):
        mend(repaired)


def test_lines_without_a_fault_stay_as_they_are_byte_for_byte() -> None:
    good = [
        GOOD.encode(),
        b'  {"messages":[{"role":"user","content":"\\u4f60 1e5"},{"role":"assistant","content":"\xe4\xbd\xa0"}]}\t',
        GOOD.encode() + b"\r",
        b'{"messages": [{"content": "a", "role": "user"}, {"content": "b", "role": "assistant", "weight": 1}], "tag": "x"}',
    ]
    content = b"\n".join([good[0], b"", good[1], FAULTY["trailing_comma"].encode(), good[2], good[3]])  # type: ignore[union-attr]
    repaired, changes = mend(content)
    lines = repaired.split(b"\n")
    assert [lines[0], lines[1], lines[3], lines[4]] == good
    assert (changes.rows_changed, len(lines)) == (1, 6)


LEFT = {
    "no answer": '{"messages": [{"role": "human", "content": "Hi"}]}',
    "cut off": '{"messages": [{"role": "user", "content": "Hi"}',
    "a key twice": '{"messages": 1, "messages": 2}',
    "half a character": '{"messages": [{"role": "user", "content": "\\ud83d"},]}',
    "no object": "[1, 2,]",
    "no JSON": "hello there",
    "another field": '{"mesages": [], "extra": 1}',
    "a string": '"{}"',
    "two formats": '{"text": "a", "chosen": {"role": "assistant", "content": "b"}}',
}


@pytest.mark.parametrize("case", LEFT)
def test_what_only_a_person_can_put_right_is_left_and_counted(case: str) -> None:
    content = f"{GOOD}\n{FAULTY['comma_after_record'].splitlines()[0]}\n{LEFT[case]}\n{GOOD}\n"  # type: ignore[union-attr]
    repaired, changes = mend(content.encode())
    assert changes.rows_left == 1
    if case not in ("no answer",):  # of which the role word is put right
        assert LEFT[case].encode() in repaired
    after = inspect(Given(repaired))
    assert not after.fit
    assert after.rows == inspect(Given(content.encode())).rows


def test_bytes_that_are_no_characters_are_left() -> None:
    content = b'{"messages": [{"role": "user", "content": "\xff\xfe"},]}\n' + FAULTY["trailing_comma"].encode()  # type: ignore[union-attr]
    repaired, changes = mend(content)
    assert repaired.split(b"\n")[0] == content.split(b"\n")[0]
    assert (changes.rows_left, changes.rows_changed) == (1, 1)


def test_what_stands_behind_a_record_is_not_lost() -> None:
    content = f"{FAULTY['trailing_comma']}\n{GOOD} and more\n{GOOD},\n".encode()
    repaired, changes = mend(content)
    assert repaired.split(b"\n")[1] == f"{GOOD} and more".encode()
    assert changes.rows_left == 1
    marked, _ = mend(b"\xef\xbb\xbf" + f"{GOOD} and more\n".encode())
    assert marked == f"{GOOD} and more\n".encode()
    wide, _ = mend(f"{GOOD} and more\n".encode("utf-16-le"))
    assert wide == marked


def test_a_file_with_something_that_cannot_be_copied_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="put right by hand: line 1"):
        mend(f"[{GOOD}] and more\n".encode())
    huge = b'{"messages": "' + b"x" * (17 * 1024 * 1024) + b'"}\n'
    with pytest.raises(InvalidRequest, match="put right by hand: line 2"):
        mend(FAULTY["trailing_comma"].encode() + b"\n" + huge)  # type: ignore[union-attr]


def test_rows_of_several_formats_keep_what_is_theirs() -> None:
    pair = json.dumps(
        {"messages": [json.loads(U)], "chosen": json.loads(A), "rejected": {"role": "gpt", "content": "No"}}
    )
    repaired, changes = mend(f"{GOOD}\n{GOOD}\n{pair}\n".encode())
    row = json.loads(repaired.splitlines()[2])
    assert (row["chosen"], row["rejected"]) == (json.loads(A), {"role": "assistant", "content": "No"})
    assert changes.counts == {"role_word": 1}


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "id": 7},
            [("user", "a"), ("assistant", "b")],
        ),
        (
            {"instruction": "i", "input": "j", "output": "o", "history": [["x", "y"]], "system": "s", "tag": "t"},
            [("system", "s"), ("user", "x"), ("assistant", "y"), ("user", "i\nj"), ("assistant", "o")],
        ),
        ({"prompt": "p", "completion": "c"}, [("user", "p"), ("assistant", "c")]),
    ],
)
def test_rows_of_other_tools_become_ours(row: dict[str, Any], messages: list[tuple[str, str]]) -> None:
    repaired, changes = mend(jsonl([row] * 3))
    assert changes.counts == {"other_rows": 3}
    rows = [json.loads(line) for line in repaired.splitlines()]
    assert [(m["role"], m["content"]) for m in rows[0]["messages"]] == messages
    assert rows[0].get("tag") == row.get("tag")
    assert inspect(Given(repaired)).fit


def test_what_was_changed_is_shown() -> None:
    _, changes = mend(f"{GOOD}\n{FAULTY['role_word']}\n".encode())
    [shown] = changes.rows
    assert (shown["row"], shown["line"], shown["codes"]) == (2, 2, ["role_word"])
    assert (json.loads(shown["before"])["messages"][0]["role"], json.loads(shown["after"])) == (
        "human",
        json.loads(GOOD),
    )


PARTS = st.sampled_from(
    [
        GOOD,
        U,
        A,
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        '"',
        "'",
        "\\",
        "\n",
        " ",
        "None",
        "\\ud83d",
        "\ufeff",
        "\x00",
        "x",
        "// ",
    ]
) | st.sampled_from([one for one in FAULTY.values() if isinstance(one, str)])


@given(parts=st.lists(PARTS, max_size=8), junk=st.binary(max_size=6))
def test_a_repair_of_anything_ends_well_and_twice_changes_nothing(parts: list[str], junk: bytes) -> None:
    content = "\n".join(parts).encode() + junk
    try:
        repaired, changes = mend(content)
    except InvalidRequest:
        return
    json.dumps(vars(changes) | {"counts": dict(changes.counts)}).encode()
    before, after = inspect(Given(content)), inspect(Given(repaired))
    if before.repairable and "None" not in parts:  # alone it is no row, however it is written
        assert after.fit
    try:
        again, _ = mend(repaired)
    except InvalidRequest:
        return
    assert again == repaired


# Kept as a version


async def test_a_repaired_file_is_a_version_of_the_old_one_which_stays(house: House) -> None:
    datasets = house.parts.services.datasets
    content = f"{GOOD}\n{FAULTY['trailing_comma']}\n".encode()
    file = await house.upload(content=content)
    made, changes = await datasets.repair(ADA, file.id)
    assert (made.parent, made.status, made.filename) == (file.id, "uploaded", "rows.repaired.jsonl")
    assert made.operation == {
        "name": "repair",
        "counts": {"trailing_comma": changes["counts"]["trailing_comma"]},
        "rows_changed": 1,
        "output": "repaired",
    }
    await house.parts.inspector.once()
    read = await datasets.get(ADA, made.id)
    assert read.report is not None
    assert (read.status, read.report.rows) == ("processed", 2)
    assert b"".join([chunk async for chunk in await datasets.content(ADA, file.id)]) == content
    assert (await datasets.get(ADA, file.id)).sha256 == file.sha256 != read.sha256
    assert [one.id for one in await datasets.children(ADA, file.id)] == [made.id]
    with pytest.raises(FileNotFound):
        await datasets.repair(BOB, file.id)


@pytest.mark.parametrize(
    "content", [jsonl(toy_rows(3)), b'{"messages": []}\n', b"\x89PNG\r\n\x1a\n", b"", b"a,b\n1,2\n"]
)
async def test_where_nothing_can_be_repaired_no_version_is_made(house: House, content: bytes) -> None:
    file = await house.upload(content=content)
    with pytest.raises(InvalidRequest, match=r"nothing in 'rows\.jsonl' that the repair could do"):
        await house.parts.services.datasets.repair(ADA, file.id)
    assert await house.parts.services.datasets.children(ADA, file.id) == []
    assert len(house.parts.storage.list("files")) == 1


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Say it", "context": "In French.", "output": "Bonjour"},
        {"question": "Where?", "context": "In Lyon.", "answer": "There."},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "tools": "[{}]"},
        {"instruction": "x", "input": "", "output": "y", "history": [{"q": "a"}]},
        {"instruction": "x", "output": "y", "response": "z"},
        {"instruction": "x", "output": "y", "tag": 5},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": 0}]},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": ["s"]},
        {
            "prompt": "p",
            "chosen": [{"role": "user", "content": "a"}, json.loads(A)],
            "rejected": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        },
        {"instruction": None, "output": "x"},
        {"instruction": ["a", "b"], "output": "x"},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "train": False}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "system": "Be brief."},
    ],
)
def test_what_may_matter_is_never_removed_without_a_word(row: dict[str, Any]) -> None:
    out = io.BytesIO()
    line = json.dumps(row).encode()
    role_word = b'{"messages": [{"role": "human", "content": "a"}, {"role": "assistant", "content": "b"}]}'
    changes = repair(Given(line + b"\n" + role_word + b"\n"), out)
    assert out.getvalue().splitlines()[0] == line
    assert (changes.rows_changed, changes.rows_left) == (1, 1)


KEPT = {
    "a summary": ({"text": "doc", "summary": "IMPORTANT", "id": 1}, {"text": "doc", "summary": "IMPORTANT"}),
    "a system beside a pair": (
        {"messages": [json.loads(U)], "chosen": json.loads(A), "rejected": json.loads(A), "system": "s", "id": 1},
        {"messages": [json.loads(U)], "chosen": json.loads(A), "rejected": json.loads(A), "system": "s"},
    ),
    "a system beside two outputs": (
        {"input": {"messages": [{"role": "human", "content": "Hi"}]}, "system": "s"},
        {"input": {"messages": [json.loads(U)]}, "system": "s"},
    ),
    "a prompt under a name with a slip": (
        {"inpt": {"messages": [json.loads(U)]}, "preferred_output": [json.loads(A)], "id": 1},
        {"inpt": {"messages": [json.loads(U)]}, "preferred_output": [json.loads(A)]},
    ),
    "a role that nobody knows": (
        {"messages": [{"role": "Narrator", "content": "a"}, json.loads(A)], "id": 1},
        {"messages": [{"role": "Narrator", "content": "a"}, json.loads(A)]},
    ),
}


@pytest.mark.parametrize("case", KEPT)
def test_a_repair_keeps_what_may_matter_and_the_row_is_not_called_clean(case: str) -> None:
    row, kept = KEPT[case]
    repaired, changes = mend(jsonl([row]))
    assert json.loads(repaired) == kept
    assert (changes.rows_changed, changes.rows_left) == (1, 1)
    assert not inspect(Given(repaired)).fit


@pytest.mark.parametrize(
    "text",
    [
        '{"instruction: "Q0Z", "input": "", "output": "oQ0Z"}',
        '{"instruction"/*: "Q0Z", "input": "", "output": "oQ0Z"}',
        '{"prompt": "a", "completion": ""}',
        '{"prompt": "a", "chosen": "b", "rejected": "b", "tag": null}',
    ],
)
def test_a_row_of_another_tool_that_would_be_wrong_as_ours_is_not_called_repairable(text: str) -> None:
    content = f"{text}\n{FAULTY['trailing_comma']}\n".encode()
    report = inspect(Given(content))
    assert not report.repairable and "other_rows" not in report.counts
    repaired, changes = mend(content)
    assert repaired.splitlines()[0] == text.encode()
    assert (changes.rows_changed, changes.rows_left) == (1, 1)


def test_of_a_file_in_utf16_nothing_is_promised_but_that_it_is_checked_again() -> None:
    report = inspect(Given('{"messages": []}\n'.encode("utf-16")))
    assert "nothing else of it was looked at" in report.problems[0].text.en
    assert "checked again" in report.problems[0].text.en and "重新检查" in report.problems[0].text.zh


@pytest.mark.parametrize("between", ["", " ", ","])
def test_records_on_several_lines_that_follow_at_once_become_a_line_each(between: str) -> None:
    rows = list(toy_rows(3))
    content = between.join(json.dumps(row, indent=2) for row in rows).encode()
    assert inspect(Given(content)).counts == {"several_lines": 3, "shares_line": 2}
    assert [json.loads(line) for line in mend(content)[0].splitlines()] == rows


def test_what_is_empty_or_only_names_the_row_is_left_out() -> None:
    out = io.BytesIO()
    row = {
        "id": 7,
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "refusal": None}],
    }
    repair(Given(json.dumps(row).encode()), out)
    assert json.loads(out.getvalue()) == {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    }


# Archives


def pictured(role: str, image: str) -> dict[str, Any]:
    asked = {"role": role, "content": [{"text": "What is it?"}, {"image": image}]}
    return {"messages": [asked, {"role": "assistant", "content": [{"text": "A cat."}]}]}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_is_repaired_beside_its_images_as_they_are(method: int) -> None:
    images = {f"{n}.png": picture("PNG", width=10 + n) for n in range(5)} | {"图.jpg": picture("JPEG")}
    rows = [pictured("human", name) for name in images] + [pictured("user", "图.jpg")]
    content = archive({f"x/{name}": data for name, data in {"rows.jsonl": jsonl(rows), **images}.items()}, method)
    before = inspect(Given(content))
    assert before.repairable and before.counts == {"role_word": 6}
    repaired, changes = mend(content)
    assert (changes.rows_changed, changes.rows_left, changes.counts) == (6, 0, {"role_word": 6})
    after = inspect(Given(repaired))
    assert after.fit and (after.rows, after.images) == (7, 7)
    assert changes.images == 7
    made = Archive(io.BytesIO(repaired))
    assert made.rows_name == "rows.jsonl" and list(made.images) == list(images)
    assert all(made.image(name) == data for name, data in images.items())
    assert mend(content)[0] == repaired
    with zipfile.ZipFile(io.BytesIO(repaired)) as opened:
        assert opened.testzip() is None and {info.compress_type for info in opened.infolist()} == {method}
    with pytest.raises(InvalidRequest, match="nothing in this file"):
        mend(repaired)


def test_an_image_is_copied_without_being_unpacked_even_where_it_is_damaged() -> None:
    content = archive({"rows.jsonl": jsonl([pictured("human", "a.jpg")]), "a.jpg": picture()}, zipfile.ZIP_STORED)
    place = content.index(picture()) + 40
    content = content[:place] + b"?" + content[place + 1 :]
    repaired, _ = mend(content)
    assert content[place - 40 : place + 100] in repaired
    assert inspect(Given(repaired)).counts == {"image_unreadable": 1}


def test_the_changes_say_of_how_many_images_nothing_was_seen() -> None:
    rows = [pictured("human", "a.jpg"), pictured("user", "gone.jpg"), {"messages": []}]
    _, changes = mend(archive({"rows.jsonl": jsonl(rows), "a.jpg": picture()}))
    assert (changes.rows_changed, changes.rows_left, changes.images) == (1, 1, 2)


def test_memory_stays_flat_while_an_archive_is_repaired(tmp_path: Path) -> None:
    noise = random.Random(1).randbytes(9_000_000)
    path = tmp_path / "rows.zip"
    rows = jsonl([pictured("human", "0.jpg")] * 300)
    path.write_bytes(archive({"rows.jsonl": rows, **{f"{n}.jpg": noise for n in range(4)}}, zipfile.ZIP_STORED))
    with (tmp_path / "made.zip").open("wb") as out:
        tracemalloc.start()
        changes = repair(LocalFile(path), out)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert changes.rows_changed == 300
    assert peak < 5_000_000


async def test_a_repaired_archive_is_a_version_that_is_fit(house: House) -> None:
    datasets = house.parts.services.datasets
    content = archive({"rows.jsonl": jsonl([pictured("human", "a.jpg")]), "a.jpg": picture()})
    file = await house.upload(content=content)
    made, changes = await datasets.repair(ADA, file.id)
    assert changes["counts"] == {"role_word": 1}
    await house.parts.inspector.once()
    assert (await datasets.get(ADA, made.id)).status == "processed"
