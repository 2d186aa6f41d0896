"""Rows to measure training with, made from the reference that every Python carries for `help()`: real English, by a seed.

They are cut to length by characters, so they are the same whatever the tokenizer; how many tokens they have is counted later.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pydoc_data.topics import topics

from benchmarks.data_sets import Row

SYSTEM = "You are a careful assistant who answers from the reference of the language."
CHARACTERS_A_TOKEN = 4.3
SHORTEST, LONGEST = 30, 700  # tokens of a mixed row
BESIDE_TEXT = 32  # tokens of a row of one turn that are neither the question's text nor the answer's


class Text:
    """Running text of the topics, of which pieces follow each other and begin anew at the end."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(f"training/{seed}")  # noqa: S311
        names = sorted(topics)
        self.draw.shuffle(names)
        self._words = " ".join(topics[name] for name in names).split()
        self._place = 0

    def piece(self, tokens: float) -> str:
        """Whole words, at least one, of about so many tokens."""
        words: list[str] = []
        room = tokens * CHARACTERS_A_TOKEN
        while not words or room > 0:
            words.append(self._words[self._place % len(self._words)])
            room -= len(words[-1]) + 1
            self._place += 1
        return " ".join(words)


def rows_of(data: str, seed: int) -> Iterator[Row]:
    """Rows without end: `mixed`, `shared`, `dpo`, or `even-N` for rows that all have about N tokens."""
    text = Text(seed)
    make = (lambda text: _even(text, int(data.removeprefix("even-")))) if data.startswith("even-") else _MAKES[data]
    while True:
        yield make(text)


def _mixed(text: Text) -> Row:
    """Of 30 to 700 tokens, as many short ones as long ones by the factor; a third of the longer ones of several turns."""
    length = SHORTEST * (LONGEST / SHORTEST) ** text.draw.random()
    turns = text.draw.choice((1, 1, 2, 3)) if length > 200 else 1
    asked = text.draw.uniform(0.2, 0.6)
    room = max(length - BESIDE_TEXT - 10 * (turns - 1), 6) / turns
    return _chat(SYSTEM, [(text.piece(room * asked), text.piece(room * (1 - asked))) for _ in range(turns)])


def _shared(text: Text) -> Row:
    """The same long system prompt, over half of the tokens, before a question and an answer of 80 to 320 tokens."""
    room = text.draw.uniform(80, 320)
    return _chat(_RULES, [(text.piece(room * 0.4), text.piece(room * 0.6))])


def _dpo(text: Text) -> Row:
    """A prompt of 300 to 600 tokens and two answers of 20 to 60."""
    prompt = [_message("system", SYSTEM), _message("user", text.piece(text.draw.uniform(300, 600)))]
    chosen, rejected = (_message("assistant", text.piece(text.draw.uniform(20, 60))) for _ in range(2))
    return {"messages": prompt, "chosen": chosen, "rejected": rejected}


def _even(text: Text, tokens: int) -> Row:
    room = max(tokens - BESIDE_TEXT, 8)
    return _chat(SYSTEM, [(text.piece(room * 0.4), text.piece(room * 0.6))])


def _chat(system: str, turns: list[tuple[str, str]]) -> Row:
    messages = [_message("system", system)]
    for question, answer in turns:
        messages += [_message("user", question), _message("assistant", answer)]
    return {"messages": messages}


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


_MAKES: dict[str, Callable[[Text], Row]] = {"mixed": _mixed, "shared": _shared, "dpo": _dpo}
_RULES = f"{SYSTEM} Keep to these rules. {Text(-1).piece(330)}"
