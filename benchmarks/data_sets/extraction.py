"""Sentences about payments into JSON objects. Held out are other people, places, days, sums and ways to say it."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from datetime import date, timedelta

from benchmarks.data_sets import DataSet, Row, asked

ASKED = "Extract as JSON: "
CURRENCIES = {"EUR": "{} euros", "USD": "{} dollars", "GBP": "{} pounds", "CHF": "{} francs"}


@dataclass(frozen=True)
class Words:
    """What sentences are made of."""

    first_names: tuple[str, ...]
    last_names: tuple[str, ...]
    places: tuple[str, ...]
    begin: date
    amounts: range
    templates: tuple[str, ...]


TRAINING = Words(
    ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Ines", "Jack", "Karen", "Leo"),
    ("Adams", "Brown", "Carter", "Diaz", "Evans", "Fischer", "Green", "Hill", "Ivanov", "Jones", "Kim", "Lopez"),
    ("Berlin", "London", "Madrid", "Chicago", "Toronto", "Vienna", "Sydney", "Dublin", "Oslo", "Geneva", "Boston"),
    date(2024, 1, 1),
    range(10, 900, 5),
    (
        "{name} paid {amount} in {place} on {date}.",
        "On {date}, {name} spent {amount} in {place}.",
        "We received {amount} from {name} of {place} on {date}.",
        "In {place}, on {date}, {name} was charged {amount}.",
        "The invoice of {date} asks {name} in {place} for {amount}.",
        "{amount} went to {name}, who lives in {place}, on {date}.",
        "A refund of {amount} was sent to {name} in {place} on {date}.",
        "Our shop in {place} sold a lamp to {name} for {amount} on {date}.",
    ),
)
HELD_OUT = Words(
    ("Maria", "Nina", "Oscar", "Paul", "Quentin", "Rosa", "Simon", "Tara", "Victor", "Wendy"),
    ("Meyer", "Novak", "Olsen", "Patel", "Quinn", "Rossi", "Schmidt", "Turner", "Vogel", "Walker"),
    ("Paris", "Rome", "Lisbon", "Seattle", "Prague", "Denver", "Athens", "Lyon", "Hamburg", "Montreal"),
    date(2026, 1, 1),
    range(12, 900, 5),
    (
        "{name} bought a ticket in {place} on {date} and it cost {amount}.",
        "On {date} the bank in {place} lent {name} {amount}.",
        "{place}, {date}: {name} won {amount}.",
        "For {amount}, {name} rented a room in {place} on {date}.",
    ),
)


def make(seed: int) -> DataSet:
    return DataSet("messages", _rows(TRAINING, 200, f"training/{seed}"), _rows(HELD_OUT, 48, f"held out/{seed}"))


def _rows(words: Words, count: int, seed: str) -> list[Row]:
    draw = random.Random(f"extraction/{seed}")  # noqa: S311
    rows: dict[str, Row] = {}
    while len(rows) < count:
        day = words.begin + timedelta(days=draw.randrange(700))
        name = f"{draw.choice(words.first_names)} {draw.choice(words.last_names)}"
        place, amount, currency = draw.choice(words.places), draw.choice(words.amounts), draw.choice([*CURRENCIES])
        written = {
            "name": name,
            "date": f"{day.day} {day:%B %Y}" if draw.random() < 0.5 else f"{day:%B} {day.day}, {day.year}",
            "place": place,
            "amount": CURRENCIES[currency].format(amount),
        }
        sentence = draw.choice(words.templates).format(**written)
        meant = {"name": name, "date": day.isoformat(), "place": place, "amount": f"{amount} {currency}"}
        rows[sentence] = asked(ASKED + sentence, json.dumps(meant))
    return list(rows.values())
