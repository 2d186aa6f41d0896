"""Logs tell what happened and to which request, and never what a variable held."""

from __future__ import annotations

import pytest
import structlog

from luthier.core import logs


@pytest.fixture(autouse=True)
def quiet_again():
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.mark.parametrize("json", [True, False])
def test_a_fault_is_logged_with_what_is_bound_and_without_local_variables(json: bool, capsys) -> None:
    logs.configure("info", json=json)

    def fail() -> None:
        key = "first." + "secret" * 6
        raise RuntimeError(f"a key of {len(key)} characters")

    with logs.bind(request="req-1"):
        try:
            fail()
        except RuntimeError:
            logs.get("test").exception("it failed")
    told = capsys.readouterr().err
    assert all(text in told for text in ("it failed", "req-1", "a key of 42 characters", "in fail"))
    assert "secretsecret" not in told


def test_what_is_below_the_level_is_not_logged(capsys) -> None:
    logs.configure("warning")
    logs.get("test").info("nobody asked")
    assert capsys.readouterr().err == ""
