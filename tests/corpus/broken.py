"""Broken files as people report them, each with every problem that the check must find and whether the repair can mend it."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass

Place = tuple[int | None, int | None, int | None, str]
"""Row, line and column, from 1, and the code."""


@dataclass(frozen=True)
class Broken:
    name: str
    text: str | bytes
    problems: list[Place]
    is_repairable: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def data(self) -> bytes:
        return self.text if isinstance(self.text, bytes) else self.text.encode("utf-8", "surrogateescape")


ASK = '{"role": "user", "content": "Hi"}'
SAY = '{"role": "assistant", "content": "Hello"}'
CALL = '{"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}'
TOOLS = '"tools": [{"type": "function", "function": {"name": "look"}}]'
GOOD = f'{{"messages": [{ASK}, {SAY}]}}'
JPEG = (
    "data:image/jpeg;base64,/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAP///////////////////////////////////////////////////////////"
    "///////////////////////////wAALCAAIAAgBAREA/8QAFAABAAAAAAAAAAAAAAAAAAAAAP/EABQQAQAAAAAAAAAAAAAAAAAAAAD/2gAIAQEAAD8AP//Z"
)


def zipped(*names, method=zipfile.ZIP_STORED, rows="<xml/>", mode=0):
    """An archive of these names, all with the same text; the last one is of that mode."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", method) as archive:
        for name in names:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16 if name == names[-1] else 0
            archive.writestr(info, rows, method)
    return whole.getvalue()


def whole(*codes):
    """Problems of a file as a whole."""
    return [(None, None, None, code) for code in codes]


FUNCTIONS = """{
  "messages": [
    {"role": "system", "content": "You book repairs for a workshop."},
    {"role": "user", "content": "Can you rehair my bow on Friday?"},
    {
      "role": "assistant",
      "tool_calls": [
        {
          "id": "call_7",
          "type": "function",
          "function": {
            "name": "find_slot",
            "arguments": "{\\"service\\": \\"rehair\\", \\"day\\": \\"2027-03-05\\"}"
          }
        },
      ]
    },
    {"role": "tool", "content": "10:30", "tool_call_id": "call_7"}
    {"role": "user", "content": "Good, book it."},
  ],
  "tools": [
    {
      "type": "function",
      "function": {
        "name": "find_slot",
        "description": "Find a free appointment.",
        "parameters": {
          "type": "object",
          "properties": {"service": {"type": "string"}, "day": {"type": "string"}},
          "required": ["service"]
        }
      }
    }
  ]
}
"""


def chat(*turns, more=""):
    return f'{{"messages": [{", ".join(turns)}]{more}}}'


def called(call, *after):
    return chat(ASK, f'{{"role": "assistant", "tool_calls": [{call}]}}', *after, more=f", {TOOLS}")


def image(url, n=1):
    return ", ".join([f'{{"type": "image_url", "image_url": {{"url": "{url}"}}}}'] * n)


def pair(prompt, chosen, rejected):
    return f'{{"messages": [{prompt}], "chosen": {chosen}, "rejected": {rejected}}}'


PRETTY = json.dumps(json.loads(GOOD), indent=2)
ANSWERED = '{"role": "tool", "tool_call_id": "c1", "content": "{}"}'

