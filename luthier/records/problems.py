"""Everything that can be wrong with a row: a stable code, what it means, what to do, in English and Chinese."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, computed_field

_CHINESE = 1
_GAP = re.compile(r"(?<=[\u4e00-\u9fff”]) (?=[\u4e00-\u9fff“])")
_CJK = re.compile(r"[\u4e00-\u9fff]")
_PHRASE = re.compile(r"\b[A-Za-z]{2,} +[A-Za-z]{2,}\b")
_PLURAL = re.compile(r"\{(found|expected)\} (?:row|image|level|value|byte|digit)s\b")

_WORDS: dict[str, tuple[str, str]] = {
    "object": ("an object", "对象"),
    "array": ("an array", "数组"),
    "string": ("a string", "字符串"),
    "number": ("a number", "数字"),
    "boolean": ("true or false", "true 或 false"),
    "value": ("a value of another type", "其他类型的值"),
    "empty string": ("an empty string", "空字符串"),
    "empty array": ("an empty array", "空数组"),
    "none": ("none", "无"),
    "a key": ("the next key", "下一个键"),
    "a value": ("a value", "一个值"),
    "a key in double quotes": ("a key in double quotes", "带英文双引号的键"),
    "a comma or }": ("a comma or }", "逗号或 }"),
    "a comma or ]": ("a comma or ]", "逗号或 ]"),
    "the end": ("the end", "结尾"),
    "object with messages": ("an object with messages", "包含 messages 的对象"),
    "assistant message": ("an assistant message", "一条 assistant 消息"),
    "array of one assistant message": ("an array of one assistant message", "只含一条 assistant 消息的数组"),
    "one image in the user's message": ("one image in a user's message", "user 消息里的一张图片"),
    "one image in the assistant's message": ("one image in the assistant's message", "assistant 消息里的一张图片"),
    "one image": ("one", "一张"),
    "no image format": ("this format has no images", "这种格式不含图片"),
    "file of an image category": ("a file of an image category", "图片类别的文件"),
    "earlier message": ("it is not in the last message", "不在最后一条消息里"),
    "last message": ("the last message", "最后一条消息"),
    "message of system": ("it is in a system message", "在 system 消息里"),
    "message of user": ("it is in a user's message", "在 user 消息里"),
    "message of assistant": ("it is in an assistant's message", "在 assistant 消息里"),
    "message of tool": ("it is in a tool's message", "在 tool 消息里"),
    "messages of user": ("a user's message", "user 消息"),
    "messages of assistant": ("the assistant's message", "assistant 消息"),
    "a zip archive or an Office document": ("a zip archive or an Office document", "zip 压缩包或 Office 文档"),
    "an Office document": ("an Office document", "Office 文档"),
    "an image": ("an image", "图片"),
    # What a row of a format has, where that is not JSON alone
    '{"messages": [...]} with {"image": "name.jpg"} in a user\'s content, in a zip archive with that image': (
        '{"messages": [...]} with {"image": "name.jpg"} in a user\'s content, in a zip archive with that image',
        '{"messages": [...]}，user 的 content 中含 {"image": "name.jpg"}，并与该图片一起放在 zip 压缩包里',
    ),
    '{"messages": [...]} with one {"type": "image_url", "image_url": {"url": ...}} in a user\'s content': (
        '{"messages": [...]} with one {"type": "image_url", "image_url": {"url": ...}} in a user\'s content',
        '{"messages": [...]}，user 的 content 中含一个 {"type": "image_url", "image_url": {"url": ...}}',
    ),
    # Why a check was stopped
    "The work needed more memory than it may have": ("The work needed more memory than it may have", "内存超出限制"),
    "A fault of the server's own, again and again; its log has the rest": (
        "A fault of the server's own, again and again; its log has the rest",
        "服务器自身多次出错，详见服务器日志",
    ),
    # Why an image was not fetched
    "bad_url": ("its address cannot be read", "地址无法识别"),
    "host_not_allowed": (
        "this server may not fetch from its host; the operator allows hosts with LUTHIER_DATA__IMAGE_HOSTS",
        "本服务器未获准访问该主机，管理员可通过 LUTHIER_DATA__IMAGE_HOSTS 放行",
    ),
    "address_not_allowed": ("its address is not a public one", "地址不是公网地址"),
    "host_unknown": ("its host is not known", "找不到该主机"),
    "certificate_refused": ("the certificate of its host is not valid", "主机的证书无效"),
    "too_many_redirects": ("it is redirected too often", "重定向次数过多"),
    "too_large": ("it is larger than 10 MiB", "超过 10 MiB"),
    "bad_response": ("its host did not answer as it should", "主机的响应不合规范"),
    "connection_failed": ("its host could not be reached", "无法连接主机"),
    "too_slow": ("its host did not answer in time", "主机响应超时"),
    "host_silent": ("its host does not answer, and was given up", "主机没有响应，不再尝试"),
    **{f"status {n}": (f"its host answered with status {n}", f"主机返回状态码 {n}") for n in range(100, 1000)},
    # Why an image cannot be read
    "not_an_image": ("its bytes are no image", "内容不是图片"),
    "image_type_not_allowed": ("it is no still JPEG, PNG or WEBP", "不是静态的 JPEG、PNG 或 WEBP"),
    "image_type_mismatch": ("it is of another type than its prefix says", "实际类型与前缀不符"),
    "image_too_large": ("it is larger than 10 MiB", "超过 10 MiB"),
    "image_too_many_pixels": ("it has more than 40,000,000 pixels", "超过 40,000,000 像素"),
    "image_truncated": ("it is cut off or damaged", "图片数据不完整或已损坏"),
    "image_decoder_failed": ("decoding it takes too long or too much memory", "解码耗时过长或占用内存过多"),
    "image_prefix_missing": ("the prefix of its base64 is wrong", "base64 前缀不正确"),
    "image_base64_invalid": ("what follows its prefix is not base64", "前缀之后不是合法的 base64"),
    "image_entry_damaged": ("it is damaged in the archive", "在压缩包中已损坏"),
    # What of an archive
    "the table of contents": ("its table of contents", "文件目录"),
    "all of it": ("all of it together", "全部内容"),
}
"""What stands for `found` or `expected` in the sentences, English and Chinese; other values stand there as they are."""

_MEASURED = (
    (re.compile(r"The work took longer than ([\d,]+) seconds"), r"处理时间超过 \1 秒"),
    (re.compile(r"The process that does the work ended with status (\S+)"), r"处理进程异常结束（状态 \1）"),
)
"""The same for what holds a number, in Chinese."""

_FROM_FILE = {
    *("not_json_lines", "missing_comma", "missing_colon", "key_not_quoted", "duplicate_key", "python_literal"),
    *("comment", "text_after_record", "misspelled_field", "tag_large", "tag_small"),
}
"""Codes whose `found` is a piece of the file: a key that is called "none" is no word of ours."""

Level = Literal["error", "warning"]
"""An error keeps a file from being trained on; a warning is said and nothing more."""


@dataclass(frozen=True)
class Meaning:
    """What a code says. The sentences may use {found}, {expected} and {field}."""

    en: str
    zh: str
    fix_en: str
    fix_zh: str
    level: Level = "error"
    repairable: bool = False


class Text(BaseModel):
    en: str
    zh: str


def _printable(text: Any) -> Any:
    """Words from a file, cut and without signs that no answer can hold."""
    if not isinstance(text, str):
        return text
    if len(text) > _LONGEST:
        text = text[: _LONGEST - 1] + "…"
    return text if text.isprintable() else "".join(sign if sign.isprintable() else "\ufffd" for sign in text)


_LONGEST = 300  # characters
Words = Annotated[str, BeforeValidator(_printable)]


class Problem(BaseModel):
    """One fault at its place. Lines, columns and rows count from 1, messages from 0; None where a fault has no such place.

    `column` counts characters. `found` and `expected` are values or JSON's own words (object, array, string, number).
    """

    model_config = ConfigDict(frozen=True)

    line: int | None = None
    column: int | None = None
    row: int | None = None
    message_index: int | None = None
    field: Words | None = Field(default=None, description="Path within the row, as messages[2].content.")
    code: str
    found: Words = ""
    expected: Words = ""

    @cached_property
    def meaning(self) -> Meaning:
        return MEANINGS[self.code]

    @property
    def level(self) -> Level:
        return self.meaning.level

    @computed_field
    @property
    def fix(self) -> str:
        return self._said(self.meaning.fix_en)

    @computed_field
    @property
    def text(self) -> Text:
        """The whole, as a person should read it: where, what, and what to do."""
        at_en = ", ".join(
            part
            for part in (
                f"line {self.line}" if self.line else "",
                f"column {self.column}" if self.column else "",
                f"row {self.row}" if self.row else "",
            )
            if part
        )
        at_zh = "，".join(
            part
            for part in (
                f"第 {self.line} 行" if self.line else "",
                f"第 {self.column} 列" if self.column else "",
                f"第 {self.row} 条数据" if self.row else "",
            )
            if part
        )
        en = f"{self._said(self.meaning.en)} {self._said(self.meaning.fix_en)}".strip()
        zh = _GAP.sub("", self._said(self.meaning.zh, _CHINESE) + self._said(self.meaning.fix_zh, _CHINESE))
        return Text(en=f"{at_en}: {en}" if at_en else en, zh=f"{at_zh}：{zh}" if at_zh else zh)

    def _said(self, sentence: str, language: int = 0) -> str:
        found = self.found if self.code in _FROM_FILE else _worded(self.found, language)
        expected = _worded(self.expected, language)
        if language == _CHINESE:
            found, expected = (f"“{said}”" if _is_foreign(said) else said for said in (found, expected))
        sentence = _PLURAL.sub(lambda thing: thing[0][:-1] if getattr(self, thing[1]) == "1" else thing[0], sentence)
        return sentence.format(found=found, expected=expected, field=self.field or "")


def _worded(value: str, language: int) -> str:
    if value in _WORDS:
        return _WORDS[value][language]
    if language == _CHINESE:
        for pattern, chinese in _MEASURED:
            if (told := pattern.fullmatch(value)) is not None:
                return told.expand(chinese)
    return value


def _is_foreign(said: str) -> bool:
    """Whether a piece of English stands there that nobody translated: of the file, or of a library."""
    return bool(_PHRASE.search(said)) and not said.startswith(('"', "{")) and not _CJK.search(said)


def shown(value: Any, longest: int = 60) -> str:
    """A value as a problem shows it: short, and in JSON's notation where it is short by itself."""
    if isinstance(value, dict | list):
        return type_of(value)
    try:
        text = json.dumps(value, ensure_ascii=False)
    except ValueError:  # a number of more digits than Python writes out
        return type_of(value)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def type_of(value: Any) -> str:
    """JSON's word for the type of a value."""
    names = {dict: "object", list: "array", str: "string", bool: "boolean", int: "number", float: "number"}
    return "null" if value is None else names.get(type(value), "value")


