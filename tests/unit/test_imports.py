"""The control plane starts without the engines: what is heavy is imported by what needs it."""

from __future__ import annotations

import subprocess
import sys

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


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    done = subprocess.run([sys.executable, "-c", SOURCE], capture_output=True, text=True, timeout=100)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["the app []", "the command line []", "options []", "plugins []"]
