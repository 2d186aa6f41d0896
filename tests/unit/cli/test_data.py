"""luthier data: a file is looked at on this machine, without a server, a key or the engines."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from rich.console import Console

from luthier.cli import data as commands
from luthier.cli import main
from luthier.formats.base import known
from luthier.records.source import LocalFile
from luthier.testing import jsonl, toy_rows, toy_tokenizer

FAULTY = (
    jsonl(toy_rows(2))
    + b'{"messages": [{"role": "human", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]}\n'
)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    toy_tokenizer(folder)
    return folder


def luthier(folder: Path, *said: str, **env: str) -> tuple[int, str, str]:
    """What `luthier data ...` in that folder ends with and prints."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "LUTHIER_"))}
    clean |= {"LUTHIER_SERVER__DATA": str(folder / "none"), "COLUMNS": "200"} | env
    out, err, code, mask = io.StringIO(), io.StringIO(), 0, os.umask(0)
    with (
        patch.dict(os.environ, clean, clear=True),
        patch.object(sys, "argv", ["luthier", "data", *said]),
        chdir(folder),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0
        finally:
            os.umask(mask)
    return code, out.getvalue(), err.getvalue()


def told(folder: Path, *said: str) -> Any:
    code, out, err = luthier(folder, *said, "--json")
    assert (code, err) == (0, ""), err
    return json.loads(out)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "good.jsonl").write_bytes(jsonl(toy_rows(12)))
    (tmp_path / "bad.jsonl").write_bytes(FAULTY)
    return tmp_path


def test_check_ends_with_0_for_a_sound_file_and_with_1_for_another(here: Path) -> None:
    code, out, err = luthier(here, "check", "good.jsonl")
    assert (code, err) == (0, "")
    assert "good.jsonl: 12 rows of messages, fit for training" in out
    code, out, _ = luthier(here, "check", "bad.jsonl")
    assert code == 1
    assert "role_word: line 3, column " in out
    assert "bad.jsonl: 3 rows, 1 problem\n" in out
    assert "luthier data repair bad.jsonl" in out
    code, out, _ = luthier(here, "check", "bad.jsonl", "--json")
    report = json.loads(out)
    assert (code, report["fit"], report["counts"]["role_word"]) == (1, False, 1)
    code, out, _ = luthier(here, "check", "good.jsonl", "--category", "text")
    assert (code, "category_mismatch" in out) == (1, True)


@pytest.mark.parametrize(
    ("said", "env", "word"),
    [
        ((), {}, "line 3"),
        ((), {"LANG": "zh_CN.UTF-8"}, "第 3 行"),
        ((), {"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}, "line 3"),
        (("--language", "zh"), {}, "第 3 行"),
        (("--language", "en"), {"LANG": "zh_CN.UTF-8"}, "line 3"),
    ],
)
def test_problems_are_told_in_the_language_of_the_terminal(here: Path, said: tuple, env: dict, word: str) -> None:
    assert word in luthier(here, "check", "bad.jsonl", *said, **env)[1]


def test_one_of_a_thing_is_told_as_one(here: Path, toy: Path) -> None:
    (here / "one.jsonl").write_bytes(FAULTY.splitlines()[-1])
    out = luthier(here, "check", "one.jsonl")[1]
    assert "one.jsonl: 1 row, 1 problem\n" in out
    assert "The file has 1 row; at least 1,000 good ones are advised." in out
    out = luthier(here, "repair", "one.jsonl")[1]
    assert "one.repaired.jsonl: 1 row changed (role_word 1); 0 rows still have a problem" in out
    assert "one.repaired.jsonl: 1 row of messages, fit" in luthier(here, "check", "one.repaired.jsonl")[1]
    _, _, err = luthier(here, "stats", "one.repaired.jsonl", "--model", str(toy), "--max-length", "8")
    assert "of 1 row none is left to train" in err


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (("check", "good.jsonl"), ("good.jsonl：12 条 messages 数据，可以训练",)),
        (("check", "bad.jsonl", "--most", "1"), ("bad.jsonl：3 条数据，1 个问题", "已发现的问题都可以修复：luthier")),
        (("repair", "bad.jsonl"), ("第 3 条数据，第 3 行：role_word", "修改了 1 条数据（role_word 1）；仍有问题的数据：0 条")),
        (("split", "good.jsonl", "--ratio", "0.25"), ("good.training.jsonl：9 条数据", "good.validation.jsonl：3 条数据")),
        (("split", "bad.jsonl"), ("FILE: 第 3 行", "请运行 `luthier data check`。")),
        (("show", "good.jsonl", "--model", "TOY"), ("第 1 条数据，第 1 行：", " 个 token，学习 ")),
        (("show", "good.jsonl", "--model", "TOY", "--max-length", "8"), ("，不训练：过长\n",)),
        (("show", "good.jsonl", "--model", "TOY", "--max-length", "8", "--overlength", "fail"), ("任务会被拒绝：这条",)),
        (("show", "bad.jsonl", "--model", "TOY", "--row", "3"), ("这里该角色叫",)),
        (("stats", "good.jsonl", "--model", "TOY"), ("12 条中的 12 条，不超过 2,048 个 token", "格式 ")),
        (("stats", "good.jsonl", "--model", "TOY", "--max-length", "8"), ("不训练：过长", "12 条数据中没有可以训练的。")),
        (("stats", "bad.jsonl", "--model", "TOY"), ("FILE: 第 3 行",)),
    ],
)  # fmt: skip
def test_every_summary_is_told_in_chinese_where_it_is_asked_for(
    here: Path, toy: Path, said: tuple, told: tuple
) -> None:
    _, out, err = luthier(here, *(str(toy) if one == "TOY" else one for one in said), "--language", "zh")
    assert all(one in out + err for one in told), out + err


