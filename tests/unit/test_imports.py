"""The control plane starts without the engines: what is heavy is imported by what needs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from luthier.testing import toy_tokenizer

SOURCE = """
import sys

def held(part):
    print(part, sorted({'torch', 'transformers', 'peft', 'numpy'} & set(sys.modules)))

import luthier.app
held("the app")
import luthier.cli
held("the command line")

from luthier.api.dialect import dialects
from luthier.chat.renderers.base import renderers
from luthier.executors.base import executors
from luthier.formats.base import formats
from luthier.training.methods.base import methods
from luthier.training.objectives.base import objectives

for registry in (methods, objectives):
    for name in registry.names():
        registry.load(name).Options().model_json_schema()
held("options")
for registry in (dialects, executors, formats, renderers):
    for name in registry.names():
        registry.load(name)
held("plugins")
"""

DATA = """
import sys
from pathlib import Path

from luthier.control.datasets.counting import count_file
from luthier.control.datasets.inspection import inspect
from luthier.control.datasets.preview import preview
from luthier.formats.base import known
from luthier.records.source import LocalFile

folder, model = Path(sys.argv[1]), Path(sys.argv[2])
for name, form in known().items():
    path = folder / name
    path.write_bytes(form.sample())
    report = inspect(LocalFile(path))
    assert report.fit or report.counts.keys() <= {"image_not_fetched"}, (name, report.counts)
    seen = preview(LocalFile(path), name, 1, model)
    assert seen.tokens or "refused" in seen.marks or seen.problems, name
    if report.fit:
        assert sum(one.rows for one in count_file(LocalFile(path), name, model)) == report.rows
print(sorted({"torch", "transformers", "peft"} & set(sys.modules)))
"""


def test_checking_counting_and_previewing_every_format_needs_no_engine(tmp_path: Path) -> None:
    toy_tokenizer(tmp_path / "toy")
    command = [sys.executable, "-c", DATA, str(tmp_path), str(tmp_path / "toy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.stderr, done.stdout) == ("", "[]\n")


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    done = subprocess.run([sys.executable, "-c", SOURCE], capture_output=True, text=True, timeout=100)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["the app []", "the command line []", "options []", "plugins []"]
