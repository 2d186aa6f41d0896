"""Plain text rows, `{"text": ...}`, for continued pre-training."""

from __future__ import annotations

import msgspec

from luthier.chat.messages import PlainText
from luthier.formats._quick import UNSET, Found, QuickRows
from luthier.formats._turns import check_fields, check_tag, without_harmless
from luthier.formats.base import DatasetFormat, Findings, Quick, Row, Value
from luthier.records.problems import type_of

_FIELDS = ("text", "tag")


class _Plain(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    text: str
    tag: str | msgspec.UnsetType = UNSET


class TextRows(DatasetFormat):
    kind = "text"
    describes = '{"text": ...}'

    @classmethod
    def recognises(cls, row: Row) -> bool:
        return "text" in row

    @classmethod
    def check(cls, row: Row, findings: Findings) -> None:
        check_fields(row, findings, (), _FIELDS)
        check_tag(row, findings)
        text = row.get("text")
        if "text" not in row:
            findings.add("missing_field", ("text",), expected="string")
        elif not isinstance(text, str):
            findings.add("wrong_type", ("text",), found=type_of(text), expected="string")
        elif not text.strip():
            findings.add("empty_text", ("text",))

    @classmethod
    def value(cls, row: Row) -> Value:
        return PlainText(row["text"])

    @classmethod
    def repaired(cls, row: Row) -> Row:
        return without_harmless(row, _FIELDS)

    @classmethod
    def quick(cls) -> Quick:
        return QuickRows(_Plain, _found)


def _found(row: _Plain) -> Found | None:
    if not row.text or row.text.isspace():
        return None
    return Found(2 if row.tag is UNSET else 4, 1, 1, len(row.text), row.tag)