BROKEN = [
    # notation of whole files
    Broken("nothing", "", [(None, None, None, "file_empty")]),
    Broken("only blank lines", "\n \n\r\n", [(None, None, None, "file_empty")]),
    Broken("a text", "Dear all,\nplease find the data below.\n", [(None, 1, 1, "not_json_lines")]),
    Broken("a log", "[2026-01-01 10:00] started\n[2026-01-01 10:01] done\n", [(None, 1, 1, "not_json_lines")]),
    Broken("CSV renamed", "role,content\nuser,Hi\nassistant,Hello\n", [(None, 1, 1, "not_json_lines")]),
    Broken("CSV with numbers", "id,question,answer\n1,Hi,Hello\n", [(None, 1, 1, "not_json_lines")]),
    Broken("YAML", "messages:\n  - role: user\n    content: Hi\n", [(None, 1, 1, "not_json_lines")]),
    Broken("HTML", "<!DOCTYPE html>\n<html></html>\n", [(None, 1, 1, "not_json_lines")]),
    Broken("docx renamed", zipped("[Content_Types].xml", "word/document.xml"), [(None, None, None, "file_type")]),
    Broken("xlsx renamed", zipped("[Content_Types].xml", "xl/workbook.xml"), [(None, None, None, "file_type")]),
    Broken("a broken zip", b"PK\x03\x04\x14\0\x06\0", whole("archive_damaged")),
    Broken("a zip that is cut off", zipped("a.jsonl", "a.jpg")[:-30], whole("archive_damaged")),
    Broken(
        "a zip with a password",
        zipped("a.jsonl").replace(b"PK\1\2\x14\x03\x14\0\0", b"PK\1\2\x14\x03\x14\0\1"),
        whole("archive_encrypted"),
    ),
    Broken("a zip packed by bzip2", zipped("a.jsonl", method=zipfile.ZIP_BZIP2), whole("archive_method")),
    Broken("a zip with a link", zipped("a.jsonl", "a.jpg", mode=0o120777), whole("archive_link")),
    Broken("a zip with a pipe", zipped("a.jsonl", "a.jpg", mode=0o010644), whole("archive_not_a_file")),
    Broken("a zip in a zip", zipped("a.jsonl", "more.zip"), whole("archive_in_archive")),
    Broken("a zip with a text beside", zipped("a.jsonl", "README.md"), whole("archive_other_file")),
    Broken("a zip with a GIF", zipped("a.jsonl", "a.gif"), whole("archive_image_type")),
    Broken("a zip with a folder of images", zipped("a.jsonl", "images/a.jpg"), whole("archive_path")),
    Broken("a zip that leads elsewhere", zipped("a.jsonl", "../a.jpg"), whole("archive_path")),
    Broken("a zip with a name turned around", zipped("a.jsonl", "gpj.\u202ea.jpg"), whole("archive_name")),
    Broken(
        "a zip with names in GBK",
        zipped("a.jsonl", "xxxx.jpg").replace(b"xxxx", "文件".encode("gbk")),
        whole("archive_name_not_utf8"),
    ),
    Broken("a zip with a name twice", zipped("a.jsonl", "a.jpg", "A.JPG"), whole("archive_duplicate")),
    Broken("a zip of images alone", zipped("a.jpg"), whole("archive_no_rows")),
    Broken("a zip of two texts", zipped("a.jsonl", "b.json"), whole("archive_two_row_files")),
    Broken("a zip of rows without images", zipped("a.jsonl", rows=GOOD + "\n"), whole("archive_no_images")),
    Broken(
        "a bomb",
        zipped("a.jsonl", "a.jpg", method=zipfile.ZIP_DEFLATED, rows="\0" * (10 * 1024**2 + 1)),
        whole("archive_bomb", "archive_bomb", "archive_bomb", "archive_image_too_large"),
    ),
    Broken("xls renamed", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(64), [(None, None, None, "file_type")]),
    Broken("parquet renamed", b"PAR1\x15\x04\x15\x10", [(None, None, None, "file_type")]),
    Broken("pdf renamed", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", [(None, None, None, "file_type")]),
    Broken("gzip renamed", b"\x1f\x8b\x08\0\0\0\0\0", [(None, None, None, "file_type")]),
    Broken("picture renamed", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", [(None, None, None, "file_type")]),
    Broken("UTF-16 with its mark", (GOOD + "\n").encode("utf-16"), [(None, 1, 1, "utf16")], is_repairable=True),
    Broken("UTF-16 without its mark", (GOOD + "\n").encode("utf-16-le"), [(None, 1, 1, "utf16")], is_repairable=True),
    Broken("zeros", bytes(100), [(None, 1, 1, "not_json_lines")]),
    Broken(
        "byte order mark", b"\xef\xbb\xbf" + f"{GOOD}\n".encode(), [(None, 1, 1, "byte_order_mark")], is_repairable=True
    ),
    Broken(
        "byte order mark in the middle", f"{GOOD}\n\ufeff{GOOD}\n", [(2, 2, 1, "byte_order_mark")], is_repairable=True
    ),
    Broken("CRLF", f"{GOOD}\r\n{chat(ASK)}\r\n", [(2, 2, 14, "no_assistant")]),
    Broken(
        "GBK",
        '{"messages": [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "好"}]}\n'.encode("gbk"),
        [(1, 1, 44, "not_utf8")],
    ),
    Broken(
        "one array", f"[{GOOD},\n {GOOD}]\n", [(None, 1, 1, "json_array")], is_repairable=True, warnings=("duplicates",)
    ),
    Broken(
        "one array on one line",
        f"[{GOOD}, {GOOD}]",
        [(None, 1, 1, "json_array")],
        is_repairable=True,
        warnings=("duplicates",),
    ),
    Broken(
        "an array cut off",
        f"[\n{GOOD},\n{GOOD[:50]}",
        [(None, 1, 1, "json_array"), (None, 1, 1, "unclosed"), (2, 3, 50, "unclosed")],
    ),
    Broken(
        "text after an array",
        f"[{GOOD},\n{GOOD}] and more\n{GOOD}\n",
        [(None, 1, 1, "json_array"), (None, 2, 95, "text_after_record")],
        warnings=("duplicates",),
    ),
    Broken(
        "bare arrays",
        f"[{ASK}, {SAY}]\n[{ASK}, {SAY}]\n",
        [(1, 1, 1, "not_an_object"), (2, 2, 1, "not_an_object")],
        warnings=("duplicates",),
    ),
    Broken(
        "commas between records",
        f"{GOOD},\n{GOOD},\n{GOOD}\n",
        [(1, 1, 93, "comma_after_record"), (2, 2, 93, "comma_after_record")],
        is_repairable=True,
        warnings=("duplicates",),
    ),
    Broken(
        "two records on a line",
        f"{GOOD}{GOOD}\n{GOOD} {GOOD}\n",
        [(1, 1, 93, "shares_line"), (3, 2, 94, "shares_line")],
        is_repairable=True,
        warnings=("duplicates",),
    ),
    Broken(
        "pretty-printed",
        f"{PRETTY}\n{PRETTY}\n",
        [(1, 1, 1, "several_lines"), (2, 13, 1, "several_lines")],
        is_repairable=True,
        warnings=("duplicates",),
    ),
    Broken(
        "pretty-printed, with a fault",
        PRETTY.replace('"Hi"\n', '"Hi",\n') + "\n" + GOOD,
        [(1, 1, 1, "several_lines"), (1, 5, 22, "trailing_comma")],
        is_repairable=True,
    ),
    # notation of rows
    Broken("single quotes", GOOD.replace('"', "'"), [(1, 1, 2, "single_quotes")], is_repairable=True),
    Broken(
        "curly quotes",
        GOOD.replace('": ', "”: ").replace(' "', " “").replace('{"', "{“").replace('",', "”,").replace('"}', "”}"),
        [(1, 1, 2, "single_quotes")],
        is_repairable=True,
    ),
    Broken(
        "Python's repr",
        repr(
            {
                "messages": [
                    {"role": "user", "content": "It's on?"},
                    {"role": "assistant", "content": "Yes", "weight": None},
                ],
                "x": True,
            }
        ),
        [
            (1, 1, 2, "single_quotes"),
            (1, 1, 106, "python_literal"),
            (1, 1, 106, "bad_weight"),
            (1, 1, 114, "field_unread"),
            (1, 1, 119, "python_literal"),
        ],
    ),
    Broken(
        "trailing commas",
        chat(ASK, SAY[:-1] + ",}", more=",")[:-2] + ",}",
        [(1, 1, 90, "trailing_comma"), (1, 1, 93, "trailing_comma")],
        is_repairable=True,
    ),
    Broken("missing comma", GOOD.replace('"user", ', '"user" '), [(1, 1, 31, "missing_comma")], is_repairable=True),
    Broken(
        "missing comma between messages", GOOD.replace("}, {", "} {"), [(1, 1, 49, "missing_comma")], is_repairable=True
    ),
    Broken(
        "missing colon",
        GOOD.replace('"role": "user"', '"role" "user"'),
        [(1, 1, 23, "missing_colon")],
        is_repairable=True,
    ),
    Broken(
        "keys without quotes",
        '{messages: [{role: "user", content: "Hi"}, {role: "assistant", content: "Hello"}]}',
        [(1, 1, 2, "key_not_quoted")],
        is_repairable=True,
    ),
    Broken(
        "quotes not escaped",
        GOOD.replace("Hello", 'He said "well" and left'),
        [(1, 1, 92, "quote_not_escaped"), (1, 1, 97, "quote_not_escaped")],
        is_repairable=True,
    ),
    Broken(
        "line break in a text",
        GOOD.replace("Hello", "Hel\nlo") + "\n" + GOOD,
        [(1, 1, 1, "several_lines"), (1, 1, 87, "line_break_in_string")],
        is_repairable=True,
    ),
    Broken("tab in a text", GOOD.replace("Hello", "Hel\tlo"), [(1, 1, 87, "control_character")], is_repairable=True),
    Broken("a Windows path", GOOD.replace("Hello", "C:\\data"), [(1, 1, 86, "bad_escape")], is_repairable=True),
    Broken("comments", f"// my data\n{GOOD} # good\n", [(None, 1, 1, "comment"), (1, 2, 94, "text_after_record")]),
    Broken("a comment within a row", GOOD.replace("[", "[ /* ask */ "), [(1, 1, 16, "comment")], is_repairable=True),
    Broken(
        "closing quote forgotten",
        GOOD.replace('Hello"', "Hello") + "\n" + GOOD,
        [(1, 1, 83, "unclosed_string")],
        is_repairable=True,
    ),
    Broken("a cut last line", f"{GOOD}\n{GOOD[:60]}", [(2, 2, 59, "unclosed")]),
    Broken(
        "a cut line in the middle", f"{GOOD}\n{GOOD[:60]}\n{GOOD}\n", [(2, 2, 59, "unclosed")], warnings=("duplicates",)
    ),
    Broken("a bracket missing", GOOD.replace("}]}", "}}"), [(1, 1, 91, "wrong_closer")]),
    Broken("NUL", GOOD.replace("Hi", "H\\u0000i"), [(1, 1, 45, "nul")]),
    Broken("a raw NUL", GOOD.replace("Hi", "H\0i"), [(1, 1, 45, "nul")]),
    Broken("half a surrogate pair", GOOD.replace("Hi", "\\ud83d"), [(1, 1, 44, "half_surrogate")]),
    Broken(
        "a key twice",
        GOOD.replace('"content": "Hi"', '"content": "Hi", "content": "Ho"'),
        [(1, 1, 49, "duplicate_key")],
    ),
    Broken(
        "a key twice, escaped",
        GOOD.replace('"role": "user"', '"role": "user", "\\u0072ole": "user"'),
        [(1, 1, 32, "duplicate_key")],
    ),
    Broken("NaN", GOOD.replace('"Hi"', "NaN"), [(1, 1, 43, "not_a_number"), (1, 1, 43, "wrong_type")]),
    Broken(
        "a number of 500 digits",
        GOOD[:-1] + ', "tag": ' + "7" * 500 + "}",
        [(1, 1, 101, "number_too_long"), (1, 1, 101, "wrong_type")],
    ),
    Broken("too deep", GOOD[:-1] + ', "tag": ' + "[" * 70 + "]" * 70 + "}", [(1, 1, 164, "too_deep")]),
    # rows of other tools
    Broken(
        "Alpaca",
        '{"instruction": "Say hello", "input": "", "output": "Hello"}\n',
        [(1, 1, 1, "other_rows")],
        is_repairable=True,
    ),
    Broken(
        "ShareGPT",
        '{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}\n',
        [(1, 1, 1, "other_rows")],
        is_repairable=True,
    ),
    Broken(
        "prompt and completion",
        '{"prompt": "Hi", "completion": "Hello"}\n',
        [(1, 1, 1, "other_rows")],
        is_repairable=True,
    ),
    Broken(
        "question and answer", '{"question": "Hi", "answer": "Hello"}\n', [(1, 1, 1, "other_rows")], is_repairable=True
    ),
    Broken(
        "functions as OpenAI wrote them before tools",
        chat(
            ASK,
            '{"role": "assistant", "content": null, "function_call": {"name": "look", "arguments": "{}"}}',
            '{"role": "function", "name": "look", "content": "A door."}',
            SAY,
            more=', "functions": [{"name": "look", "parameters": {"type": "object", "properties": {}}}]',
        ),
        [(1, 1, 1, "other_rows")],
        is_repairable=True,
    ),
    Broken(
        "functions of both kinds in one row",
        chat(ASK, SAY, more=f', "functions": [], {TOOLS}'),
        [(1, 1, 1, "other_rows_more")],
    ),
    Broken(
        "Alpaca without an answer",
        '{"instruction": "Say hello", "input": "", "output": ""}\n',
        [(1, 1, 1, "other_rows_wrong")],
    ),
    Broken("no known field", '{"id": 7, "data": "Hi"}\n', [(1, 1, 1, "format_unknown")]),
    Broken("a misspelled field", GOOD.replace("messages", "mesages"), [(1, 1, 2, "misspelled_field")]),
    Broken("numbers", "1\n2\n", [(None, 1, 1, "not_json_lines")]),
    Broken("a number among rows", f"{GOOD}\n17\nnull\n", [(2, 2, 1, "not_an_object"), (3, 3, 1, "not_an_object")]),
    Broken("a None among rows", f"{GOOD}\nNone\n", [(2, 2, 1, "python_literal"), (2, 2, 1, "not_an_object")]),
    Broken("two formats in one row", chat(ASK, SAY, more=', "text": "Hi"'), [(1, 1, 1, "format_ambiguous")]),
    Broken(
        "mixed formats", f'{GOOD}\n{{"text": "Hi"}}\n{GOOD}\n', [(2, 2, 1, "format_mixed")], warnings=("duplicates",)
    ),
    # conversations
    Broken("messages is a text", '{"messages": "Hi"}', [(1, 1, 14, "wrong_type")]),
    Broken("no messages at all", '{"messages": []}', [(1, 1, 14, "no_user"), (1, 1, 14, "no_assistant")]),
    Broken("a message is a text", chat(ASK, '"Hello"'), [(1, 1, 50, "wrong_type")]),
    Broken("unknown field", chat(ASK, SAY, more=', "id": 7'), [(1, 1, 94, "unknown_field")], is_repairable=True),
    Broken("a field that may matter", chat(ASK, SAY, more=', "documents": ["x"]'), [(1, 1, 94, "field_unread")]),
    Broken(
        "instruction rows with a field that would be lost",
        '{"instruction": "Say hello", "context": "It is morning.", "output": "Hello"}\n',
        [(1, 1, 1, "other_rows_more")],
    ),
    Broken("content null", chat('{"role": "user", "content": null}', SAY), [(1, 1, 43, "wrong_type")]),
    Broken("content missing", chat('{"role": "user"}', SAY), [(1, 1, 15, "missing_field")]),
    Broken("content a number", chat('{"role": "user", "content": 5}', SAY), [(1, 1, 43, "wrong_type")]),
    Broken("role missing", chat('{"content": "Hi"}', SAY), [(1, 1, 15, "missing_field")]),
    Broken(
        "human and gpt",
        chat('{"role": "human", "content": "Hi"}', '{"role": "gpt", "content": "Hello"}'),
        [(1, 1, 24, "role_word"), (1, 1, 60, "role_word")],
        is_repairable=True,
    ),
    Broken(
        "developer",
        chat('{"role": "developer", "content": "Be kind"}', ASK, SAY),
        [(1, 1, 24, "role_word")],
        is_repairable=True,
    ),
    Broken("an unknown role", chat('{"role": "narrator", "content": "Hi"}', ASK, SAY), [(1, 1, 24, "unknown_role")]),
    Broken(
        "two systems",
        chat('{"role": "system", "content": "A"}', '{"role": "system", "content": "B"}', ASK, SAY),
        [(1, 1, 60, "system_twice")],
    ),
    Broken(
        "system in the middle", chat(ASK, '{"role": "system", "content": "B"}', SAY), [(1, 1, 59, "system_not_first")]
    ),
    Broken(
        "only a system", chat('{"role": "system", "content": "B"}'), [(1, 1, 14, "no_user"), (1, 1, 14, "no_assistant")]
    ),
    Broken("no assistant", chat(ASK), [(1, 1, 14, "no_assistant")]),
    Broken("no user", chat(SAY), [(1, 1, 14, "no_user")]),
    Broken("an empty answer", chat(ASK, '{"role": "assistant", "content": " "}'), [(1, 1, 83, "empty_answer")]),
    Broken("an empty question", chat('{"role": "user", "content": ""}', SAY), [(1, 1, 43, "empty_text")]),
    Broken("only weight 0", chat(ASK, SAY[:-1] + ', "weight": 0}'), [(1, 1, 14, "nothing_trained")]),
    Broken(
        "a weight of one half",
        chat(ASK, SAY[:-1] + ', "weight": 0.5}', SAY),
        [(1, 1, 102, "bad_weight")],
        warnings=("same_role_twice",),
    ),
    Broken("a weight of the user", chat(ASK[:-1] + ', "weight": 1}', SAY), [(1, 1, 49, "weight_of_others")]),
    Broken(
        "everything at once",
        chat(
            '{"role": "human", "content": 1}',
            '{"role": "assistant", "content": ""}',
            '{"role": "system", "content": "x"}',
        ),
        [(1, 1, 24, "role_word"), (1, 1, 44, "wrong_type"), (1, 1, 81, "empty_answer"), (1, 1, 95, "system_not_first")],
    ),
    # functions
    Broken(
        "three faults of the published sample",
        FUNCTIONS,
        [
            (1, 1, 1, "several_lines"),
            (1, 15, 10, "trailing_comma"),
            (1, 19, 5, "missing_comma"),
            (1, 19, 50, "trailing_comma"),
        ],
        is_repairable=True,
        warnings=("ends_with_user",),
    ),
    Broken(
        "arguments as an object",
        called(CALL.replace('"{}"', '{"at": "x"}'), ANSWERED, SAY),
        [(1, 1, 162, "arguments_object")],
        is_repairable=True,
    ),
    Broken(
        "a key twice in arguments",
        called(CALL.replace('"{}"', r'"{\"a\": 1, \"a\": 2}"'), ANSWERED, SAY),
        [(1, 1, 162, "duplicate_key")],
    ),
    Broken(
        "U+0000 in arguments",
        called(CALL.replace('"{}"', r'"{\"a\": \"\\u0000\"}"'), ANSWERED, SAY),
        [(1, 1, 162, "nul")],
    ),
    Broken(
        "arguments not JSON", called(CALL.replace('"{}"', '"at=x"'), ANSWERED, SAY), [(1, 1, 162, "arguments_not_json")]
    ),
    Broken("unknown tool name", called(CALL.replace("look", "see"), ANSWERED, SAY), [(1, 1, 141, "unknown_function")]),
    Broken(
        "no tools declared", called(CALL, ANSWERED, SAY).replace(f", {TOOLS}", ""), [(1, 1, 141, "unknown_function")]
    ),
    Broken(
        "tool message without a call", chat(ASK, ANSWERED, SAY, more=f", {TOOLS}"), [(1, 1, 59, "tool_without_call")]
    ),
    Broken(
        "wrong tool_call_id",
        called(CALL, ANSWERED.replace("c1", "c2"), SAY),
        [(1, 1, 94, "unanswered_call"), (1, 1, 205, "unknown_call")],
    ),
    Broken(
        "tool_call_id missing",
        called(CALL, ANSWERED.replace('"tool_call_id": "c1", ', ""), SAY),
        [(1, 1, 172, "missing_field")],
    ),
    Broken(
        "the last of two calls without an answer",
        called(f"{CALL}, {CALL.replace('c1', 'c2')}", ANSWERED),
        [(1, 1, 177, "unanswered_call")],
    ),
    Broken("no answer to a call", called(CALL, SAY), [(1, 1, 94, "unanswered_call")], warnings=("same_role_twice",)),
    Broken(
        "a bad schema",
        called(CALL, ANSWERED, SAY).replace(
            '{"name": "look"}',
            '{"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "text"}}}}',
        ),
        [(1, 1, 347, "bad_schema")],
    ),
    Broken(
        "a schema with a number no processor holds",
        called(CALL, ANSWERED, SAY).replace(
            '{"name": "look"}', '{"name": "look", "parameters": {"type": "object", "maxProperties": -1}}'
        ),
        [(1, 1, 347, "bad_schema")],
    ),
    # preference
    Broken("identical answers", pair(ASK, SAY, SAY), [(1, 1, 149, "same_answers")]),
    Broken(
        "prompt ends with the assistant",
        pair(f"{ASK}, {SAY}", SAY, SAY.replace("Hello", "Ho")),
        [(1, 1, 59, "prompt_ends")],
    ),
    Broken(
        "an answer of weight 0",
        pair(ASK, SAY, SAY.replace("Hello", "Ho")[:-1] + ', "weight": 0}'),
        [(1, 1, 165, "answer_weight")],
    ),
    Broken("rejected missing", f'{{"messages": [{ASK}], "chosen": {SAY}}}', [(1, 1, 1, "missing_field")]),
    Broken(
        "prompt, chosen and rejected as texts",
        '{"prompt": "Hi", "chosen": "Hello", "rejected": "Ho"}',
        [(1, 1, 1, "other_rows")],
        is_repairable=True,
    ),
    Broken(
        "two preferred outputs",
        f'{{"input": {{"messages": [{ASK}]}}, "preferred_output": [{SAY}, {SAY}], "non_preferred_output": [{ASK}]}}',
        [(1, 1, 82, "one_answer"), (1, 1, 204, "unknown_role")],
    ),
    Broken(
        "output of a wrong type",
        f'{{"input": {{"messages": [{ASK}]}}, "preferred_output": "Hello"}}',
        [(1, 1, 1, "missing_field"), (1, 1, 82, "wrong_type")],
    ),
    # images
    Broken(
        "two images", chat(f'{{"role": "user", "content": [{image(JPEG, 2)}]}}', SAY), [(1, 1, 328, "images_too_many")]
    ),
    Broken(
        "base64 without its prefix",
        chat(f'{{"role": "user", "content": [{image("/9j/4AAQSkZJRgABAQ" * 8)}]}}', SAY),
        [(1, 1, 87, "image_prefix")],
    ),
    Broken(
        "a path of the own machine",
        chat(f'{{"role": "user", "content": [{image("C:/my pictures/cat.jpg")}]}}', SAY),
        [(1, 1, 87, "image_url")],
    ),
    Broken(
        "a prefix of another kind",
        chat(f'{{"role": "user", "content": [{image("data:image/gif;base64,R0lG")}]}}', SAY),
        [(1, 1, 87, "image_prefix")],
    ),
    Broken(
        "rows with and without an image",
        chat(f'{{"role": "user", "content": [{image(JPEG)}]}}', SAY) + "\n" + GOOD + "\n",
        [(2, 2, 14, "image_missing")],
    ),
    Broken(
        "image in the answer and the question",
        chat(f'{{"role": "user", "content": [{image(JPEG)}]}}', f'{{"role": "assistant", "content": [{image(JPEG)}]}}'),
        [(1, 1, 364, "image_place"), (1, 1, 364, "images_too_many")],
    ),
    Broken(
        "an unquoted answer",
        GOOD.replace('"Hello"', "Hello, I am here"),
        [(1, 1, 83, "not_json"), (1, 1, 90, "key_not_quoted"), (1, 1, 92, "missing_colon"), (1, 1, 92, "not_json")],
    ),
    Broken(
        "a name, a blank line and no answer",
        chat('{"role": "user", "name": "Ann", "content": "Hi"}') + "\n\n" + GOOD,
        [(1, 1, 14, "no_assistant")],
        warnings=("blank_lines", "name_ignored"),
    ),
    Broken("two calls with one id", called(f"{CALL}, {CALL}", ANSWERED, SAY), [(1, 1, 177, "duplicate_id")]),
    Broken(
        "a function declared twice",
        called(CALL, ANSWERED, SAY).replace("}}]}", '}}, {"type": "function", "function": {"name": "look"}}]}'),
        [(1, 1, 170, "missing_field"), (1, 1, 203, "missing_field"), (1, 1, 429, "duplicate_tool")],
    ),
    Broken(
        "a call in an image row",
        chat(f'{{"role": "user", "content": [{image(JPEG)}]}}', SAY[:-1] + f', "tool_calls": [{CALL}]}}'),
        [(1, 1, 372, "tools_here")],
    ),
]
