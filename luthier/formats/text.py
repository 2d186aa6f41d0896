"""Plain text rows, `{"text": ...}`, for continued pre-training."""

from __future__ import annotations

from luthier.chat.messages import PlainText
from luthier.formats._turns import check_fields, check_tag
from luthier.formats.base import DatasetFormat, Findings, Row, Value
from luthier.records.problems import type_of

_FIELDS = ("text", "tag")


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
        return {name: value for name, value in row.items() if name in _FIELDS}
