"""Where a setting comes from, which source wins, and what is said about wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.core.errors import InvalidParameter
from luthier.core.settings import Settings


@pytest.fixture(autouse=True)
def empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))


def test_no_setting_at_all_makes_a_server_for_this_machine(tmp_path: Path) -> None:
    settings = Settings.read()
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 8321)
    assert settings.server.data == tmp_path / "share/luthier"
    assert settings.database_url == f"sqlite+aiosqlite:///{tmp_path}/share/luthier/luthier.db"
    assert settings.storage_url == f"file://{tmp_path}/share/luthier/objects"
    assert settings.cores >= 1


def test_a_flag_wins_over_the_environment_and_that_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("luthier.toml").write_text('[server]\nport = 1\nhost = "0.0.0.0"\n[serving]\nbackend = "echo"\n')
    assert Settings.read().server.port == 1
    monkeypatch.setenv("LUTHIER_SERVER__PORT", "2")
    assert Settings.read().server.port == 2
    settings = Settings.read(server={"port": 3})
    assert (settings.server.port, settings.server.host, settings.serving.backend) == (3, "0.0.0.0", "echo")


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("LUTHIER_SERVER__PORT", "many", "server.port"),
        ("LUTHIER_SERVER__PORT", "65536", "server.port"),
        ("LUTHIER_SERVER__PROT", "1", "server.prot"),
        ("LUTHIER_TRAINING__ATTEMPTS", "0", "training.attempts"),
        ("LUTHIER_SERVER", "not a section", "server"),
    ],
)
def test_a_wrong_variable_is_refused_by_its_name(monkeypatch, variable: str, value: str, named: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidParameter, match=named):
        Settings.read()


def test_every_fault_is_told_at_once() -> None:
    Path("luthier.toml").write_text("[server]\nport = -1\n[serving]\nadapters_per_replica = 0\n[colour]\nred = 1\n")
    with pytest.raises(InvalidParameter) as refused:
        Settings.read()
    assert all(name in refused.value.message for name in ("server.port", "serving.adapters_per_replica", "colour"))


def test_a_file_that_is_not_toml_is_told_with_its_line() -> None:
    Path("luthier.toml").write_text("[server]\nport =\n")
    with pytest.raises(InvalidParameter, match=r"luthier.toml.*line 2"):
        Settings.read()


def test_the_bootstrap_key_never_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_BOOTSTRAP_KEY", "first.0123456789abcdef")
    settings = Settings.read()
    assert settings.bootstrap_key is not None
    assert settings.bootstrap_key.get_secret_value() == "first.0123456789abcdef"
    assert "0123456789abcdef" not in f"{settings!r} {settings} {settings.model_dump_json()}"


def test_settings_cannot_be_changed_after_they_were_read() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings.read().server.port = 1
