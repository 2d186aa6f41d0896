"""Text leaves a replica only when it is certain."""

from __future__ import annotations

import pytest

from luthier.chat.tokenizer import Tokenizer
from luthier.serving.text import AnswerText
from luthier.testing import toy_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    toy_tokenizer(folder := tmp_path_factory.mktemp("toy"))
    return Tokenizer(folder)


def pieces(tokenizer: Tokenizer, tokens: list[int], stops: list[str] | None = None) -> tuple[list[str], AnswerText]:
    text = AnswerText(tokenizer, stops or [])
    given = []
    for token in tokens:
        given.append(text.add(token))
        if text.is_stopped:
            break
    return [*given, text.rest()], text


def test_a_character_of_several_tokens_comes_whole(tokenizer: Tokenizer) -> None:
    assert pieces(tokenizer, tokenizer.encode("aé🙂"))[0] == ["a", "", "é", "", "", "", "🙂", ""]


def test_bytes_that_never_become_a_character_come_at_the_end(tokenizer: Tokenizer) -> None:
    assert pieces(tokenizer, tokenizer.encode("a🙂")[:-1])[0] == ["a", "", "", "", "\ufffd"]


@pytest.mark.parametrize("said", ["plain text", "谢谢！ 不客气 🙂\n\n  x", "e\u0301 \u200d👩\u200d🚀", " leading", ""])
def test_the_pieces_joined_are_the_text(tokenizer: Tokenizer, said: str) -> None:
    assert "".join(pieces(tokenizer, tokenizer.encode(said), stops=["never"])[0]) == said


@pytest.mark.parametrize(
    ("said", "stops", "answer"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["three", "two"], "one "),
        ("aab rest", ["ab"], "a"),
        ("ababc rest", ["abc"], "ab"),
        ("一二三四", ["三"], "一二"),
        ("ends in tw", ["two"], "ends in tw"),
        ("stop at once", ["stop"], ""),
        ("anything", [""], "anything"),
    ],
)
def test_an_answer_ends_before_the_first_stop_string(
    tokenizer: Tokenizer, said: str, stops: list[str], answer: str
) -> None:
    given, text = pieces(tokenizer, tokenizer.encode(said), stops)
    assert "".join(given) == answer
    assert text.is_stopped == (answer != said)


def test_what_may_begin_a_stop_string_is_held_back(tokenizer: Tokenizer) -> None:
    assert pieces(tokenizer, tokenizer.encode("xtwtwx"), ["two"])[0] == ["x", "", "", "tw", "", "twx", ""]
