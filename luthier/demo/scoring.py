"""What the demo teaches, as yes-or-no questions: is this answer in Peg's way, is that one still right?"""

import json
import re
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any, Final, Literal, TypedDict, cast

NAME: Final = "Peg"
KEYS: Final = ("from", "topic", "answer")
TOPICS: Final = frozenset({"workshop", "instruments", "wood", "varnish", "strings", "bows", "care", "repairs"})


class Message(TypedDict):
    role: Literal["user", "assistant"]
    content: str


class Row(TypedDict):
    messages: list[Message]


@dataclass(frozen=True)
class HeldOutQuestion:
    """A question for the workshop that no row trains. Peg's answer should be filed under `topic`."""

    question: str
    topic: str


@dataclass(frozen=True)
class GeneralQuestion:
    """A question of general knowledge. Any one of `accepted`, as whole words in any case, is right."""

    question: str
    accepted: tuple[str, ...]


def answers_in_the_new_way(text: str) -> bool:
    """Whether `text` is one strict single-line JSON object in Peg's way, and nothing besides.

    The keys are those of `KEYS`, each once and in that order; the name is Peg, the topic is one of
    `TOPICS` and the answer is a string with something in it. Whether the answer is true is not looked at.
    """
    if "\n" in text.strip():
        return False
    try:
        pairs = json.loads(text, object_pairs_hook=_Pairs)
    except json.JSONDecodeError:
        return False
    if not isinstance(pairs, _Pairs) or tuple(key for key, _ in pairs) != KEYS:
        return False
    name, topic, answer = (value for _, value in pairs)
    return (
        name == NAME and isinstance(topic, str) and topic in TOPICS and isinstance(answer, str) and answer.strip() != ""
    )


def stays_right(item: GeneralQuestion, text: str) -> bool:
    """Whether `text` answers a general question rightly and in plain words, without any JSON object."""
    if "{" in text:
        return False
    plain = text.replace("\u2019", "'")
    return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", plain, re.IGNORECASE) for word in item.accepted)


def data(name: str) -> Traversable:
    """A bundled file by its name, such as `train.jsonl`."""
    return files("luthier.demo") / "data" / name


def train() -> list[Row]:
    """The rows the demo trains on."""
    return cast(list[Row], _lines("train.jsonl"))


def validation() -> list[Row]:
    """Rows like the trained ones, kept back to measure the loss."""
    return cast(list[Row], _lines("validation.jsonl"))


def held_out() -> list[HeldOutQuestion]:
    """Questions for the workshop that are far from every trained one."""
    return [HeldOutQuestion(line["question"], line["topic"]) for line in _lines("held_out.jsonl")]


def general() -> list[GeneralQuestion]:
    """General questions that the base model answers rightly before it is tuned."""
    return [GeneralQuestion(line["question"], tuple(line["accepted"])) for line in _lines("general.jsonl")]


class _Pairs(list[tuple[str, object]]):
    """A JSON object as the pairs it was written with, so that a repeated key is seen."""


def _lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data(name).read_text(encoding="utf-8").splitlines()]
