"""Zhipu's clients: the newer one in its versions, and the older one where that is what is installed."""

from __future__ import annotations

import importlib
import importlib.util

import pytest

NEWER = importlib.util.find_spec("zai") is not None


@pytest.fixture(scope="session")
def package():
    """The client's own package: `zai` or `zhipuai`."""
    return importlib.import_module("zai" if NEWER else "zhipuai")


@pytest.fixture(scope="session")
def core(package):
    """Where it keeps its exceptions."""
    return importlib.import_module(f"{package.__name__}.core")


@pytest.fixture(scope="session")
def make(package, url: str, key: str):
    """Makes clients as users do, but for the address and what a check says."""
    kind = package.ZhipuAiClient if NEWER else package.ZhipuAI

    def client(base_url: str = url, **options):
        return kind(**{"api_key": key, "base_url": f"{base_url}/api/paas/v4", "timeout": 120} | options)

    return client


@pytest.fixture(scope="session")
def client(make):
    """With its strict validation on, which no stream of these clients holds."""
    return make(max_retries=0, _strict_response_validation=True)


@pytest.fixture(scope="session")
def lenient(make):
    return make(max_retries=0)


@pytest.fixture(scope="session")
def say(client):
    """Asks for an answer, greedily."""

    def ask(text: str = "ab", through=client, **more):
        asked = {"model": "toy", "temperature": 0, "max_tokens": 16} | more
        return through.chat.completions.create(messages=[{"role": "user", "content": text}], **asked)

    return ask
