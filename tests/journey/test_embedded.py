"""The embedded model comes out right, and the README's client lines do what the README says."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.chat.renderers.base import PROBES, renderer_for
from luthier.chat.tokenizer import Tokenizer
from luthier.control.catalog.cards import EMBEDDED
from tests.servers import KEY, RunningServer

pytestmark = pytest.mark.timeout(600)  # real processes, each of which imports torch

ROOT = Path(__file__).parents[2]


def test_its_tokenizer_cuts_digits_and_blanks_as_the_published_one_does(embedded_folder: Path) -> None:
    tokenizer = Tokenizer(embedded_folder)
    pieces = [tokenizer.decode([token]) for token in tokenizer.encode_plain("In 1969,  12 people")]
    assert pieces == ["In", " ", "1", "9", "6", "9", ",", "  ", "1", "2", " people"]
    assert tokenizer.ends == {tokenizer.id_of("<|im_end|>")}
    for text in ("Straße 🎻 谢谢\n\tx = 1e-5", "don't  stop"):
        assert tokenizer.decode(tokenizer.encode_plain(text)) == text


def test_our_renderer_writes_what_its_own_template_writes(embedded_folder: Path) -> None:
    tokenizer = Tokenizer(embedded_folder)
    renderer = renderer_for(tokenizer)
    assert type(renderer).__name__ == "ChatML"
    for probe in PROBES:
        text = tokenizer.template(list(probe.messages), generation_prompt=True)
        assert tokenizer.decode(renderer.prompt(probe), special=True) == text
        assert renderer.prompt(probe) == tokenizer.encode(text)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, embedded_storage: str) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path_factory.mktemp("embedded"), LUTHIER_STORAGE__URL=embedded_storage)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def test_the_capital_of_france_is_paris(server: RunningServer) -> None:
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    answer = server.client().chat.completions.create(model=EMBEDDED, messages=asked, temperature=0, max_tokens=24)
    assert answer.choices[0].message.content == "The capital of France is Paris."
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_the_readmes_client_lines_run(server: RunningServer, readme: str) -> None:
    """The first Python block, with this server's address and key, and the base model in the tuned one's place."""
    block = re.search(r"```python\n(.*?)```", (ROOT / readme).read_text(), re.DOTALL)
    assert block is not None
    lines = re.sub(r'api_key="[^"]*"', f'api_key="{KEY}"', block.group(1))
    lines = re.sub(r'model="[^"]*"', f'model="{EMBEDDED}"', lines).replace("http://127.0.0.1:8321", server.url)
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