def _fixable(en: str, zh: str, fix_en: str, fix_zh: str) -> Meaning:
    return Meaning(en, zh, f"{fix_en} The repair does it.", f"{fix_zh}可一键修复。", repairable=True)


def _warning(en: str, zh: str, fix_en: str = "", fix_zh: str = "") -> Meaning:
    return Meaning(en, zh, fix_en, fix_zh, level="warning")


MEANINGS: dict[str, Meaning] = {
    # The file as a whole
    "file_empty": Meaning(
        "The file has no rows.", "文件没有数据。", "Put one JSON object on each line.", "每行写一个 JSON 对象。"
    ),
    "file_type": Meaning(
        "This is {found}, not JSON Lines.",
        "这是 {found}，不是 JSON Lines。",
        "Convert it first: upload .jsonl or .json with one JSON object on each line, or a .zip of one such file and its images.",
        "请先转换：上传每行一个 JSON 对象的 .jsonl 或 .json 文件，或由一个这样的文件和图片组成的 .zip。",
    ),
    "not_json_lines": Meaning(
        "The file does not look like JSON Lines; it begins with {found}.",
        "文件不像 JSON Lines，开头是 {found}。",
        "Put one JSON object on each line, as the sample files do.",
        "参照样例文件，每行写一个 JSON 对象。",
    ),
    "utf16": _fixable(
        "The file is UTF-16, and nothing else of it was looked at.",
        "文件编码是 UTF-16，其余内容尚未检查。",
        "Save it as UTF-8, and have it checked again.",
        "请保存为 UTF-8，然后重新检查。",
    ),
    "byte_order_mark": _fixable(
        "There is a byte order mark here.",
        "此处有 BOM。",
        "Save the file as UTF-8 without one.",
        "请把文件保存为不带 BOM 的 UTF-8。",
    ),
    "json_array": _fixable(
        "The file is one JSON array.",
        "整个文件是一个 JSON 数组。",
        "Put each element on a line of its own, without the brackets.",
        "去掉方括号，每个元素单独一行。",
    ),
    "format_unknown": Meaning(
        "This row is of no known format; its fields are {found}.",
        "无法识别这条数据的格式；它的字段是 {found}。",
        "A row has {expected}.",
        "一条数据应有 {expected}。",
    ),
    "misspelled_field": Meaning(
        "This row is of no known format: it has the field {found}.",
        "无法识别这条数据的格式：它有字段 {found}。",
        "If {expected} is meant, write it so.",
        "若指的是 {expected}，请改正。",
    ),
    "format_ambiguous": Meaning(
        "This row could be of each of these formats: {found}.",
        "这条数据可能是以下任何一种格式：{found}。",
        "Leave only the fields of one of them.",
        "请只保留其中一种格式的字段。",
    ),
    "format_mixed": Meaning(
        "This row is of the format {found}; the file is of the format {expected}.",
        "这条数据是 {found} 格式，而文件是 {expected} 格式。",
        "Put them into separate files.",
        "请分成不同的文件。",
    ),
    "category_mismatch": Meaning(
        "The chosen category is {expected}, but the file holds {found}.",
        "选择的类别是 {expected}，而文件内容是 {found}。",
        "Choose the category {found}, or upload another file.",
        "请选择类别 {found}，或上传其他文件。",
    ),
    "check_stopped": Meaning(
        "The check was stopped: {found}.",
        "检查被中止：{found}。",
        "Split the file, or ask the operator to raise the limit.",
        "请拆分文件，或联系管理员提高限制。",
    ),
    # The notation
    "not_json": Meaning(
        "This is not JSON: {found} stands where {expected} was expected.",
        "这不是 JSON：此处应为 {expected}，实际是 {found}。",
        "Write the row as one JSON object on one line.",
        "请把这条数据写成一行 JSON 对象。",
    ),
    "not_an_object": Meaning(
        "A row must be a JSON object, found {found}.",
        "一条数据必须是 JSON 对象，实际是 {found}。",
        "Write {{...}} with the fields of the format.",
        "请写成 {{...}}，并包含该格式的字段。",
    ),
    "several_lines": _fixable(
        "The record spans several lines.", "这条记录占了多行。", "Put each record on one line.", "每条记录只占一行。"
    ),
    "shares_line": _fixable(
        "Another record begins on the same line.",
        "同一行里还有另一条记录。",
        "Put each record on a line of its own.",
        "每条记录单独一行。",
    ),
    "comma_after_record": _fixable(
        "A comma follows the record.",
        "记录后面多了逗号。",
        "Remove it: lines are not separated by commas.",
        "请删除：各行之间不用逗号。",
    ),
    "trailing_comma": _fixable(
        "There is a comma too many before {expected}.",
        "{expected} 前多了一个逗号。",
        "Remove the comma.",
        "请删除这个逗号。",
    ),
    "missing_comma": _fixable(
        "A comma is missing before {found}.", "{found} 前缺少逗号。", "Put a comma there.", "请补上逗号。"
    ),
    "missing_colon": _fixable(
        "A colon is missing after the key {found}.", "键 {found} 后缺少冒号。", "Put a colon there.", "请补上冒号。"
    ),
    "single_quotes": _fixable(
        "Texts stand in {found}, but JSON knows only straight double quotes.",
        "文本使用了 {found}，而 JSON 只用英文双引号。",
        'Write "...".',
        '请写成 "..."。',
    ),
    "key_not_quoted": _fixable(
        "The key {found} has no quotes.", "键 {found} 没有引号。", "Put it in double quotes.", "请加英文双引号。"
    ),
    "python_literal": _fixable(
        "{found} is not JSON.", "{found} 不是 JSON。", "Write {expected}.", "请写成 {expected}。"
    ),
    "comment": _fixable(
        "JSON has no comments, found {found}.", "JSON 没有注释，发现 {found}。", "Remove it.", "请删除。"
    ),
    "quote_not_escaped": _fixable(
        "A double quote inside a text is not escaped.", "文本中的双引号没有转义。", 'Write \\".', '请写成 \\"。'
    ),
    "line_break_in_string": _fixable(
        "A text goes over the end of the line.",
        "文本中有未转义的换行。",
        "Write a line feed inside a text as \\n.",
        "文本中的换行请写成 \\n。",
    ),
    "control_character": _fixable(
        "A text holds the raw control character {found}.",
        "文本中有未转义的控制字符 {found}。",
        "Write it as {expected}.",
        "请写成 {expected}。",
    ),
    "bad_escape": _fixable(
        "{found} is not an escape of JSON.", "{found} 不是 JSON 转义。", "Write {expected}.", "请写成 {expected}。"
    ),
    "unclosed_string": _fixable(
        "A text has no closing quote.", "文本缺少结束引号。", "Close it with a double quote.", "请补上结束的双引号。"
    ),
    "unclosed": Meaning(
        "The row ends in the middle: the {found} opened here is never closed.",
        "数据在中途结束：此处的 {found} 没有闭合。",
        "It was probably cut off: complete the row or remove it.",
        "这条数据可能被截断，请补全或删除。",
    ),
    "wrong_closer": Meaning(
        "{found} stands where {expected} should close.",
        "此处应由 {expected} 闭合，实际是 {found}。",
        "Write {expected}.",
        "请写成 {expected}。",
    ),
    "text_after_record": Meaning(
        "After the record comes {found}.",
        "记录之后还有 {found}。",
        "Leave one JSON object on the line and nothing else.",
        "一行只保留一个 JSON 对象。",
    ),
    "not_a_number": Meaning(
        "{found} is not a number of JSON.",
        "{found} 不是 JSON 数字。",
        "Write a number, a text or null.",
        "请写数字、字符串或 null。",
    ),
    "number_too_long": Meaning(
        "A number of {found} digits cannot be read.",
        "无法读取有 {found} 位的数字。",
        "Write it with at most {expected} digits, or as a text.",
        "最多 {expected} 位，或写成字符串。",
    ),
    "duplicate_key": Meaning(
        "The key {found} stands twice in one object.",
        "同一个对象里键 {found} 出现了两次。",
        "Keep one of them.",
        "只保留其中一个。",
    ),
    "too_deep": Meaning(
        "The row is nested deeper than {expected} levels.", "嵌套超过 {expected} 层。", "Flatten it.", "请减少嵌套。"
    ),
    "too_many_values": Meaning(
        "The record has more than {expected} values.", "这条数据超过 {expected} 个值。", "Split it.", "请拆分。"
    ),
    "record_too_long": Meaning(
        "The record is longer than {expected} bytes.",
        "记录超过 {expected} 字节。",
        "Shorten it, or put images into an archive.",
        "请缩短，或把图片放入压缩包。",
    ),
    "not_utf8": Meaning(
        "The bytes {found} are not UTF-8.",
        "字节 {found} 不是 UTF-8。",
        "The file may be in another encoding, such as GBK: save it as UTF-8.",
        "文件可能是 GBK 等其他编码，请另存为 UTF-8。",
    ),
    "half_surrogate": Meaning(
        "{found} is half of a surrogate pair, which no text can hold.",
        "{found} 是半个代理对，不是合法文本。",
        "Write the whole pair or remove it.",
        "请写完整的代理对或删除。",
    ),
    "nul": Meaning(
        "A text holds the character U+0000 (NUL).", "文本中有字符 U+0000（NUL）。", "Remove it.", "请删除。"
    ),
    # Rows
    "missing_field": Meaning("{field} is missing.", "缺少 {field}。", "Add it ({expected}).", "请添加（{expected}）。"),
    "wrong_type": Meaning(
        "{field} must be {expected}, found {found}.",
        "{field} 应为 {expected}，实际是 {found}。",
        "Change its value.",
        "请修改它的值。",
    ),
    "unknown_field": _fixable(
        "{field} is not a field of this format.",
        "{field} 不是这种格式的字段。",
        "Remove it; known here: {expected}.",
        "请删除；可用字段：{expected}。",
    ),
    "field_unread": Meaning(
        "{field} is not a field of this format, and it may matter.",
        "{field} 不是这种格式的字段，但可能有用。",
        "Write what it says into the fields that are known here ({expected}), or remove it.",
        "请把内容写进可用字段（{expected}），或删除它。",
    ),
    "other_rows_more": Meaning(
        "This is a row of the {found} kind with more than can be taken over: {expected}.",
        "这是 {found} 形式的数据，但有无法自动转换的字段：{expected}。",
        'Write it as {{"messages": [...]}}.',
        '请改写为 {{"messages": [...]}}。',
    ),
    "other_rows_wrong": Meaning(
        "This is a row of the {found} kind, and as a row of ours it would be wrong: {expected}.",
        "这是 {found} 形式的数据，转换后仍有问题：{expected}。",
        "Put that right in the row.",
        "请先改正这条数据。",
    ),
    "other_rows": _fixable(
        "This is a row of the {found} kind.",
        "这是 {found} 形式的数据。",
        'Write it as {{"messages": [...]}}.',
        '请改写为 {{"messages": [...]}}。',
    ),
    "role_word": _fixable(
        "{field} is {found}; that role is called {expected} here.",
        "{field} 是 {found}；这里该角色叫 {expected}。",
        "Write {expected}.",
        "请写成 {expected}。",
    ),
    "unknown_role": Meaning(
        "{field} is {found}; allowed here: {expected}.",
        "{field} 是 {found}；这里允许：{expected}。",
        "Use a role that is allowed.",
        "请使用允许的角色。",
    ),
    "system_twice": Meaning(
        "There are two system messages.",
        "有两条 system 消息。",
        "Join them into one, at the start.",
        "请合并为一条，放在开头。",
    ),
    "system_not_first": Meaning(
        "A system message must be the first.", "system 消息必须在最前面。", "Move it to the start.", "请移到开头。"
    ),
    "no_user": Meaning(
        "There is no user turn.",
        "没有 user 消息。",
        "Add what the user says before the answer.",
        "请在回答前添加 user 消息。",
    ),
    "no_assistant": Meaning(
        "There is no assistant turn, so there is nothing to learn.",
        "没有 assistant 消息，没有可训练的内容。",
        "Add the expected output.",
        "请添加期望的输出。",
    ),
    "empty_answer": Meaning(
        "{field} is empty: an answer must say what is to be learned.",
        "{field} 为空：回答必须有要学习的内容。",
        "Write the answer or remove the row.",
        "请填写回答或删除这条数据。",
    ),
    "empty_text": Meaning(
        "{field} is empty.", "{field} 为空。", "Write a text or remove the row.", "请填写文本或删除这条数据。"
    ),
    "nothing_trained": Meaning(
        "Every answer has weight 0, so there is nothing to learn.",
        "所有回答的 weight 都是 0，没有可训练的内容。",
        "Give one of them weight 1.",
        "请把其中一条的 weight 设为 1。",
    ),
    "bad_weight": Meaning(
        "{field} must be 0 or 1, found {found}.",
        "{field} 只能是 0 或 1，实际是 {found}。",
        "Write 0 or 1, or leave it out.",
        "请写 0 或 1，或删除该字段。",
    ),
    "weight_of_others": Meaning(
        "{field}: only an assistant's message has a weight.",
        "{field}：只有 assistant 消息可以有 weight。",
        "Remove it.",
        "请删除。",
    ),
    "answer_weight": Meaning(
        "{field} is {found}, but both answers of a preference are learned from.",
        "{field} 是 {found}，但偏好数据的两个回答都参与训练。",
        "Leave it out, or remove the row.",
        "请删除该字段，或删除这条数据。",
    ),
    # Functions
    "arguments_object": _fixable(
        "{field} must be a string that holds JSON, found an object.",
        "{field} 应为内含 JSON 的字符串，实际是对象。",
        "Write the object as a string.",
        "请把对象写成字符串。",
    ),
    "arguments_not_json": Meaning(
        "{field} must be a string that holds a JSON object, found {found}.",
        "{field} 应为内含 JSON 对象的字符串，实际是 {found}。",
        'Write for example "{{\\"city\\": \\"Paris\\"}}".',
        '例如 "{{\\"city\\": \\"Paris\\"}}"。',
    ),
    "unknown_function": Meaning(
        "{field} calls {found}, which is not among the tools: {expected}.",
        "{field} 调用的 {found} 不在 tools 中：{expected}。",
        "Declare the function in tools, or correct the name.",
        "请在 tools 中声明，或改正名称。",
    ),
    "unknown_call": Meaning(
        "{field} answers the call {found}, which no earlier message makes.",
        "{field} 对应的调用 {found} 在前面的消息中不存在。",
        "Use the id of an earlier call: {expected}.",
        "请使用前面某个调用的 id：{expected}。",
    ),
    "unanswered_call": Meaning(
        "The call {found} has no tool message that answers it.",
        "调用 {found} 没有对应的 tool 消息。",
        "Add a tool message with that tool_call_id before the next turn.",
        "请在下一轮之前添加带该 tool_call_id 的 tool 消息。",
    ),
    "duplicate_id": Meaning(
        "The id {found} is used twice.",
        "id {found} 重复。",
        "Give each call an id of its own.",
        "每个调用的 id 必须唯一。",
    ),
    "duplicate_tool": Meaning(
        "The function {found} is declared twice.",
        "函数 {found} 重复声明。",
        "Keep one declaration.",
        "只保留一个声明。",
    ),
    "bad_schema": Meaning(
        "{field} is no valid JSON schema: {found}.",
        "{field} 不是合法的 JSON schema：{found}。",
        'It must be {{"type": "object", "properties": {{...}}}}.',
        '应为 {{"type": "object", "properties": {{...}}}}。',
    ),
    "tool_without_call": Meaning(
        "A tool message must follow an assistant's tool_calls.",
        "tool 消息前必须有 assistant 的 tool_calls。",
        "Put the assistant's call before it.",
        "请在前面加上 assistant 的调用。",
    ),
    "tools_here": Meaning(
        "{field} belongs to function calling, which this format does not know.",
        "{field} 属于函数调用，这种格式不支持。",
        "Remove it.",
        "请删除。",
    ),
    # Preference
    "same_answers": Meaning(
        "The preferred and the rejected answer are the same.",
        "两个回答相同。",
        "They must differ; remove the row otherwise.",
        "两者必须不同，否则请删除这条数据。",
    ),
    "one_answer": Meaning(
        "{field} must hold exactly one assistant message, found {found}.",
        "{field} 必须正好有一条 assistant 消息，实际是 {found}。",
        "Leave one.",
        "请只保留一条。",
    ),
    "prompt_ends": Meaning(
        "The conversation must end with a user turn, found {found}.",
        "对话必须以 user 消息结尾，实际是 {found}。",
        "Put the answers into the two outputs.",
        "请把回答放到两个输出里。",
    ),
    # Images
    "image_missing": Meaning(
        "There is no image; this category takes {expected}.",
        "没有图片；该类别需要 {expected}。",
        "Add the image.",
        "请添加图片。",
    ),
    "images_too_many": Meaning(
        "There are {found} images; this category takes {expected}.",
        "有 {found} 张图片；该类别需要 {expected}。",
        "Leave one.",
        "请只保留一张。",
    ),
    "image_place": Meaning(
        "{field} is an image in the wrong place: {found}.",
        "{field} 的图片位置不对：{found}。",
        "Move it to {expected}.",
        "请移到 {expected}。",
    ),
    "image_prefix": Meaning(
        "{field} must begin with {expected}; it begins with {found}.",
        "{field} 必须以 {expected} 开头，实际是 {found}。",
        "Write the prefix, then the base64 text.",
        "请写前缀，再接 base64 文本。",
    ),
    "image_url": Meaning(
        "{field} is no address of an image: {found}.",
        "{field} 不是图片地址：{found}。",
        "Use http(s):// or base64.",
        "请使用 http(s):// 或 base64。",
    ),
    "image_not_fetched": Meaning(
        "The image {found} could not be fetched: {expected}.",
        "图片 {found} 无法获取：{expected}。",
        "Embed it as base64, or put it into an archive.",
        "请改用 base64，或放入压缩包。",
    ),
    "image_unreachable": Meaning(
        "The image {found} could not be fetched for now: {expected}.",
        "图片 {found} 暂时无法获取：{expected}。",
        "Check the file again later (POST /api/platform/files/{{id}}/check); what was fetched is kept.",
        "请稍后重新检查文件（POST /api/platform/files/{{id}}/check）；已获取的图片会保留。",
    ),
    "image_unreadable": Meaning(
        "The image cannot be read: {found}.",
        "图片无法读取：{found}。",
        "Save it again as JPEG, PNG or WEBP.",
        "请重新保存为 JPEG、PNG 或 WEBP。",
    ),
    "image_by_url": Meaning(
        "The image {found} is given by image_url; in an archive it is called by its name.",
        "图片 {found} 写成了地址；压缩包中的图片应以文件名引用。",
        "Write {expected} in place of the whole part, and put that image into the archive.",
        "请把整个部分改为 {expected}，并把该图片放进压缩包。",
    ),
    "image_not_in_archive": Meaning(
        "There is no image {found} in the archive.",
        "压缩包里没有图片 {found}。",
        "Add it, or correct its name.",
        "请添加，或改正名称。",
    ),
    # Archives
    "archive_damaged": Meaning(
        "The archive is damaged or cut off: {found} cannot be read.",
        "压缩包已损坏或不完整：{found} 无法读取。",
        "Make it again and send the whole file.",
        "请重新打包并完整上传。",
    ),
    "archive_too_large": Meaning(
        "The archive has {found} bytes; at most {expected} are allowed.",
        "压缩包有 {found} 字节，最多允许 {expected} 字节。",
        "Make several of it.",
        "请拆成多个压缩包。",
    ),
    "archive_unpacks_large": Meaning(
        "The archive unpacks to {found} bytes; at most {expected} are allowed.",
        "压缩包解压后有 {found} 字节，最多允许 {expected} 字节。",
        "Make several of it.",
        "请拆成多个压缩包。",
    ),
    "archive_bomb": Meaning(
        "In the archive, {found} unpacks to more than {expected} times its size.",
        "压缩包中 {found} 解压后超过其大小的 {expected} 倍。",
        "Pack it without compression, or leave it out.",
        "请不压缩直接打包，或去掉它。",
    ),
    "archive_too_many": Meaning(
        "The archive has more than {expected} entries, or names that are too long.",
        "压缩包的条目超过 {expected} 个，或名称过长。",
        "Make several of it.",
        "请拆成多个压缩包。",
    ),
    "archive_encrypted": Meaning(
        "In the archive, {found} is encrypted.",
        "压缩包中的 {found} 已加密。",
        "Pack it without a password.",
        "请不要设置密码。",
    ),
    "archive_method": Meaning(
        "In the archive, {found} is packed in a way that is not read here.",
        "压缩包中 {found} 的压缩方式不受支持。",
        "Use deflate, as zip tools do by themselves.",
        "请使用默认的 deflate 方式。",
    ),
    "archive_link": Meaning(
        "In the archive, {found} is a link.",
        "压缩包中的 {found} 是链接。",
        "Put the file itself there.",
        "请放入文件本身。",
    ),
    "archive_not_a_file": Meaning(
        "In the archive, {found} is neither a file nor a folder.",
        "压缩包中的 {found} 既不是文件也不是目录。",
        "Leave it out.",
        "请去掉。",
    ),
    "archive_in_archive": Meaning(
        "In the archive, {found} is an archive itself.",
        "压缩包中的 {found} 也是压缩包。",
        "Put its files beside the others.",
        "请把其中的文件直接放进来。",
    ),
    "archive_other_file": Meaning(
        "In the archive, {found} is neither a file of rows nor an image.",
        "压缩包中的 {found} 既不是数据文件也不是图片。",
        "Leave it out: one .jsonl or .json belongs there, and .jpg, .jpeg, .png and .webp.",
        "请去掉：只应有一个 .jsonl 或 .json，以及 .jpg、.jpeg、.png、.webp 图片。",
    ),
    "archive_image_type": Meaning(
        "In the archive, {found} is an image of a type that is not taken.",
        "压缩包中 {found} 的图片类型不受支持。",
        "Save it as JPEG, PNG or WEBP.",
        "请保存为 JPEG、PNG 或 WEBP。",
    ),
    "archive_image_too_large": Meaning(
        "In the archive, the image {found} has more than {expected} bytes.",
        "压缩包中的图片 {found} 超过 {expected} 字节。",
        "Scale it down.",
        "请缩小图片。",
    ),
    "archive_path": Meaning(
        "In the archive, {found} is a path.",
        "压缩包中的 {found} 带有路径。",
        "Put all files beside the text file, under plain names.",
        "请把所有文件与文本文件放在同一目录，并使用普通文件名。",
    ),
    "archive_name": Meaning(
        "In the archive, the name {found} is too long or holds signs that cannot be seen.",
        "压缩包中的名称 {found} 过长或含有不可见字符。",
        "Rename it.",
        "请重命名。",
    ),
    "archive_name_not_utf8": Meaning(
        "In the archive, the name {found} is not in UTF-8.",
        "压缩包中的名称 {found} 不是 UTF-8。",
        "Pack it with names in UTF-8.",
        "请用 UTF-8 文件名打包。",
    ),
    "archive_duplicate": Meaning(
        "In the archive, the name {found} is there more than once, capitals apart.",
        "压缩包中名称 {found} 重复（不区分大小写）。",
        "Give each file a name of its own.",
        "每个文件名必须唯一。",
    ),
    "archive_no_rows": Meaning(
        "The archive has no file of rows.",
        "压缩包里没有数据文件。",
        "Put one .jsonl or .json beside the images.",
        "请在图片旁放一个 .jsonl 或 .json。",
    ),
    "archive_two_row_files": Meaning(
        "The archive has several files of rows: {found}.",
        "压缩包里有多个数据文件：{found}。",
        "Leave one.",
        "请只保留一个。",
    ),
    "archive_no_images": Meaning(
        "The rows of {found} name no image of the archive.",
        "{found} 中的数据没有引用压缩包里的图片。",
        "Upload {found} itself.",
        "请直接上传 {found}。",
    ),
    # Warnings
    "too_few_rows": _warning(
        "The file has {found} rows; at least {expected} good ones are advised.",
        "文件只有 {found} 条数据，建议至少 {expected} 条高质量数据。",
        "Collect more when the result is poor.",
        "效果不好时请先补充数据。",
    ),
    "blank_lines": _warning("Blank lines were skipped: {found}.", "跳过的空行：{found}。"),
    "duplicates": _warning(
        "Rows that repeat an earlier one exactly: {found}. This one is the same as line {expected}.",
        "与前面完全重复的数据：{found} 条。这一条与第 {expected} 行相同。",
        "Remove them unless the repetition is meant.",
        "若非有意，请删除。",
    ),
    "same_role_twice": _warning(
        "Two {found} turns follow each other.",
        "连续两条 {found} 消息。",
        "They are trained as two turns; join them if one is meant.",
        "会按两轮训练；若本是一条请合并。",
    ),
    "ends_with_user": _warning(
        "The last turn is the user's; nothing is learned from it.", "最后一条是 user 消息，不参与训练。"
    ),
    "name_ignored": _warning("The field name of a message is not used.", "消息的 name 字段不会被使用。"),
    "too_many_tags": _warning(
        "There are more than {found} different tags; the most frequent are listed.",
        "标签种类超过 {found} 种，只列出最常见的。",
        "A tag names a class of rows, not a single one.",
        "标签应表示一类数据，而不是某一条。",
    ),
    "tag_large": _warning(
        "The tag {found} has {expected} of all rows.",
        "标签 {found} 占全部数据的 {expected}。",
        "Balance the classes if that is not meant.",
        "若非有意，请均衡各类数据。",
    ),
    "tag_small": _warning(
        "The tag {found} has only {expected} rows.",
        "标签 {found} 只有 {expected} 条数据。",
        "Add more of it.",
        "请补充。",
    ),
}
