"""What functions of the standard library do, by the first sentences of their docstrings. Held out are other modules.

Modules with functions that programs replace, such as `sys` with its hooks, are left out: the set would depend on who asks.
"""

from __future__ import annotations

import inspect
import random
from importlib import import_module

from benchmarks.data_sets import DataSet, asked

TRAINING = (
    *("os", "os.path", "shutil", "math", "random", "json", "re", "textwrap", "itertools", "functools", "asyncio"),
    *("statistics", "subprocess", "socket", "logging", "types", "ast", "email.utils", "html", "urllib.parse"),
    *("gzip", "pickle", "copy", "locale", "calendar", "contextlib", "string", "time"),
)
HELD_OUT = (
    *("heapq", "bisect", "operator", "glob", "fnmatch", "tempfile", "base64", "binascii", "zlib", "bz2", "struct"),
    *("tokenize", "linecache", "traceback", "colorsys", "getpass", "webbrowser", "mimetypes", "sysconfig"),
    *("difflib", "pkgutil", "gc", "hmac", "unicodedata", "secrets", "timeit", "codecs", "array", "selectors"),
)
WORDINGS = (
    "What does `{}` do?",
    "What is `{}` for?",
    "Explain `{}` in one sentence.",
    "In Python, what does `{}` do?",
    "Tell me briefly what `{}` does.",
)
MOST_TRAINING, MOST_HELD_OUT = 200, 48


def make(seed: int) -> DataSet:
    known = pairs(TRAINING)
    answers = {answer for _, answer in known}
    others = [pair for pair in pairs(HELD_OUT) if pair[1] not in answers]
    draw = random.Random(f"docstrings/{seed}")  # noqa: S311

    def rows(found: list[tuple[str, str]], most: int) -> list[dict]:
        chosen = draw.sample(found, min(most, len(found)))
        return [asked(draw.choice(WORDINGS).format(name), answer) for name, answer in chosen]

    return DataSet("messages", rows(known, MOST_TRAINING), rows(others, MOST_HELD_OUT))


def pairs(modules: tuple[str, ...]) -> list[tuple[str, str]]:
    """Names of public functions and what each does, in one plain sentence; of those that say the same only the first."""
    found: dict[str, str] = {}
    for module_name in modules:
        module = import_module(module_name)
        for name, value in sorted(vars(module).items()):
            is_public = name in getattr(module, "__all__", (name,)) and not name.startswith("_")
            if is_public and inspect.isroutine(value) and (sentence := _first_sentence(value)):
                found.setdefault(sentence, f"{module_name}.{name}")
    return [(name, sentence) for sentence, name in found.items()]


def _first_sentence(function: object) -> str | None:
    """None where there is none that reads well by itself."""
    paragraph = " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())
    sentence = paragraph.split(". ")[0].rstrip(".") + "."
    is_plain = (
        sentence[:1].isupper() and sentence.split(" ")[0].isalpha() and sentence.isascii() and ":" not in sentence
    )
    return sentence if is_plain and 20 <= len(sentence) <= 120 else None
