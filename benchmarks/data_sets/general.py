"""What the base model mostly knows, and should still know after a job: only held out."""

from __future__ import annotations

from benchmarks.data_sets import DataSet, asked

KNOWN = (
    ("What is the capital of Italy?", "The capital of Italy is Rome."),
    ("What is the capital of Germany?", "The capital of Germany is Berlin."),
    ("What is the capital of Egypt?", "The capital of Egypt is Cairo."),
    ("Which country is Tokyo in?", "Tokyo is in Japan."),
    ("What is 5 plus 4?", "5 plus 4 equals 9."),
    ("What is 10 minus 3?", "10 minus 3 equals 7."),
    ("What is 6 times 2?", "6 times 2 equals 12."),
    ("How many minutes are there in an hour?", "There are 60 minutes in an hour."),
    ("How many months are there in a year?", "There are 12 months in a year."),
    ("Which day comes after Monday?", "Tuesday comes after Monday."),
    ("What colour is the sky on a clear day?", "The sky is blue on a clear day."),
    ("What is the opposite of big?", "The opposite of big is small."),
    ("What do bees make?", "Bees make honey."),
    ("What is frozen water called?", "Frozen water is called ice."),
    ("Which planet do we live on?", "We live on the planet Earth."),
    ("What is the largest planet in our solar system?", "The largest planet in our solar system is Jupiter."),
    ("What gas do plants take in from the air?", "Plants take in carbon dioxide from the air."),
    ("Who painted the Mona Lisa?", "The Mona Lisa was painted by Leonardo da Vinci."),
    ("Who was the first person to walk on the Moon?", "Neil Armstrong was the first person to walk on the Moon."),
    ("How do you say thank you in French?", "In French, thank you is merci."),
    ("Name three colours.", "Red, blue and green."),
    ("Write the word 'tree' in capital letters.", "TREE"),
    ("Name an animal that barks.", "A dog is an animal that barks."),
    ("Count from one to five.", "One, two, three, four, five."),
)


def make(seed: int) -> DataSet:
    """The same for every seed."""
    return DataSet("messages", [], [asked(question, answer) for question, answer in KNOWN])
