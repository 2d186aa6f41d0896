"""Toy tokenizers with the special tokens of families whose own cannot be had here; their templates are our own words."""

from __future__ import annotations

import base64
import importlib.util
import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

GLM_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

QWEN_TEMPLATE = """
{%- set first = messages[0].content if messages[0].role == 'system' else 'Be kind.' %}
{{- '<|im_start|>system\n' + first }}
{%- if tools %}
    {{- '\n\nTools:' }}
    {%- for tool in tools %}{{ '\n' + tool | tojson }}{% endfor %}
{%- endif %}
{{- '<|im_end|>\n' }}
{%- for m in messages %}
    {%- if m.role == 'tool' %}
        {%- if messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
        {{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}
    {%- elif m.role != 'system' or not loop.first %}
        {{- '<|im_start|>' + m.role + '\n' + m.content }}
        {%- for call in m.tool_calls or [] %}
            {{- '\n' if m.content or not loop.first }}
            {{- '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson + '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
"""

GLM4_TEMPLATE = (
    "[gMASK]<sop>{% if tools %}<|system|>\nTools: {{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def toy_qwen(folder: Path, template: str = QWEN_TEMPLATE) -> Path:
    """One token a byte, the markers of ChatML, and those of tool calls, which are words and not special."""
    bare = _bytes()
    _add(bare, CHATML)
    bare.add_tokens([AddedToken(word, special=False, normalized=False) for word in ("<tool_call>", "</tool_call>")])
    return _save(bare, folder, end="<|im_end|>", template=template)


def toy_glm4(folder: Path, template: str | None = GLM4_TEMPLATE) -> Path:
    """One token a byte, and the markers of GLM-4."""
    bare = _bytes()
    _add(bare, ("<|endoftext|>", "[gMASK]", "<sop>", *GLM_ROLES))
    return _save(bare, folder, end="<|endoftext|>", template=template)


def toy_chatglm3(folder: Path) -> Path:
    """Like sentencepiece: a blank before every text, some whole words, letters, and bytes for all else; no template."""
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = ["</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters]
    merges: list[tuple[str, str]] = []
    for word in ("▁Hi", "▁Hello", "▁Be", "▁brief", "▁rain", "▁weather", "▁sop"):
        for length in range(1, len(word)):
            pair = (word[:length], word[length])
            if pair not in merges:
                merges.append(pair)
                vocabulary.append("".join(pair))
    places = {token: place for place, token in enumerate(dict.fromkeys(vocabulary))}
    bare = Tokenizer(models.BPE(vocab=places, merges=merges, byte_fallback=True, fuse_unk=True))
    bare.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bare.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    _add(bare, ("</s>", "[gMASK]", "sop", *GLM_ROLES))
    return _save(bare, folder, end="</s>", template=None)


def has_real_qwen() -> bool:
    """Whether somebody installed the package dashscope, which carries Qwen's vocabulary."""
    return _vocabulary() is not None


def real_qwen(folder: Path) -> Path:
    """Qwen's real vocabulary, under the toy's template."""
    file = _vocabulary()
    assert file is not None
    lines = (line.split() for line in file.read_bytes().splitlines() if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    alphabet = _alphabet()
    spelled = {token: "".join(alphabet[byte] for byte in token) for token in ranks}
    merges = [
        (spelled[left], spelled[right])
        for token, rank in sorted(ranks.items(), key=lambda known: known[1])
        if len(token) > 1 and (pair := _halves(token, rank, ranks))
        for left, right in [pair]
    ]
    bare = Tokenizer(models.BPE(vocab={spelled[token]: rank for token, rank in ranks.items()}, merges=merges))
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
        r"\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    bare.normalizer = normalizers.NFC()
    bare.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bare.decoder = decoders.ByteLevel()
    _add(bare, CHATML)
    return _save(bare, folder, end="<|im_end|>", template=QWEN_TEMPLATE)


def _vocabulary() -> Path | None:
    package = importlib.util.find_spec("dashscope")
    places = (Path(place) for place in (package.submodule_search_locations or [])) if package else ()
    return next((file for place in places if (file := place / "resources/qwen.tiktoken").is_file()), None)


def _halves(token: bytes, rank: int, ranks: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two tokens that are merged into this one, found by merging its bytes as far as lower ranks go."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        best = min(range(len(parts) - 1), key=lambda n: ranks.get(parts[n] + parts[n + 1], rank))
        if ranks.get(parts[best] + parts[best + 1], rank) >= rank:
            return None
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts[0], parts[1]


def _alphabet() -> list[str]:
    """The letter that stands for each byte in a byte-level vocabulary."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = (byte for byte in range(256) if byte not in shown)
    letters = {byte: chr(byte) for byte in shown} | {byte: chr(256 + place) for place, byte in enumerate(hidden)}
    return [letters[byte] for byte in range(256)]


def _bytes() -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bare = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(letters)}, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bare.decoder = decoders.ByteLevel()
    return bare


def _add(bare: Tokenizer, markers: tuple[str, ...]) -> None:
    bare.add_special_tokens([AddedToken(marker, special=True, normalized=False) for marker in markers])


def _save(bare: Tokenizer, folder: Path, *, end: str, template: str | None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    bare.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": end}))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder
