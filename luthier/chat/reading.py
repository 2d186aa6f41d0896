"""An answer's text as it comes, read for tool calls: text goes on at once, what may be a call waits until it is certain."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable

from luthier.chat import calls
from luthier.chat.messages import ToolCall

Said = str | ToolCall
"""A piece of text, or a whole call; a call's id is empty, for who answers gives it one."""

NAME = re.compile(r"[A-Za-z0-9_.\-]+")
"""A function's name, where it stands alone in a line."""

_DECISIVE = re.compile(r'["{}\[\]]')
_IN_STRING = re.compile(r'["\\]')


class AnswerReader(ABC):
    """Reads one answer. What `add`, `divide` and `rest` give, joined, is what `Renderer.message` says of the whole:
    its text, and the same calls in the same order.
    """

    def __init__(self) -> None:
        self.held = ""
        """What was added and is not certain yet, as it was written."""

    @abstractmethod
    def add(self, text: str) -> list[Said]:
        """What has become certain with more of the answer."""

    @abstractmethod
    def rest(self) -> list[Said]:
        """What was held back, once nothing follows. Nothing is lost: what is no whole call is text."""

    def divide(self) -> list[Said]:
        """The family's own marker between the parts of an answer stands here."""
        return []


class PlainReader(AnswerReader):
    """Every text is text."""

    def add(self, text: str) -> list[Said]:
        return [text] if text else []

    def rest(self) -> list[Said]:
        return []


class BlockReader(AnswerReader):
    """Finds `<tool_call>` blocks, as `calls.read` does."""

    def __init__(self) -> None:
        super().__init__()
        self._blanks = ""  # behind a call; they are text only when more than blanks follows
        self._is_behind_call = False
        self._ahead = ""  # from a possible call on, with the line feed that would belong to it
        self._object: _Object | None = None

    def add(self, text: str) -> list[Said]:
        self._ahead += text
        return self._settled(is_last=False)

    def rest(self) -> list[Said]:
        return self._settled(is_last=True)

    def _settled(self, *, is_last: bool) -> list[Said]:
        said: list[Said] = []
        while (tag := self._ahead.find(calls.OPEN)) >= 0:
            begins = tag - 1 if self._ahead[:tag].endswith("\n") else tag
            self._release(begins, said)
            inner = tag - begins + len(calls.OPEN)
            if self._must_wait(inner) and not is_last:
                break
            if (found := calls.call_at(self._ahead, inner)) is None:
                self._release(inner, said)
            else:
                call, end = found
                said += [self._blanks, call] if self._blanks else [call]
                self._blanks, self._is_behind_call, self._ahead = "", True, self._ahead[end:]
            self._object = None
        else:
            keep = 0 if is_last else max(_overlap(self._ahead, opening) for opening in ("\n" + calls.OPEN, calls.OPEN))
            self._release(len(self._ahead) - keep, said)
        self.held = "" if is_last else self._blanks + self._ahead
        return said

    def _release(self, length: int, said: list[Said]) -> None:
        text, self._ahead = self._blanks + self._ahead[:length], self._ahead[length:]
        if self._is_behind_call and not text.strip():
            self._blanks = text
        elif text:
            said.append(text)
            self._blanks, self._is_behind_call = "", False

    def _must_wait(self, inner: int) -> bool:
        """Whether what follows the opening may still become a call, and is none yet."""
        if self._object is None:
            self._object = _Object(inner)
        end = self._object.end(self._ahead)
        if end is None:
            return not self._object.is_absent
        closing = self._ahead[calls.skip_blanks(self._ahead, end) :]
        return len(closing) < len(calls.CLOSE) and calls.CLOSE.startswith(closing)


class HeadedReader(AnswerReader):
    """Parts with a first line, which is empty above a text and a function's name above its arguments."""

    def __init__(
        self,
        arguments: Callable[[str], str | None],
        *,
        begin: Callable[[str], bool],
        reads_calls: bool,
        blank: str = "",
    ) -> None:
        """`arguments` reads what stands below a name; `begin` says whether it may come to be arguments, by how it begins.

        `blank` is what the tokenizer puts before the text below the first line.
        """
        super().__init__()
        self._arguments = arguments
        self._begin = begin
        self._reads_calls = reads_calls
        self._blank = blank
        self._texts = 0  # parts that are text
        self._is_text = False  # this part is, for certain
        self._has_line = False  # the first line of this part has its line feed
        self._may_be_blank = False  # and nothing else yet

    def add(self, text: str) -> list[Said]:
        self.held += self._without_blank(text)
        if self._is_text:
            return self._released(self.held)
        head, line_feed, below = self.held.partition("\n")
        if self._reads_calls and NAME.fullmatch(head.strip()) and (not line_feed or self._begin(below)):
            return []  # until the part is whole
        if not line_feed and not head.strip():
            return []
        return self._as_text()

    def divide(self) -> list[Said]:
        said = self._part()
        self._is_text = self._has_line = self._may_be_blank = False
        return said

    def rest(self) -> list[Said]:
        return self._part()

    def _without_blank(self, text: str) -> str:
        if not self._blank or not text or (self._has_line and not self._may_be_blank):
            return text
        head, line_feed, below = ("", "", text) if self._has_line else text.partition("\n")
        self._has_line = self._has_line or bool(line_feed)
        self._may_be_blank = self._has_line and not below
        return head + line_feed + (below.removeprefix(self._blank) if self._has_line else below)

    def _part(self) -> list[Said]:
        if self._is_text:
            return []
        head, _, below = self.held.partition("\n")
        if self._reads_calls and NAME.fullmatch(name := head.strip()):
            arguments = self._arguments(below)
            if arguments is not None:
                self.held = ""
                return [ToolCall("", name, arguments)]
        return self._as_text()

    def _as_text(self) -> list[Said]:
        self._is_text = True
        text = self.held.removeprefix("\n")
        self._texts += 1
        return self._released(text if self._texts == 1 else "\n" + text)

    def _released(self, text: str) -> list[Said]:
        self.held = ""
        return [text] if text else []


class _Object:
    """Where a JSON object ends in a text that grows: brackets and strings are followed, nothing else is looked at."""

    def __init__(self, begin: int) -> None:
        self._place = begin
        self._depth = 0
        self._is_in_string = False
        self._end: int | None = None
        self.is_absent = False  # the text does not go on as an object

    def end(self, text: str) -> int | None:
        """The place behind its last bracket; None while that has not come."""
        if not self._depth and self._end is None:
            self._place = calls.skip_blanks(text, self._place)
            self.is_absent = not text.startswith("{", self._place) and self._place < len(text)
            if self.is_absent:
                return None
        while self._end is None and (found := self._next(text)) is not None:
            if self._is_in_string:
                self._is_in_string = found != '"'
                self._place += found == "\\"  # what it escapes decides nothing
            elif found == '"':
                self._is_in_string = True
            else:
                self._depth += 1 if found in "{[" else -1
                self._end = None if self._depth else self._place
        return self._end

    def _next(self, text: str) -> str | None:
        found = (_IN_STRING if self._is_in_string else _DECISIVE).search(text, self._place)
        self._place = found.end() if found else max(self._place, len(text))
        return found.group() if found else None


def _overlap(text: str, opening: str) -> int:
    """The length of the longest end of `text` that begins `opening`."""
    return next((n for n in range(min(len(text), len(opening) - 1), 0, -1) if opening.startswith(text[-n:])), 0)
