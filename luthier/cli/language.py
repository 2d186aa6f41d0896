"""In which language a command speaks of a file: the one that is asked for, otherwise the terminal's."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated

import typer

from luthier.core.errors import InvalidParameter

Language = Annotated[
    str | None, typer.Option("--language", help="en or zh; that of this terminal otherwise.", show_default=False)
]


@dataclass(frozen=True)
class Speech:
    """Chooses between the two ways to say a thing."""

    is_chinese: bool

    def __call__(self, en: str, zh: str) -> str:
        return zh if self.is_chinese else en


def spoken(asked: str | None) -> Speech:
    """The language of a command. Raises InvalidParameter for one that is not known."""
    if asked is None:
        terminal = next(filter(None, (os.environ.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))), "")
        return Speech(terminal.startswith("zh"))
    if asked not in ("en", "zh"):
        raise InvalidParameter("--language", f"must be en or zh, got {asked!r}")
    return Speech(asked == "zh")


def counted(number: int, thing: str) -> str:
    """So many things in English: 1 row, 2,000 rows."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"
