"""The suite reaches no network and leaves a core for its own processes: said before anything imports torch."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.servers import RunningServer

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "2"
os.environ["GOMP_SPINCOUNT"] = "1000"


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model's weights and tokenizer, made once."""
    from luthier.testing import toy_model

    return toy_model(tmp_path_factory.mktemp("models") / "toy")


@pytest.fixture(scope="session")
def toy_server(tmp_path_factory: pytest.TempPathFactory, toy_folder: Path) -> Iterator["RunningServer"]:
    """One server with the toy model, for tests that leave it as they found it."""
    from tests.servers import RunningServer, install_toy

    data = tmp_path_factory.mktemp("server")
    install_toy(data, toy_folder)
    server = RunningServer(data)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def embedded_storage() -> str:
    """URL of a storage with the embedded model: the one that `make demo` fills, so that it is brought once for both."""
    import sys

    from luthier.control.catalog.installing import Installer
    from luthier.core.clock import SystemClock
    from luthier.storage import Storage

    data = Path(__file__).parents[1] / ".luthier"
    url = (data / "objects").as_uri()
    Installer(Storage(url), data / "scratch", sys.executable, SystemClock()).embedded()
    return url


@pytest.fixture(scope="session")
def embedded_folder(embedded_storage: str) -> Path:
    """The embedded model's weights and tokenizer."""
    from luthier.control.catalog.cards import EMBEDDED, installed
    from luthier.storage import Storage

    storage = Storage(embedded_storage)
    card = installed(storage, EMBEDDED)
    assert card is not None
    return storage.folder(card.weights)
