"""A JSON reader that goes on after a fault: every fault at its exact place, and the value that was meant.

It is slow and careful; what is clean is read by a library, and only what is suspicious comes here.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

DEEPEST = 64
"""Levels of nesting that are read."""

LONGEST_NUMBER = 400
"""Digits of a number that are read."""

MOST_VALUES = 100_000
"""Values within one record that are read, so that a few megabytes of brackets do not become gigabytes of objects."""

MOST_FAULTS = 1000
"""Faults of one record that are told."""

ROW_FIELDS = frozenset(
    {
        "messages", "input", "preferred_output", "non_preferred_output", "chosen", "rejected",
        "instruction", "prompt", "conversations",
    }
)  # fmt: skip
"""Fields that a row begins with, and nothing within a row does."""

UNSURE = frozenset({"not_json", "unclosed", "wrong_closer", "too_deep", "too_many_values"})
"""Faults after which the value need not be what was meant, so that nothing should be said about what it lacks."""

Path = tuple[str | int, ...]

_FIRST_KEY = re.compile(r'\{[ \t\r\n]*"([^"\\\n]{1,100})"[ \t\r\n]*:')
_SPACE = re.compile(r"[ \t\r\n]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f\ud800-\udfff]*')
_WORD = re.compile(r"[^\s,:{}\[\]\"'“”‘’]+")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_PAIR = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")
_NEXT_MEMBER = re.compile(r"""\s*+(?:["'“}\]]|$|\w++\s*+:|//|/\*|#)""")
_NEXT_ITEM = re.compile(r"""\s*+(?:["'“{}\[\]\d-]|$|//|/\*|#|(?:true|false|null|True|False|None)\b)""")
_MEMBER_LINE = re.compile(r"""[ \t]*+"[^"\\\n]{1,100}"[ \t]*+:""")
_QUOTE_END = re.compile(r"\s*+(?:[,:}\]]|$)")
_PLAIN_QUOTED = re.compile(r"[^'’”»`\\\x00-\x1f\ud800-\udfff]+")
_SURROGATES = re.compile("[\ud800-\udfff]")
_BYTES = re.compile("[\udc80-\udcff]+")
_LOOKS_LIKE_NUMBER = re.compile(r"[-+]?\.?\d[\w.+-]*")
_JUNK = re.compile(r"[,}\]\n]")
_SHAPE = re.compile(r'[{}\[\]\n]|"(?:[^"\\\n]++|\\.)*+"')
_QUOTES = {"'": "'", "“": "”", "”": "”", "‘": "’", "’": "’", "`": "`", "«": "»"}
_LITERALS = {"true": True, "false": False, "null": None}
_PYTHON = {"True": True, "False": False, "None": None, "TRUE": True, "FALSE": False, "NULL": None, "undefined": None}
_NOT_NUMBERS = ("NaN", "Infinity", "-Infinity", "+Infinity", "nan", "inf", "-inf")
_SIMPLE = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_ONCE = {"single_quotes", "key_not_quoted", "not_utf8", "too_many_values"}  # of a whole record written so: said once


@dataclass(frozen=True)
class Fault:
    """A fault of notation; `offset` counts characters from the start of the text."""

    code: str
    offset: int
    found: str = ""
    expected: str = ""


@dataclass
class Parsed:
    """What was read. `is_cut` says that the text ended, or another row began, before the value did; `value` is then what there
    was of it.
    """

    value: Any
    end: int
    faults: list[Fault]
    is_cut: bool
    keys: dict[Path, int] = field(default_factory=dict)
    values: dict[Path, int] = field(default_factory=dict)


def first_key(text: str, start: int = 0) -> str | None:
    """The key that an object begins with; None where the text does not begin like one."""
    found = _FIRST_KEY.match(text, start)
    return found.group(1) if found else None


def parse(text: str, start: int = 0) -> Parsed:
    """Read one value from `start` on. Never raises; linear in the length of the value."""
    reader = _Reader(text, start)
    value = reader.value(())
    return Parsed(value, reader.at, reader.faults, reader.is_cut and not reader.is_skipped, reader.keys, reader.values)


class _Reader:
    def __init__(self, text: str, start: int) -> None:
        self.text = text
        self.at = start
        self.faults: list[Fault] = []
        self.keys: dict[Path, int] = {}
        self.values: dict[Path, int] = {}
        self.is_cut = False
        self.is_skipped = False  # there is more of the record, and it was gone over
        self._open: list[str] = []
        self._opened: list[int] = []
        self._has_comma = False  # an object was closed for want of a brace, and the comma behind it is taken
        self._end = len(text)
        self._said: set[str] = set()
        self._row_keys = ROW_FIELDS | {first_key(text, start)}

    def value(self, path: Path) -> Any:
        self._space()
        if self.at >= self._end:
            self._cut_open()
            return None
        sign = self.text[self.at]
        if len(self.values) >= MOST_VALUES:
            return self._skip_record()
        self.values.setdefault(path, self.at)
        if sign in "{[":
            if len(self._open) >= DEEPEST:
                return self._skip_deep()
            return self._object(path) if sign == "{" else self._array(path)
        if sign == '"':
            return self._string(in_object=bool(self._open) and self._open[-1] == "{")
        if sign in _QUOTES:
            return self._quoted()
        return self._word()

    # Containers

    def _object(self, path: Path) -> dict[str, Any]:
        self._open.append("{")
        self._opened.append(self.at)
        self.at += 1
        found: dict[str, Any] = {}
        while not self.is_cut:
            self._space()
            if self.at >= self._end:
                self._cut_open()
                break
            sign = self.text[self.at]
            if sign == "}":
                self.at += 1
                break
            if sign == "]":
                self._fault("wrong_closer", self.at, "]", "}")
                if "[" not in self._open:
                    self.at += 1
                break
            if sign == ",":
                self._fault("trailing_comma", self.at, ",", "a key")
                self.at += 1
                continue
            if sign in "{[" and len(self._open) > 1 and self._open[-2] == "[" and found:
                self._fault("wrong_closer", self.at, sign, "}")
                self._has_comma = True
                break
            if not self._member(path, found):
                break
        self._open.pop()
        self._opened.pop()
        return found

    def _member(self, path: Path, found: dict[str, Any]) -> bool:
        """Read `key: value` and the comma behind it; False where nothing more can be made of the object."""
        place = self.at
        key = self._key()
        if key is None:
            return False
        inner = (*path, key)
        if key in found:
            self._fault("duplicate_key", place, _short(key))
        if len(self.keys) < MOST_VALUES:
            self.keys.setdefault(inner, place)
        self._space()
        if self.is_cut:
            return False
        if self.at < self._end and self.text[self.at] == ":":
            self.at += 1
        elif self.at >= self._end:
            self._cut_open()
            return False
        else:
            self._fault("missing_colon", self.at, _short(key), ":")
            if self.text[self.at] in ",}":
                found.setdefault(key, None)
                return self._separator("}", _NEXT_MEMBER)
            if self.text[self.at] == "=":
                self.at += 1
        value = self.value(inner)
        if key not in found:
            found[key] = value
        return self._separator("}", _NEXT_MEMBER)

    def _array(self, path: Path) -> list[Any]:
        self._open.append("[")
        self._opened.append(self.at)
        self.at += 1
        found: list[Any] = []
        while not self.is_cut:
            self._space()
            if self.at >= self._end:
                self._cut_open()
                break
            sign = self.text[self.at]
            if sign == "]":
                self.at += 1
                break
            if sign == "}":
                self._fault("wrong_closer", self.at, "}", "]")
                if "{" not in self._open:
                    self.at += 1
                break
            if sign == ",":
                self._fault("trailing_comma", self.at, ",", "a value")
                self.at += 1
                continue
            before = self.at
            found.append(self.value((*path, len(found))))
            if self.at == before and not self.is_cut:  # a sign that begins no value
                self.at += 1
            if not self._separator("]", _NEXT_ITEM):
                break
        self._open.pop()
        self._opened.pop()
        return found

    def _separator(self, closer: str, following: re.Pattern[str]) -> bool:
        """Go over the comma between two members. Says what is odd about it."""
        if self._has_comma:
            self._has_comma = False
            return True
        self._space()
        if self.is_cut:
            return False
        if self.at >= self._end:
            return True  # the loop says that it is not closed
        sign = self.text[self.at]
        if sign == ",":
            comma = self.at
            self.at += 1
            self._space()
            if not self.is_cut and self.at < self._end and self.text[self.at] in "}]":
                self._fault("trailing_comma", comma, ",", self.text[self.at])
            return True
        if sign not in "}]":
            if following.match(self.text, self.at) or sign in "{[":
                self._fault("missing_comma", self.at, _short(self._ahead()))
            else:
                self._fault("not_json", self.at, _short(self._ahead()), f"a comma or {closer}")
                self._skip_junk()
                if self.at < self._end and self.text[self.at] == ",":
                    self.at += 1
        return True

    def _key(self) -> str | None:
        sign = self.text[self.at]
        if sign == '"':
            return self._string(is_key=True)
        if sign in _QUOTES:
            return self._quoted()
        if word := _WORD.match(self.text, self.at):
            self._fault("key_not_quoted", self.at, _short(word.group()), f'"{word.group()[:40]}"')
            return self._fit(word)
        self._fault("not_json", self.at, _short(sign), "a key in double quotes")
        self._skip_junk()
        return None

    def _fit(self, word: re.Match[str]) -> str:
        """Go over a word; the word as text, without bytes that are none."""
        if odd := _BYTES.search(word.group()):
            self.at = word.start() + odd.start()
            self._unfit()
        self.at = word.end()
        return _SURROGATES.sub("\ufffd", word.group()).replace("\0", "\ufffd")

    # Texts

    def _string(self, *, is_key: bool = False, in_object: bool = False) -> str:
        opened = self.at
        self.at += 1
        parts: list[str] = []
        while True:
            plain = _PLAIN.match(self.text, self.at)
            assert plain is not None
            parts.append(plain.group())
            self.at = plain.end()
            if self.at >= self._end:
                if not self._is_forgotten_quote(opened, parts):
                    self._cut("unclosed", opened, '"', '"')
                break
            sign = self.text[self.at]
            if sign == '"':
                if self._closes(is_key=is_key, in_object=in_object):
                    self.at += 1
                    break
                self._fault("quote_not_escaped", self.at, '"', '\\"')
                parts.append('"')
                self.at += 1
            elif sign == "\\":
                parts.append(self._escape())
            elif sign == "\n" or self.text.startswith("\r\n", self.at):
                if self._is_forgotten_quote(opened, parts) or self._is_cut_line(opened):
                    break
                self._fault("line_break_in_string", self.at, "\\n", "\\n")
                parts.append("\n")
                self.at += 1 if sign == "\n" else 2
            else:
                parts.append(self._unfit())
        return "".join(parts)

    def _unfit(self) -> str:
        """Go over what no text may hold as it is: a control character, or bytes that are not UTF-8."""
        sign, place = self.text[self.at], self.at
        if "\ud800" <= sign <= "\udfff":
            bytes_ = _BYTES.match(self.text, place)
            self.at = bytes_.end() if bytes_ else place + 1
            found = " ".join(f"0x{ord(one) - 0xDC00:02X}" for one in self.text[place : min(self.at, place + 4)])
            self._fault("not_utf8", place, found if bytes_ else f"U+{ord(sign):04X}", "UTF-8")
            return "\ufffd"
        self.at += 1
        if sign == "\0":
            self._fault("nul", place, "U+0000")
        else:
            written = {"\t": "\\t", "\r": "\\r", "\n": "\\n", "\b": "\\b", "\f": "\\f"}.get(sign, f"\\u{ord(sign):04x}")
            self._fault("control_character", place, f"U+{ord(sign):04X}", written)
        return sign

    def _closes(self, *, is_key: bool, in_object: bool) -> bool:
        """Whether the quote here ends the text, judged by what follows it."""
        space = _SPACE.match(self.text, self.at + 1)
        assert space is not None
        after = space.end()
        if after >= self._end or "\n" in space.group():
            return True
        sign = self.text[after]
        if is_key:
            return sign in ":=" or after > self.at + 1 or sign in "\"'{[,}"
        if sign == ",":
            return bool((_NEXT_MEMBER if in_object else _NEXT_ITEM).match(self.text, after + 1))
        if sign == '"':
            return after > self.at + 1
        if sign == ":":
            return False
        return sign in "}]{[#/"

    def _is_forgotten_quote(self, opened: int, parts: list[str]) -> bool:
        """At the end of a line within a text: whether only its closing quote was forgotten. If so, go back to where it belongs.

        That is plain where the line closes just what is open, or where a comma ends it and the next line is a member.
        """
        start = max(self.text.rfind("\n", opened, self.at), opened) + 1
        line = self.text[start : self.at].rstrip(" \t\r")
        said = line.rstrip(" \t,}]")
        tail = line[len(said) :]
        closers = "".join("}" if sign == "{" else "]" for sign in reversed(self._open))
        if not tail or not said or said.endswith('"'):
            return False
        if (re.sub(r"[ \t,]", "", tail) == closers and closers) or (
            tail.strip() == "," and self.at < self._end and _MEMBER_LINE.match(self.text, self.at + self._feed())
        ):
            pass
        else:
            return False
        back = self.at - start - len(said)
        self._fault("unclosed_string", opened, _short(self.text[opened : opened + 30].split("\n", 1)[0]), '"')
        whole = parts.pop()
        while len(whole) < back:  # raw characters, each of them one of the text
            whole = parts.pop() + whole
        parts.append(whole[: len(whole) - back])
        self.at -= back
        return True

    def _is_cut_line(self, opened: int) -> bool:
        """At the end of a line within a text: whether a row of its own begins on the next one. If so, the record ends here."""
        if not self._begins_row(self.at + self._feed()):
            return False
        self._cut("unclosed", opened, '"', '"')
        self._end = self.at
        return True

    def _feed(self) -> int:
        return 2 if self.text[self.at] == "\r" else 1

    def _begins_row(self, place: int) -> bool:
        key = first_key(self.text, place)
        return key is not None and key in self._row_keys

    def _escape(self) -> str:
        if pair := _PAIR.match(self.text, self.at):
            self.at = pair.end()
            high, low = int(pair.group()[2:6], 16), int(pair.group()[8:12], 16)
            return chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))
        if known := _ESCAPE.match(self.text, self.at):
            place, self.at = self.at, known.end()
            if known.group()[1] != "u":
                return _SIMPLE[known.group()[1]]
            code = int(known.group()[2:], 16)
            if 0xD800 <= code <= 0xDFFF:
                self._fault("half_surrogate", place, known.group())
                return "\ufffd"
            if code == 0:
                self._fault("nul", place, known.group())
            return chr(code)
        place, following = self.at, self.text[self.at + 1 : self.at + 2]
        if following == "'":
            self._fault("bad_escape", place, "\\'", "'")
            self.at += 2
            return "'"
        self._fault("bad_escape", place, "\\" + following.replace("\n", ""), "\\\\" + following.replace("\n", ""))
        self.at += 1
        return "\\"

    def _quoted(self) -> str:
        """A text in quotes that JSON does not know. It ends where its quote is followed by what may follow a text."""
        opened = self.at
        close = _QUOTES[self.text[opened]]
        self._fault("single_quotes", opened, self.text[opened], '"')
        self.at += 1
        parts: list[str] = []
        while self.at < self._end:
            if plain := _PLAIN_QUOTED.match(self.text, self.at):
                parts.append(plain.group())
                self.at = plain.end()
                continue
            sign = self.text[self.at]
            if sign == close and _QUOTE_END.match(self.text[self.at + 1 : self.at + 40]):
                self.at += 1
                return "".join(parts)
            if sign == "\\" and self.text.startswith(("\\'", '\\"'), self.at):
                parts.append(self.text[self.at + 1])
                self.at += 2
            elif sign == "\\":
                parts.append(self._escape())
            elif sign == "\n":
                break
            elif sign == "\r" or "\ud800" <= sign <= "\udfff" or sign == "\0":
                parts.append(self._unfit() if sign != "\r" else "")
                self.at += sign == "\r"
            else:
                parts.append(sign)
                self.at += 1
        if self.at >= self._end:
            self._cut("unclosed", opened, close, close)
        else:
            self._fault("unclosed_string", opened, _short(self.text[opened : opened + 30].split("\n", 1)[0]), close)
        return "".join(parts)

    # Words and numbers

    def _word(self) -> Any:
        word = _WORD.match(self.text, self.at)
        if word is None:
            self._fault("not_json", self.at, _short(self.text[self.at]), "a value")
            return None
        place, said = self.at, word.group()
        self.at = word.end()
        if said in _LITERALS:
            return _LITERALS[said]
        if _NUMBER.fullmatch(said):
            return self._number(place, said)
        if said in _PYTHON:
            value = _PYTHON[said]
            self._fault("python_literal", place, said, "null" if value is None else str(value).lower())
            return value
        if said in _NOT_NUMBERS or _LOOKS_LIKE_NUMBER.fullmatch(said):
            self._fault("not_a_number", place, _short(said))
            return math.nan
        if "\ud800" <= said[0] <= "\udfff":
            self.at = place
            self._unfit()
            return None
        self._fault("not_json", place, _short(self._ahead(place)), "a value")
        self._skip_junk()
        return None

    def _number(self, place: int, said: str) -> int | float:
        if len(said) > LONGEST_NUMBER:
            self._fault("number_too_long", place, f"{len(said):,}", str(LONGEST_NUMBER))
            return math.nan
        number = float(said) if re.search(r"[.eE]", said) else int(said)
        if number in (float("inf"), float("-inf")):
            self._fault("not_a_number", place, _short(said))
        return number

    # Going on

    def _space(self) -> None:
        """Go over white space and comments. A line that begins like a row ends a record that is still open."""
        while True:
            space = _SPACE.match(self.text, self.at, self._end)
            assert space is not None
            feed = space.end() - 1  # where it ends with a line
            if self._open and feed >= self.at and self.text[feed] == "\n" and self._begins_row(feed + 1):
                self._end = self.at = feed
                return
            self.at = space.end()
            if self.text.startswith("\ufeff", self.at):
                self._fault("byte_order_mark", self.at)
                self.at += 1
                continue
            if self.text.startswith(("//", "#"), self.at):
                feed = self.text.find("\n", self.at)
                end = self._end if feed < 0 else feed
            elif self.text.startswith("/*", self.at):
                close = self.text.find("*/", self.at)
                end = self._end if close < 0 else close + 2
            else:
                return
            self._fault("comment", self.at, _short(self.text[self.at : min(end, self.at + 30)]))
            self.at = end

    def _cut_open(self) -> None:
        """The text is at its end: what is open stays so."""
        if self._open:
            self._cut("unclosed", self._opened[-1], self._open[-1], "}" if self._open[-1] == "{" else "]")
        elif self.faults and all(fault.code == "comment" for fault in self.faults):
            self.is_cut = True  # a line of its own
        else:
            self._cut("not_json", self.at, "the end", "a value")

    def _cut(self, code: str, place: int, found: str, expected: str) -> None:
        if not self.is_cut:
            self.faults.append(Fault(code, place, found, expected))
            self.is_cut = True

    def _skip_junk(self) -> None:
        """Over what cannot be understood, to the next sign that gives the record its shape."""
        shape = _JUNK.search(self.text, self.at, self._end)
        self.at = shape.start() if shape else self._end

    def _skip_deep(self) -> None:
        """Over a value that is nested too deeply."""
        self._fault("too_deep", self.at, "", str(DEEPEST))
        self._skip(0)

    def _skip_record(self) -> None:
        """Over all that is left of the record."""
        self._fault("too_many_values", self.at, "", f"{MOST_VALUES:,}")
        self._skip(len(self._open))
        self.is_skipped = not self.is_cut
        self.is_cut = True

    def _skip(self, depth: int) -> None:
        """To where as many objects and arrays are closed as are opened from here on, and so many more."""
        while match := _SHAPE.search(self.text, self.at, self._end):
            self.at = match.end()
            sign = match.group()
            if sign == "\n":
                if self._begins_row(self.at):
                    self._end = self.at = match.start()
                    break
                continue
            depth += 1 if sign in "{[" else -1 if sign in "}]" else 0
            if depth == 0:
                return
        self.at = self._end
        self.is_cut = True

    def _fault(self, code: str, offset: int, found: str = "", expected: str = "") -> None:
        if code in _ONCE:
            if code in self._said:
                return
            self._said.add(code)
        if len(self.faults) < MOST_FAULTS or code in _ONCE:
            self.faults.append(Fault(code, offset, found, expected))

    def _ahead(self, place: int | None = None) -> str:
        start = self.at if place is None else place
        return re.split(r"[\n,:}\]]", self.text[start : start + 30], maxsplit=1)[0] or self.text[start : start + 1]


def _short(text: str, longest: int = 40) -> str:
    """A piece of the file in a message: printable, on one line."""
    printable = "".join(sign if sign.isprintable() else "\ufffd" for sign in text)
    return printable if len(printable) <= longest else printable[: longest - 1] + "…"
