"""The words of every code: both languages, whole sentences, and nothing that an answer cannot hold."""

from __future__ import annotations

import string

import pytest

from luthier.records.problems import MEANINGS, Problem, shown


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
