"""What the base model mostly knows, and should still know after a job: only held out."""

from __future__ import annotations

from benchmarks.data_sets import DataSet, asked

KNOWN = (
    ("What is the capital of Italy?", "The capital of Italy is Rome."),
    ("What is the capital of Spain?", "The capital of Spain is Madrid."),
    ("What is the capital of Egypt?", "The capital of Egypt is Cairo."),
    ("Which country is Tokyo in?", "Tokyo is in Japan."),
    ("What is 5 plus 4?", "5 plus 4 equals 9."),
    ("What is 10 minus 3?", "10 minus 3 equals 7."),
    ("What is 6 times 2?", "6 times 2 equals 12."),
    ("How many minutes are there in an hour?", "There are 60 minutes in an hour."),
    ("How many months are there in a year?", "There are 12 months in a year."),
    ("Which day comes after Monday?", "Tuesday comes after Monday."),
    ("What colour is grass?", "Grass is green."),
    ("What is the opposite of big?", "The opposite of big is small."),
    ("What do birds lay?", "Birds lay eggs."),
    ("What is frozen water called?", "Frozen water is called ice."),
    ("Which planet do we live on?", "We live on the planet Earth."),
    ("Which planet is closest to the Sun?", "The planet closest to the Sun is Mercury."),
    ("What gas do plants take in from the air?", "Plants take in carbon dioxide from the air."),
    ("Who wrote Hamlet?", "Hamlet was written by William Shakespeare."),
    ("Who was the first president of the United States?", "George Washington was the first president."),
    ("How do you say thank you in Spanish?", "In Spanish, thank you is gracias."),
    ("Name three colours.", "Red, blue and green."),
    ("Write the word 'tree' in capital letters.", "TREE"),
    ("Name an animal that barks.", "A dog is an animal that barks."),
    ("Count from one to five.", "One, two, three, four, five."),
)


def make(seed: int) -> DataSet:
    """The same for every seed."""
    return DataSet("messages", [], [asked(question, answer) for question, answer in KNOWN])
