import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.data_sets import FITTING, NAMES, make
from luthier.control.datasets.inspection import inspect
from luthier.formats.base import formats
from luthier.records.source import LocalFile
from luthier.testing import jsonl
from luthier.training.objectives.base import objectives


def digest_of_all() -> str:
    return hashlib.sha256(repr([make(name, 3) for name in NAMES]).encode()).hexdigest()


def test_another_process_makes_the_same_rows_of_the_same_seed():
    asked = "from tests.unit.benchmarks.test_data_sets import digest_of_all; print(digest_of_all())"
    said = subprocess.run(
        [sys.executable, "-c", asked],
        env={**os.environ, "PYTHONHASHSEED": "77"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == digest_of_all()


@pytest.mark.parametrize("name", ["docstrings", "characters", "extraction", "preferences", "reference"])
def test_another_seed_makes_other_rows(name):
    assert make(name, 1).training != make(name, 2).training


@pytest.mark.parametrize("name", NAMES)
def test_the_products_own_check_finds_nothing_to_say(name, tmp_path):
    made = make(name)
    for rows in filter(None, (made.training, made.held_out)):
        (path := tmp_path / "rows.jsonl").write_bytes(jsonl(rows))
        report = inspect(LocalFile(path))
        assert (report.fit, report.format, report.rows, report.counts) == (True, made.format, len(rows), {})
        assert report.duplicate_rows == 0


def test_every_objective_has_a_set_of_the_kind_that_it_wants():
    for name in objectives.names():
        kinds = {formats.load(make(each).format).kind for each in FITTING[name]}
        assert kinds == {objectives.load(name).wants}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("general", "facts")])
def test_a_set_has_200_rows_to_train_or_512_and_48_held_out(name):
    made = make(name)
    assert (len(made.training), len(made.held_out)) == (512 if name == "characters" else 200, 48)


def asked_in(rows: list[dict]) -> set[str]:
    return {row["messages"][0]["content"] for row in rows}


def answered_in(rows: list[dict]) -> list[str]:
    return [row["messages"][1]["content"] for row in rows]


@pytest.mark.parametrize("name", ["facts", "docstrings", "characters", "extraction", "preferences"])
def test_no_held_out_question_is_trained_and_no_general_one(name):
    made, general = make(name), make("general")
    assert not asked_in(made.training) & (asked_in(made.held_out) | asked_in(general.held_out))


@pytest.mark.parametrize("name", ["docstrings", "preferences"])
def test_the_modules_and_answers_held_out_are_not_trained(name):
    made = make(name)

    def modules(rows: list[dict]) -> set[str]:
        return {question.split("`")[1].rpartition(".")[0] for question in asked_in(rows)}

    def answers(rows: list[dict]) -> set[str]:
        return {(row.get("chosen") or row["messages"][1])["content"] for row in rows}

    assert not modules(made.training) & modules(made.held_out)
    assert not answers(made.training) & answers(made.held_out)


def test_the_courtesies_held_out_are_not_trained():
    made = make("preferences")

    def courtesies(rows: list[dict]) -> set[str]:
        around = [row["rejected"]["content"].split(row["chosen"]["content"]) for row in rows]
        return {phrase.strip() for phrases in around for phrase in phrases}

    assert len(courtesies(made.training)) == 10
    assert not courtesies(made.training) & courtesies(made.held_out)


@pytest.mark.parametrize("field", ["name", "date", "place"])
def test_the_people_days_and_places_held_out_are_not_trained(field):
    made = make("extraction")
    trained, held_out = (
        {json.loads(answer)[field] for answer in answered_in(rows)} for rows in (made.training, made.held_out)
    )
    assert not trained & held_out


def test_what_a_sentence_says_stands_in_its_answer():
    for row in make("extraction").training:
        question, answer = (message["content"] for message in row["messages"])
        meant = json.loads(answer)
        amount, _ = meant["amount"].split()
        assert all(said in question for said in (meant["name"], meant["place"], amount, meant["date"][:4]))


def test_no_paragraph_held_out_is_trained():
    made = make("reference")
    trained, held_out = (
        {text for row in rows for text in row["text"].split("\n\n")} for rows in (made.training, made.held_out)
    )
    assert not trained & held_out
