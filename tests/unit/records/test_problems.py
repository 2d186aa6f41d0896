"""The words of every code: both languages, whole sentences, and nothing that an answer cannot hold."""

from __future__ import annotations

import re
import string

import pytest

from luthier.control.datasets.inspection import inspect
from luthier.formats.base import known
from luthier.records.problems import MEANINGS, Problem, shown
from luthier.records.source import Given
from tests.corpus.broken import BROKEN, Broken

PLAIN = {
    *["JSON", "Lines", "UTF", "BOM", "GBK", "NUL", "Office", "schema", "Parquet", "PDF", "gzip"],
    *["jsonl", "json", "zip", "jpg", "jpeg", "png", "webp", "JPEG", "PNG", "WEBP", "MiB", "http", "base64", "deflate"],
    *["null", "true", "false", "system", "user", "assistant", "tool"],
    *["weight", "messages", "tools", "tool_calls", "tool_call_id", "id", "name", "tag", "content", "data", "image"],
    *["LUTHIER_DATA__IMAGE_HOSTS", "POST", "api", "platform", "files", "check"],
    *("Alpaca", "ShareGPT", "OpenAI"),
    *known(),
}
"""What a Chinese sentence may hold besides quotes, fields and pieces of the file."""


def english(text: str) -> set[str]:
    unquoted = re.sub(r'"(?:[^"\\]|\\.)*"?|\{id\}', " ", text)
    return set(re.findall(r"(?<!\w)[A-Za-z][A-Za-z_0-9]+", unquoted, re.ASCII)) - PLAIN


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_what_is_told_in_chinese_of_a_broken_file_holds_no_english(broken: Broken) -> None:
    report = inspect(Given(broken.data))
    file = broken.data.decode(errors="replace")
    for problem in (*report.problems, *report.warnings):
        told = problem.text.zh
        if problem.code == "bad_schema":  # a library says it, and is quoted
            told = re.sub("“[^”]*”", " ", told)
        values = (problem.field, problem.found, problem.expected)
        for said in (part for value in values for part in (value, *re.split("[ ,/]+", value or "")) if part):
            if said == problem.field or said in file:
                told = told.replace(said, " ")
        assert not english(told), problem.text.zh


@pytest.mark.parametrize("code", MEANINGS)
def test_the_chinese_words_of_a_code_hold_no_english(code: str) -> None:
    assert not english(Problem(code=code, found="1", expected="2", field="f").text.zh)


@pytest.mark.parametrize(
    ("code", "found", "expected", "chinese"),
    [
        ("wrong_type", "empty array", "array", "应为数组，实际是空数组"),
        ("not_json", "the end", "a comma or }", "此处应为逗号或 }，实际是结尾"),
        ("wrong_type", "value", "boolean", "应为 true 或 false，实际是其他类型的值"),
        ("missing_field", "", "array of one assistant message", "请添加（只含一条 assistant 消息的数组）"),
        ("image_place", "no image format", "file of an image category", "这种格式不含图片。请移到图片类别的文件"),
        ("check_stopped", "The work took longer than 1,200 seconds", "", "检查被中止：处理时间超过 1,200 秒。"),
        ("check_stopped", "The process that does the work ended with status -9", "", "处理进程异常结束（状态 -9）"),
        ("bad_schema", "type: 'x' is not one of many", "", "JSON schema：“type: 'x' is not one of many”。"),
        ("text_after_record", "and more", "", "记录之后还有“and more”。"),
    ],
)
def test_our_own_words_are_translated_and_those_of_others_are_quoted(
    code: str, found: str, expected: str, chinese: str
) -> None:
    assert chinese in Problem(code=code, field="f", found=found, expected=expected).text.zh


@pytest.mark.parametrize("name", known())
def test_what_a_row_of_a_format_has_is_told_in_chinese_too(name: str) -> None:
    described = known()[name].describes
    assert not english(Problem(code="format_unknown", found="a", expected=described).text.zh), described


def test_a_key_of_the_file_is_no_word_of_ours() -> None:
    text = Problem(code="duplicate_key", found="string").text
    assert text.en.startswith("The key string stands twice")
    assert "键 string 出现" in text.zh


@pytest.mark.parametrize(
    ("rows", "said"),
    [("1", "The file has 1 row; at least 100 good"), ("11", "The file has 11 rows; at least 100 good")],
)
def test_one_of_a_thing_is_told_as_one(rows: str, said: str) -> None:
    assert Problem(code="too_few_rows", found=rows, expected="100").text.en.startswith(said)
    assert Problem(code="tag_small", found="images", expected=rows).text.en.startswith(
        f"The tag images has only {rows} row"
    )


@pytest.mark.parametrize("code", MEANINGS)
def test_the_words_of_a_code_are_whole_sentences_in_both_languages(code: str) -> None:
    meaning = MEANINGS[code]
    for sentence in (meaning.en, meaning.zh, meaning.fix_en, meaning.fix_zh):
        names = {name for _, name, _, _ in string.Formatter().parse(sentence) if name is not None}
        assert names <= {"found", "expected", "field"}
    assert meaning.en[0].isupper() or meaning.en.startswith("{")
    assert meaning.en.endswith(".") and meaning.zh.endswith("。")
    assert meaning.level == "warning" or (meaning.fix_en and meaning.fix_zh)
    assert not meaning.fix_en or meaning.fix_en.endswith((".", '"'))
    assert meaning.repairable == ("The repair does it." in meaning.fix_en)


def test_a_type_is_a_word_of_the_language() -> None:
    text = Problem(line=2, column=3, row=1, code="wrong_type", field="a.b", found="null", expected="string").text
    assert text.en == "line 2, column 3, row 1: a.b must be a string, found null. Change its value."
    assert text.zh == "第 2 行，第 3 列，第 1 条数据：a.b 应为字符串，实际是 null。请修改它的值。"


def test_words_from_a_file_are_cut_and_printable() -> None:
    problem = Problem(code="duplicate_key", found="a\udcff\0\n" + "x" * 1000, field="\ud800")
    assert len(problem.found) == 300 and problem.found.isprintable() and problem.field == "\ufffd"
    problem.model_dump_json().encode()


def test_braces_in_words_stand_as_they_are() -> None:
    assert "{found}" in Problem(code="duplicate_key", found="{found}").text.en


@pytest.mark.parametrize(
    ("value", "text"),
    [({}, "object"), ([1], "array"), ("a", '"a"'), (None, "null"), (1.5, "1.5"), ("x" * 90, '"' + "x" * 58 + "…")],
)
def test_a_value_is_shown_short(value: object, text: str) -> None:
    assert shown(value) == text


def test_a_number_too_long_to_be_written_is_shown_as_its_type() -> None:
    assert shown(10**5000) == "number"
