"""Engines in environments of their own: made from a wheel of a few lines that stands in for one of gigabytes."""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from luthier.cli import app
from luthier.core.errors import InvalidParameter
from luthier.serving import engines
from luthier.serving.engines import EngineNotInstalled, EngineNotUsable

WORKS = "__version__ = '{version}'\ndef main(): print('serving')\n"


def wheel(folder: Path, version: str, code: str = WORKS) -> None:
    info = f"vllm-{version}.dist-info"
    with zipfile.ZipFile(folder / f"vllm-{version}-py3-none-any.whl", "w") as packed:
        packed.writestr("vllm/__init__.py", code.format(version=version))
        packed.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
        packed.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        packed.writestr(f"{info}/entry_points.txt", "[console_scripts]\nvllm = vllm:main\n")
        packed.writestr(f"{info}/RECORD", "")


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder from which alone packages come."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    nowhere = {"PIP_NO_INDEX": "1", "UV_OFFLINE": "1", "UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple"}
    for name, value in {"PIP_FIND_LINKS": str(folder), "UV_FIND_LINKS": str(folder), **nowhere}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(engines, "_folder", None)
    return folder


@pytest.fixture(params=["uv", "pip"])
def tool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "pip":
        monkeypatch.setattr(engines.shutil, "which", lambda *_, **__: None)


@pytest.mark.usefixtures("tool")
def test_an_engine_is_installed_found_and_replaced(tmp_path: Path, wheels: Path) -> None:
    wheel(wheels, "0.12.0")
    wheel(wheels, "0.13.1")
    first = engines.install(tmp_path / "engines", "vllm", version="0.12.0")
    assert first.version == "0.12.0"
    newest = engines.install(tmp_path / "engines", "vllm")
    engines.use(tmp_path / "engines")
    assert engines.find("vllm") == newest
    assert engines.installed(tmp_path / "engines") == [newest]
    assert subprocess.check_output([newest.program]) == b"serving\n"
    assert not first.environment.exists()


def test_one_that_cannot_be_imported_leaves_the_one_before(tmp_path: Path, wheels: Path) -> None:
    wheel(wheels, "0.12.0")
    before = engines.install(tmp_path, "vllm")
    wheel(wheels, "0.14.0", "raise ImportError('libcuda.so.1 is not there')\n")
    with pytest.raises(EngineNotUsable, match=r"libcuda.so.1 is not there"):
        engines.install(tmp_path, "vllm")
    assert engines.installed(tmp_path) == [before]
    assert [one.name for one in (tmp_path / "vllm").iterdir() if one.is_dir()] == [before.environment.name]


def test_a_version_that_is_nowhere_leaves_nothing(tmp_path: Path, wheels: Path) -> None:
    with pytest.raises(EngineNotUsable, match="what it said stands above"):
        engines.install(tmp_path, "vllm", version="9.9.9")
    assert engines.installed(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "version", "said"),
    [
        ("sglang", None, "known: vllm"),
        ("vllm", "0.9.2", "0.12.0 or later"),
        ("vllm", "newest; rm", "must be a version"),
    ],
)
def test_what_cannot_be_installed_is_refused_before_anything_is_made(
    tmp_path: Path, name: str, version: str | None, said: str
) -> None:
    with pytest.raises(InvalidParameter, match=said):
        engines.install(tmp_path, name, version=version)
    assert list(tmp_path.iterdir()) == []


def test_an_interpreter_that_is_not_there_is_told(tmp_path: Path, wheels: Path) -> None:
    with pytest.raises(EngineNotUsable):
        engines.install(tmp_path, "vllm", python="/nowhere/python3")


def test_what_is_not_installed_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_folder", tmp_path)
    with pytest.raises(EngineNotInstalled) as told:
        engines.find("vllm")
    assert told.value.hint == "Install it with: luthier engine install vllm"


def test_the_command_line_installs_and_lists(tmp_path: Path, wheels: Path) -> None:
    wheel(wheels, "0.12.3")
    runner = CliRunner()
    done = runner.invoke(app, ["engine", "install", "vllm", "--data", str(tmp_path), "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["version"] == "0.12.3"
    listed = runner.invoke(app, ["engine", "list", "--data", str(tmp_path), "--json"])
    [engine] = json.loads(listed.stdout)
    assert (engine["name"], engine["version"]) == ("vllm", "0.12.3")
