"""The folder is the registry: found, listed, loaded on demand, and helpful where something is missing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from luthier.core import registry
from luthier.core.errors import InvalidParameter
from luthier.core.registry import MissingLibrary, Registry


class Instrument:
    """The contract of the plugins below."""


class Foreign(Instrument):
    """What an entry point leads to."""


PLUGIN = "from tests_of_registry.base import Instrument\nclass {name}(Instrument): pass\n"


@pytest.fixture
def instruments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry[Instrument]]:
    """A package of plugins: cello and violin, viola as a folder, broken (needs a library), empty, and two that are none."""
    package = tmp_path / "tests_of_registry"
    (package / "viola").mkdir(parents=True)
    files = {
        "__init__": "",
        "base": f"from {__name__} import Instrument\n",
        "cello": PLUGIN.format(name="Cello"),
        "violin": "from tests_of_registry.cello import Cello\nclass Violin(Cello): pass\n",
        "viola/__init__": "from tests_of_registry.viola.body import Viola\n",
        "viola/body": PLUGIN.format(name="Viola"),
        "broken": "import a_library_nobody_has\n",
        "empty": "",
        "_private": "raise RuntimeError\n",
    }
    for name, source in files.items():
        (package / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    registry.points_of.cache_clear()
    yield Registry("tests_of_registry", Instrument, kind="instrument", extra="strings")
    registry.points_of.cache_clear()
    for name in [name for name in sys.modules if name.startswith("tests_of_registry")]:
        del sys.modules[name]


def test_listing_imports_nothing(instruments: Registry[Instrument]) -> None:
    assert instruments.names() == ["broken", "cello", "empty", "viola", "violin"]
    assert "tests_of_registry.cello" not in sys.modules


@pytest.mark.parametrize(("name", "found"), [("cello", "Cello"), ("violin", "Violin"), ("viola", "Viola")])
def test_a_plugin_is_the_one_class_of_its_file_or_folder(instruments, name: str, found: str) -> None:
    assert instruments.load(name).__name__ == found


def test_an_unknown_name_answers_with_the_known_ones_and_the_nearest_spelling(instruments) -> None:
    with pytest.raises(InvalidParameter) as refused:
        instruments.load("violen")
    assert refused.value.param == "instrument"
    assert "known: broken, cello, empty, viola, violin" in refused.value.message
    assert refused.value.hint == "Did you mean 'violin'?"


def test_a_name_like_no_other_gets_no_suggestion(instruments) -> None:
    with pytest.raises(InvalidParameter) as refused:
        instruments.load("xyzzy")
    assert refused.value.hint is None


def test_a_missing_library_is_named_with_the_extra_that_brings_it(instruments) -> None:
    with pytest.raises(MissingLibrary) as missing:
        instruments.load("broken")
    assert "'a_library_nobody_has'" in missing.value.message
    assert "pip install 'luthier[strings]'" in missing.value.text


def test_a_file_without_a_plugin_is_our_fault_and_says_so(instruments) -> None:
    with pytest.raises(TypeError, match="exactly one Instrument, it defines 0"):
        instruments.load("empty")


def test_an_entry_point_adds_a_plugin_but_cannot_shadow_a_file(instruments, monkeypatch) -> None:
    points = [EntryPoint(name, f"{__name__}:Foreign", "luthier.tests_of_registry") for name in ("cello", "harp")]
    monkeypatch.setattr(registry, "entry_points", lambda group: [p for p in points if p.group == group])
    assert "harp" in instruments.names()
    assert instruments.load("harp") is Foreign
    assert instruments.load("cello").__name__ == "Cello"


def test_entry_points_are_looked_up_once_and_a_plugin_is_searched_for_once(instruments, monkeypatch) -> None:
    looked: list[str] = []
    monkeypatch.setattr(registry, "entry_points", lambda group: looked.append(group) or [])
    for _ in range(3):
        assert "cello" in instruments.names()
        with pytest.raises(InvalidParameter):
            instruments.load("harp")
    assert looked == ["luthier.tests_of_registry"]
    cello = instruments.load("cello")
    monkeypatch.setattr(instruments, "_files", lambda: pytest.fail("it was searched for again"))
    assert instruments.load("cello") is cello


def test_with_folders_only_folders_are_plugins(instruments) -> None:
    assert Registry("tests_of_registry", Instrument, kind="instrument", folders=True).names() == ["viola"]