@pytest.mark.parametrize(
    ("said", "code", "word"),
    [
        (("check", "none.jsonl"), 2, "does not exist"),
        (("check", "."), 2, "is a directory"),
        (("check", "good.jsonl", "--category", "csv"), 1, "--category: must be one of chosen_rejected"),
        (("check", "good.jsonl", "--language", "fr"), 1, "--language: must be en or zh, got 'fr'"),
        (("show", "good.jsonl"), 1, "is not installed in"),
        (("stats", "good.jsonl", "--model", "/nowhere"), 1, "'/nowhere' is not installed in"),
        (("show", "good.jsonl", "--row", "0"), 2, "greater than or equal to 1"),
        (("show", "good.jsonl", "--row", "13", "--model", "TOY"), 1, "row: must be at most 12"),
        (("show", "good.jsonl", "--overlength", "squeeze", "--model", "TOY"), 1, "must be drop, truncate or fail"),
        (("show", "empty.jsonl", "--model", "TOY"), 1, "The file has no rows"),
        (("stats", "bad.jsonl", "--model", "TOY"), 1, "FILE: line 3"),
        (("repair", "good.jsonl"), 1, "nothing in this file that the repair could do"),
        (("repair", "bad.jsonl", "-o", "bad.jsonl"), 1, "must be another file"),
        (("repair", "bad.jsonl", "-o", "no/such/folder/x"), 1, "cannot be written: No such file"),
        (("repair", "pictures.zip"), 1, "nothing in this file that the repair could do"),
        (("split", "good.jsonl", "--ratio", "1"), 1, "--ratio: must be above 0 and below 1"),
        (("split", "good.jsonl", "--ratio", "0.01"), 1, "would leave one of the files empty"),
        (("split", "bad.jsonl"), 1, "FILE: line 3"),
        (("sample", "csv"), 1, "no format 'csv'; known: chosen_rejected"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_in_a_line_or_two(here: Path, toy: Path, said: tuple, code: int, word: str) -> None:
    (here / "empty.jsonl").write_bytes(b"")
    (here / "pictures.zip").write_bytes(known()["image_archive"].sample())
    before = sorted(here.iterdir())
    ended, _, err = luthier(here, *(str(toy) if one == "TOY" else one for one in said))
    assert ended == code, err
    assert word in " ".join(err.replace("│", " ").split()), err
    assert "Traceback" not in err
    assert sorted(here.iterdir()) == before


def test_show_prints_a_row_with_its_tokens(here: Path, toy: Path) -> None:
    (here / "one.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "你🙂 [bold]"}]}\n'
    )
    code, out, err = luthier(here, "show", "one.jsonl", "--model", str(toy))
    assert (code, err) == (0, "")
    assert "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n你🙂 [bold]<|im_end|>" in out
    assert "row 1, line 1: 37 tokens, 15 learned, 37 billed" in out
    shown = told(here, "show", "one.jsonl", "--model", str(toy), "--max-length", "30")
    assert (shown["marks"], shown["billed_tokens"]) == (["too_long"], 0)


def test_show_reads_no_further_than_the_row(here: Path, toy: Path) -> None:
    with (here / "long.jsonl").open("wb") as file:
        for _ in range(200):
            file.write(jsonl(toy_rows(200)))
        file.write(b"this is not JSON\n")
    taken: list[int] = []
    blocks = LocalFile.blocks

    def counting(self: LocalFile, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        for block in blocks(self, start, end):
            taken.append(len(block))
            yield block

    with patch.object(LocalFile, "blocks", counting):
        assert luthier(here, "show", "long.jsonl", "--row", "3", "--model", str(toy))[0] == 0
    assert sum(taken) < (here / "long.jsonl").stat().st_size / 2


@pytest.mark.parametrize(("context", "limit"), [(None, 2048), (100, 100), (50_000, 2048)])
def test_a_row_may_have_what_a_job_would_let_it_have(here: Path, toy: Path, context: int | None, limit: int) -> None:
    folder = shutil.copytree(toy, here / "model")
    if context is not None:
        (folder / "config.json").write_text(json.dumps({"max_position_embeddings": context}))
    (here / "long.jsonl").write_bytes(jsonl([_saying("x" * size) for size in (10, 40, 200, 1000, 2200)]))
    shown = json.loads(luthier(here, "stats", "long.jsonl", "--model", "model", "--json")[1])
    assert (shown["max_length"], {one["tokens"] > limit for one in shown["dropped"]}) == (limit, {True})
    assert shown["trained_rows"] == sum(tokens <= limit for tokens in (33, 63, 223, 1023, 2223))
    marks = [told(here, "show", "long.jsonl", "--row", str(row), "--model", "model")["marks"] for row in range(1, 6)]
    assert marks.count(["too_long"]) == shown["dropped_rows"]
    if context is not None:
        for verb in ("show", "stats"):
            code, _, err = luthier(here, verb, "long.jsonl", "--model", "model", "--max-length", str(context + 1))
            assert (code, f"must be at most {context:,}, the context of model" in err) == (1, True)


def test_stats_say_when_a_job_would_be_refused_and_end_with_1(here: Path, toy: Path) -> None:
    (here / "long.jsonl").write_bytes(jsonl([_saying("x" * size) for size in (10, 200, 300)]))
    said = ("stats", "long.jsonl", "--model", str(toy), "--max-length", "100", "--overlength")
    code, out, err = luthier(here, *said, "fail")
    assert (code, "1 of 3 under 100 tokens" in out) == (1, True)
    assert err == "error: A job would be refused: 2 rows of more than 100 tokens; the longest has 323.\n"
    code, out, _ = luthier(here, *said, "fail", "--json")
    assert (code, json.loads(out)["too_long_rows"]) == (1, 2)
    for way, told_of in (("drop", "dropped: too long"), ("truncate", "cut behind the limit")):
        code, out, err = luthier(here, *said, way)
        assert (code, told_of in out, err) == (0, True, "")


def _saying(answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": answer}]}


def test_show_colours_what_is_learned(here: Path, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(force_terminal=True, color_system="standard", record=True, width=120, legacy_windows=False)
    monkeypatch.setattr(commands, "out", console)
    (here / "one.jsonl").write_bytes(
        jsonl([{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]}])
    )
    commands.show(here / "one.jsonl", model=str(toy))
    styles: dict[str, str] = {}
    for segment in console._record_buffer:
        if segment.style is not None:
            styles[segment.text] = styles.get(segment.text, "") or str(segment.style)
    assert styles["Yes<|im_end|>"] == "black on green"
    assert styles["Hi<|im_end|>"] == "dim"


def test_repair_writes_another_file_and_shows_what_it_did(here: Path) -> None:
    code, out, err = luthier(here, "repair", "bad.jsonl")
    assert (code, err) == (0, "")
    assert "row 3, line 3: role_word" in out
    assert '- {"messages": [{"role": "human"' in out
    assert '+ {"messages": [{"role": "user"' in out
    assert (here / "bad.jsonl").read_bytes() == FAULTY
    assert luthier(here, "check", "bad.repaired.jsonl")[0] == 0
    shown = told(here, "repair", "bad.jsonl", "-o", "mended")
    assert (shown["file"], shown["rows_changed"], shown["rows_left"]) == ("mended", 1, 0)
    assert (here / "mended").read_bytes() == (here / "bad.repaired.jsonl").read_bytes()


def test_stats_count_what_the_server_would(here: Path, toy: Path) -> None:
    shown = told(here, "stats", "good.jsonl", "--model", str(toy), "--max-length", "34")
    assert shown["trained_rows"] + shown["dropped_rows"] == 12 == shown["report"]["rows"]
    assert shown["dropped"] and all(one["tokens"] > 34 for one in shown["dropped"])
    code, out, err = luthier(here, "stats", "good.jsonl", "--model", str(toy))
    assert (code, err) == (0, "")
    assert "12 of 12 under 2,048 tokens" in out
    assert "█" in out


def test_split_writes_two_files_the_same_for_the_same_seed(here: Path) -> None:
    shown = told(here, "split", "good.jsonl", "--ratio", "0.25", "--seed", "5")
    assert (shown["division"]["training"], shown["division"]["validation"]) == (9, 3)
    first = [(here / f"good.{name}.jsonl").read_bytes() for name in ("training", "validation")]
    assert sorted(b"".join(first).splitlines()) == sorted((here / "good.jsonl").read_bytes().splitlines())
    assert luthier(here, "split", "good.jsonl", "--ratio", "0.25", "--seed", "5")[0] == 0
    assert [(here / f"good.{name}.jsonl").read_bytes() for name in ("training", "validation")] == first


def test_every_sample_is_written_checked_and_shown(here: Path, toy: Path) -> None:
    code, out, _ = luthier(here, "sample")
    assert code == 0
    for name, form in known().items():
        assert name in out
        code, written, _ = luthier(here, "sample", name)
        path = here / written.strip()
        assert (code, path.read_bytes()) == (0, form.sample())
        if form.kind != "image_understanding":
            assert luthier(here, "show", path.name, "--model", str(toy))[0] == 0


ALL = """
import sys
from luthier.cli import main

for said in [["check", "good.jsonl"], ["split", "good.jsonl"], ["repair", "bad.jsonl"], ["sample"],
             *([what, "good.jsonl", "--model", sys.argv[1]] for what in ("show", "stats"))]:
    sys.argv[:] = ["luthier", "data", *said]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, said
print(sorted({"torch", "transformers", "peft"} & set(sys.modules)))
"""


def test_nothing_of_it_needs_the_engines(here: Path, toy: Path) -> None:
    command = [sys.executable, "-c", ALL, str(toy)]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=100)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_archive_is_repaired_and_split_into_archives(here: Path) -> None:
    with (
        zipfile.ZipFile(here / "pictures.zip", "w") as packed,
        zipfile.ZipFile(io.BytesIO(known()["image_archive"].sample())) as sample,
    ):
        for name in sample.namelist():
            rows = sample.read(name)
            packed.writestr(name, rows.replace(b'"user"', b'"human"') if name.endswith(".jsonl") else rows)
    assert luthier(here, "check", "pictures.zip")[0] == 1
    assert told(here, "repair", "pictures.zip")["file"] == "pictures.repaired.zip"
    assert luthier(here, "check", "pictures.repaired.zip")[0] == 0
    files = told(here, "split", "pictures.repaired.zip", "--ratio", "0.5")["files"]
    assert list(files.values()) == ["pictures.repaired.training.zip", "pictures.repaired.validation.zip"]
    for file in files.values():
        assert luthier(here, "check", file)[0] == 0
        with zipfile.ZipFile(here / file) as made:
            assert len(made.namelist()) == 2


NAMES = ("[/red]", "[blue]", ":smile:", "[bold]x[/bold]")


def _tagged(tag: str, answer: str = "Yes") -> dict[str, Any]:
    return {**_saying(answer), "tag": tag}


def test_what_looks_like_markup_in_a_file_is_shown_as_it_stands_there(here: Path, toy: Path) -> None:
    path = here / "[x] [red].jsonl"
    path.write_bytes(jsonl([_tagged(tag, f"{tag} {place}") for tag in NAMES for place in range(10)]))
    code, out, err = luthier(here, "check", path.name)
    assert (code, err) == (0, "")
    assert f"{path.name}: 40 rows of messages, fit" in out
    code, out, err = luthier(here, "stats", path.name, "--model", str(toy))
    assert (code, err) == (0, "")
    assert all(f"tag {tag}" in out for tag in NAMES)
    code, out, err = luthier(here, "split", path.name)
    assert (code, err) == (0, "")
    assert all(name in out for name in (*NAMES, "[x] [red].training.jsonl: 32 rows"))
    code, out, err = luthier(here, "show", path.name, "--row", "1", "--model", str(toy))
    assert (code, err) == (0, "")
    assert "[/red] 0<|im_end|>" in out
    path.write_bytes(FAULTY.replace(b"Yes", b"[/blue]"))
    code, out, err = luthier(here, "check", path.name)
    assert (code, err) == (1, "")
    assert f"luthier data repair {path.name}" in out
    code, out, err = luthier(here, "repair", path.name)
    assert (code, err) == (0, "")
    assert out.count('"content": "[/blue]"') == 2 and "[x] [red].repaired.jsonl: 1 row changed" in out
    path.write_bytes(jsonl([{**_tagged("[/red]"), "[/blue]": 1}]))
    code, out, err = luthier(here, "check", path.name)
    assert (code, err, "[/blue]" in out) == (1, "", True)
    code, _, err = luthier(here, "sample", "[/red]")
    assert (code, "There is no format '[/red]'" in err) == (1, True)


ACTING = "\x1b]52;c;aGk=\x07\x1b[2J\r\x7f\x9b2J\u202egnp\u2066"


def test_no_sign_of_a_file_acts_on_the_terminal(here: Path, toy: Path) -> None:
    row = _tagged(f"t{ACTING}", f"a\tb\n{ACTING}")
    path = here / f"n{ACTING.replace('/', '')}.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=raw) for raw in (True, False, True, False)))
    wrong = here / "wrong.jsonl"
    wrong.write_text(json.dumps({**row, f"f{ACTING}": 1, "messages": [{"role": "human", "content": ACTING}]}))
    said = [("check",), ("show", "--row", "1", "--model", str(toy)), ("split",), ("stats", "--model", str(toy))]
    shown = [luthier(here, verb, path.name, *more) for verb, *more in said]
    assert [code for code, _, _ in shown] == [0, 0, 0, 0]
    assert "a\tb\n␛]52;c;aGk=␇␛[2J␍␡<U+009B>2J<U+202E>gnp<U+2066>" in shown[1][1].replace("a       b", "a\tb")
    shown += [luthier(here, verb, "wrong.jsonl", *more) for verb, *more in said[:2]]
    shown += [luthier(here, "show", path.name, "--row", "1", "--model", str(toy), "--json")]
    for _, out, err in shown:
        assert not [
            sign for sign in out + err if sign != "\n" and sign in ACTING + "\x1b\x07" and not sign.isprintable()
        ]
    assert row["messages"][1]["content"] in json.loads(shown[-1][1])["text"]


def test_a_repair_shows_signs_that_would_act_on_the_terminal(here: Path) -> None:
    (here / "bad.jsonl").write_text(
        json.dumps(
            {"messages": [{"role": "human", "content": ACTING}, _saying("Yes")["messages"][1]]}, ensure_ascii=False
        )
    )
    code, out, _ = luthier(here, "repair", "bad.jsonl")
    assert code == 0
    assert "<U+009B>2J<U+202E>gnp<U+2066>" in out
    assert all(sign.isprintable() or sign == "\n" for sign in out)


CALLING = {
    "messages": [{"role": "user", "content": "Weather?"}, {"role": "assistant", "content": "Sunny."}],
    "tools": [
        {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    ],
}


def test_show_judges_a_row_far_down_by_the_format_that_the_whole_file_has(here: Path, toy: Path) -> None:
    (here / "mixed.jsonl").write_bytes(jsonl([*toy_rows(150), CALLING]))
    assert "151 rows of function_calling, fit" in luthier(here, "check", "mixed.jsonl")[1]
    shown = told(here, "show", "mixed.jsonl", "--row", "151", "--model", str(toy))
    assert (shown["format"], shown["problems"]) == ("function_calling", [])
    assert shown["trained_tokens"] > 0
    assert told(here, "show", "mixed.jsonl", "--row", "1", "--model", str(toy))["format"] == "messages"


@pytest.mark.parametrize("text", [b'{"messages": [],}', json.dumps(_saying("Yes"), indent=1).encode()[:-2] + b",}"])
def test_show_of_a_row_with_a_problem_ends_with_1_and_counts_nothing(here: Path, toy: Path, text: bytes) -> None:
    (here / "one.jsonl").write_bytes(text)
    code, out, err = luthier(here, "show", "one.jsonl", "--model", str(toy))
    assert (code, out) == (1, "")
    assert err.startswith("error: line 1")
    code, out, _ = luthier(here, "show", "one.jsonl", "--model", str(toy), "--json")
    assert (code, bool(json.loads(out)["problems"])) == (1, True)


@pytest.mark.parametrize(
    ("said", "word"),
    [
        (("--seed", "99999999999"), "--seed: must be at least 0 and below 2,147,483,648, got 99999999999"),
        (("--ratio", "0"), "--ratio: must be above 0 and below 1, got 0.0"),
        (("--ratio", "nan"), "--ratio: must be above 0 and below 1, got nan"),
    ],
)
def test_a_split_names_the_option_that_is_wrong(here: Path, said: tuple[str, str], word: str) -> None:
    code, _, err = luthier(here, "split", "good.jsonl", *said)
    assert (code, err) == (1, f"error: {word}\n")
