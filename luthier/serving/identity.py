"""Is what was loaded what was trained? Asked of every artifact on every replica, before it answers anybody.

Artifacts that were made before they had an identity or a canary pass by their bytes alone, which the backend checks.
"""

from __future__ import annotations

from pathlib import Path

from luthier.core import logs
from luthier.core.errors import NotOffered
from luthier.nets.canary import Canary
from luthier.nets.identity import Identity
from luthier.serving.backends.base import AdapterUnreadable, Backend
from luthier.serving.protocol import AdapterRef

_TRAINED_MODEL = "The trained model of this replica"
_log = logs.get("replica")


def check_identity(folder: Path, ref: AdapterRef, *, base_sha256: str, renderer_sha256: str) -> None:
    """Raise AdapterUnreadable unless an adapter was made for these base weights and this renderer, and is what it was."""
    kept = _kept_identity(folder, f"Adapter {ref.id}")
    if kept is None:
        if ref.identity is not None:
            raise AdapterUnreadable(f"Adapter {ref.id} was published with an identity, and its files have none.")
        return
    if kept.base_sha256 != base_sha256:
        raise AdapterUnreadable(
            f"Adapter {ref.id} was made for other base weights (sha256 {kept.base_sha256[:12]}…) than this replica's "
            f"({base_sha256[:12]}…)."
        )
    check_renderer(kept.renderer_sha256, renderer_sha256, f"Adapter {ref.id}")
    try:
        found = Identity.of(folder, base_sha256=base_sha256).identity
    except (OSError, ValueError, KeyError, TypeError) as broken:
        raise AdapterUnreadable(f"The files of adapter {ref.id} cannot be read: {broken}") from broken
    for expected in (kept.identity, ref.identity):
        if expected not in (None, found):
            raise AdapterUnreadable(
                f"The files of adapter {ref.id} are not the ones it was published with "
                f"(identity {found[:12]}…, expected {expected[:12]}…)."
            )


def check_renderer(trained_with: str | None, here: str, what: str) -> None:
    """Raise AdapterUnreadable where conversations would be written otherwise than an artifact has learned.

    `what` is the artifact as a sentence begins with it. None: it is not known what it was trained with.
    """
    if trained_with not in (None, here):
        raise AdapterUnreadable(
            f"{what} was trained with another renderer than this replica's.",
            hint="Train it again: its conversations would be written otherwise than it has learned.",
        )


def kept_canary(folder: Path, what: str) -> Canary | None:
    """The canary among an artifact's files, None where there is none. Raises AdapterUnreadable; `what` begins its sentence."""
    try:
        return Canary.kept(folder)
    except (OSError, ValueError) as broken:
        raise AdapterUnreadable(f"{what} has a canary that cannot be read: {broken}") from broken


def check_canary(backend: Backend, canary: Canary | None, adapter: str | None, *, precision: str) -> None:
    """Raise AdapterUnreadable unless the backend finds the artifact's canary as likely as the model that was trained did.

    `adapter` is the loaded one that it belongs to; None: the backend's own weights. One short forward pass; none for
    an artifact without a canary, or a backend that cannot tell.
    """
    what = _TRAINED_MODEL if adapter is None else f"Adapter {adapter}"
    if canary is None:
        return
    try:
        found = backend.logprobs(canary.tokens, adapter=adapter)
    except NotOffered:
        return
    if (problem := canary.problem(found, precision=precision)) is not None:
        raise AdapterUnreadable(f"{what} does not answer as it was trained to: {problem}.")
    if not canary.tells_apart(precision):
        _log.info("the canary does not tell it from its base", adapter=adapter)


def check_model(backend: Backend, folder: Path, *, renderer_sha256: str, precision: str) -> None:
    """The same of a whole model that was trained, whose weights the backend has opened; a base model has nothing to check."""
    kept = _kept_identity(folder, _TRAINED_MODEL)
    if kept is not None:
        check_renderer(kept.renderer_sha256, renderer_sha256, _TRAINED_MODEL)
        check_canary(backend, kept_canary(folder, _TRAINED_MODEL), None, precision=precision)


def _kept_identity(folder: Path, what: str) -> Identity | None:
    try:
        return Identity.kept(folder)
    except (OSError, ValueError) as broken:
        raise AdapterUnreadable(f"{what} has an identity that cannot be read: {broken}") from broken
