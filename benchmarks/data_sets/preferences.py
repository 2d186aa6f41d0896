"""One plain sentence is preferred to the same sentence amid courtesies. Held out are other questions and other courtesies."""

from __future__ import annotations

import random

from benchmarks.data_sets import DataSet, Row, docstrings

TRAINING = (
    (
        "What a wonderful question!",
        "I am truly delighted to help you with this.",
        "Thank you so very much for asking me!",
        "Oh, that is really one of my favourite topics!",
        "Certainly, it is my greatest pleasure.",
    ),
    (
        "I do hope so very much that this was of use.",
        "Please ask me anything else, anything at all!",
        "Thank you again, and do have a lovely day!",
        "If that was not clear, I am terribly sorry.",
        "It was an honour to be of service.",
    ),
)
HELD_OUT = (
    (
        "I appreciate your curiosity more than I can say!",
        "How kind of you to turn to me.",
        "Allow me first to thank you warmly for your trust.",
    ),
    (
        "May I wish you every success!",
        "I would be overjoyed to tell you a great deal more.",
        "With my most sincere regards, as ever.",
    ),
)


def make(seed: int) -> DataSet:
    plain = docstrings.make(seed)
    draw = random.Random(f"preferences/{seed}")  # noqa: S311

    def pair(row: Row, courtesies: tuple[tuple[str, ...], tuple[str, ...]]) -> Row:
        question, answer = row["messages"]
        before, after = (draw.choice(phrases) for phrases in courtesies)
        rambling = {"role": "assistant", "content": f"{before} {answer['content']} {after}"}
        return {"messages": [question], "chosen": answer, "rejected": rambling}

    return DataSet(
        "chosen_rejected",
        [pair(row, TRAINING) for row in plain.training],
        [pair(row, HELD_OUT) for row in plain.held_out],
    )
