"""The DatasetFormat contract: lines in, examples or BadLines out, every line accounted for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from luthier.chat.messages import Conversation
from luthier.core.registry import Registry

Kind = Literal["chat"]
"""What an example teaches; an objective says which kinds it wants."""


@dataclass(frozen=True)
class Example:
    """One row that can be trained. `line` is where it begins in the file, counted from 1."""

    line: int
    conversation: Conversation


@dataclass(frozen=True)
class BadLine:
    """One fault of a line: a stable `code`, and what is wrong in words that say what to do. A line may have several."""

    line: int
    code: str
    message: str


class DatasetFormat(ABC):
    kind: Kind

    @classmethod
    @abstractmethod
    def recognises(cls, head: bytes) -> bool:
        """Whether a file that begins with these bytes is of this format."""

    @abstractmethod
    def read(self, lines: Iterable[bytes]) -> Iterator[Example | BadLine]:
        """Read the lines of a file in order, holding one at a time. Blank lines give nothing."""


formats: Registry[DatasetFormat] = Registry("luthier.formats", DatasetFormat, kind="format")
