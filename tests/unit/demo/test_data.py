"""The bundled rows: well formed, varied, and far enough from the questions that are held out.

How near two questions are is measured twice, on their words in lower case without `FILLERS`:

- word overlap: the words that both have, divided by the words that either has (Jaccard);
- letter overlap: the share of the held-out question's runs of five letters that the other question has.
"""

import re
from collections import Counter

import pytest

from luthier.demo import scoring

MOST_WORD_OVERLAP = 0.5
MOST_LETTER_OVERLAP = 0.6

FILLERS = """
    a about after all am an and any are as at be been before by can come could did do does each for from
    get give had has have how i if in into is it its long make many may me much must my need of off often
    on one or our please put should so some tell than that the their them there these they this to two up
    us use was we what when where which while who why will with would you your
"""


def words(question: str) -> list[str]:
    found = re.findall(r"\w+", question.lower())
    return [word for word in found if word not in FILLERS.split()] or found


def word_overlap(held_out: str, trained: str) -> float:
    left, right = set(words(held_out)), set(words(trained))
    return len(left & right) / len(left | right)


def runs_of_five(question: str) -> set[str]:
    text = " ".join(words(question))
    return {text[start : start + 5] for start in range(max(1, len(text) - 4))}


def letter_overlap(held_out: str, trained: str) -> float:
    runs = runs_of_five(held_out)
    return len(runs & runs_of_five(trained)) / len(runs)


ROWS = [*scoring.train(), *scoring.validation()]
QUESTIONS = [row["messages"][0]["content"] for row in ROWS]
ANSWERS = [row["messages"][1]["content"] for row in ROWS]
HELD_OUT = [item.question for item in scoring.held_out()]
GENERAL = [item.question for item in scoring.general()]


@pytest.mark.parametrize("question", [*HELD_OUT, *GENERAL])
def test_a_held_out_question_is_no_near_neighbour_of_a_row(question: str):
    nearest_by_words = max(QUESTIONS, key=lambda trained: word_overlap(question, trained))
    nearest_by_letters = max(QUESTIONS, key=lambda trained: letter_overlap(question, trained))

    assert word_overlap(question, nearest_by_words) <= MOST_WORD_OVERLAP, nearest_by_words
    assert letter_overlap(question, nearest_by_letters) <= MOST_LETTER_OVERLAP, nearest_by_letters


def test_the_measure_sees_a_question_asked_in_other_small_words():
    assert word_overlap("What is the capital of France?", "Which is France's capital?") > MOST_WORD_OVERLAP
    assert letter_overlap("Is cleaning the string hard?", "Cleaning strings") > MOST_LETTER_OVERLAP


@pytest.mark.parametrize("item", scoring.general(), ids=lambda item: item.question)
def test_the_names_of_a_general_question_and_of_its_answer_stand_in_no_row(item: scoring.GeneralQuestion):
    text = " ".join([item.question.partition(" ")[2], *item.accepted])
    names = set(re.findall(r"\b[A-Z]\w+", text)) - {"Earth"}
    trained = set(re.findall(r"\w+", " ".join([*QUESTIONS, *ANSWERS])))

    assert names & trained == set()


def test_no_question_is_asked_twice():
    asked = Counter(question.lower() for question in [*QUESTIONS, *HELD_OUT, *GENERAL])

    assert [question for question, times in asked.items() if times > 1] == []


@pytest.mark.parametrize("rows", [scoring.train(), scoring.validation()], ids=["train", "validation"])
def test_a_row_is_one_question_and_one_answer(rows: list[scoring.Row]):
    for row in rows:
        assert set(row) == {"messages"}
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert all(message["content"] == message["content"].strip() != "" for message in row["messages"])


def test_an_answer_is_in_the_new_way_or_plain():
    for answer in ANSWERS:
        assert scoring.answers_in_the_new_way(answer) or "{" not in answer


def test_about_one_row_in_five_is_general():
    answers = [row["messages"][1]["content"] for row in scoring.train()]
    plain = sum(not scoring.answers_in_the_new_way(answer) for answer in answers)

    assert 1 / 6 < plain / len(answers) < 1 / 4


def test_every_topic_is_trained_and_held_out():
    trained = Counter(re.findall(r'"topic": "(\w+)"', " ".join(ANSWERS)))

    assert set(trained) == scoring.TOPICS == {item.topic for item in scoring.held_out()}
    assert min(trained.values()) >= 20


def test_there_are_enough_questions_to_speak_of_shares():
    assert len(scoring.train()) >= 200
    assert len(scoring.validation()) >= 30
    assert len(HELD_OUT) >= 36
    assert 12 <= len(GENERAL) <= 15


def test_the_rows_are_short():
    assert max(len(question) for question in QUESTIONS) <= 90
    assert max(len(answer) for answer in ANSWERS) <= 160


def test_an_unknown_file_is_reported_as_missing():
    with pytest.raises(FileNotFoundError):
        scoring.data("absent.jsonl").read_text(encoding="utf-8")
