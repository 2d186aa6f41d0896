"""Downloads run side by side, are tried again where that may help, and leave a silent host in peace."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

import pytest

from luthier.control.datasets.downloads import AT_ONCE, AT_ONE_HOST, PAUSES, Downloads, host_of
from luthier.fetcher import Fetched, FetchRefused

Answer = bytes | FetchRefused


def passing(status: int | None = None, retry_after: float | None = None) -> FetchRefused:
    code = "too_slow" if status is None else "bad_status"
    return FetchRefused(code, "not now", is_passing=True, status=status, retry_after=retry_after)


def lasting() -> FetchRefused:
    return FetchRefused("bad_status", "gone", status=404)


class Web:
    """Answers in the order in which they were given, the last one for good; it keeps what it was asked and how many at once."""

    def __init__(self, **answers: list[Answer]) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.pauses: list[float] = []
        self.at_once: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.gate: Callable[[], object] = lambda: None
        self._lock = threading.Lock()

    def get(self, url: str) -> Fetched:
        host = host_of(url)
        with self._lock:
            self.asked.append(url)
            for name in (host, ""):
                self.at_once[name] += 1
                self.most[name] = max(self.most[name], self.at_once[name])
            answers = self.answers.get(host) or [b"ok"]
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
        self.gate()
        with self._lock:
            for name in (host, ""):
                self.at_once[name] -= 1
        if isinstance(answer, FetchRefused):
            raise answer
        return Fetched(url, answer, "")

    def downloads(self) -> Downloads[bytes]:
        return Downloads(self.get, lambda url, get: get(url).data, pause=self.pauses.append)


def codes(web: Web, *urls: str) -> list[str]:
    """What becomes of addresses that are asked for one after the other."""
    told = []
    downloads = web.downloads()
    for url in urls:
        failed = downloads.begin(url).exception()
        told.append(failed.code if isinstance(failed, FetchRefused) else "fetched")
    downloads.close()
    return told


def test_as_many_run_side_by_side_as_may_and_of_one_host_fewer() -> None:
    web = Web()
    everybody = threading.Barrier(AT_ONCE)
    web.gate = lambda: everybody.wait(60)
    downloads = web.downloads()
    first = [downloads.begin(f"http://a/{n}") for n in range(AT_ONE_HOST * 2)]
    others = [downloads.begin(f"http://b/{n}") for n in range(AT_ONE_HOST * 2)]
    assert {future.result(60) for future in (*first, *others)} == {b"ok"}
    downloads.close()
    assert (web.most["a"], web.most["b"], web.most[""]) == (AT_ONE_HOST, AT_ONE_HOST, AT_ONCE)


def test_what_may_pass_is_tried_again_after_longer_and_longer_pauses() -> None:
    web = Web(a=[passing(), passing(503), b"here"])
    assert codes(web, "http://a/1") == ["fetched"]
    assert web.pauses == list(PAUSES)
    web = Web(a=[passing(429)])
    assert codes(web, "http://a/1") == ["bad_status"]
    assert len(web.asked) == len(PAUSES) + 1


def test_what_lasts_is_not_tried_again() -> None:
    web = Web(a=[lasting()])
    assert codes(web, "http://a/1") == ["bad_status"]
    assert (len(web.asked), web.pauses) == (1, [])


@pytest.mark.parametrize(
    ("asked", "pauses", "told"), [(7, [7], "fetched"), (0, [0], "fetched"), (3600, [], "bad_status")]
)
def test_a_host_that_says_when_to_come_back_is_waited_for_if_it_is_soon(
    asked: float, pauses: list[float], told: str
) -> None:
    web = Web(a=[passing(429, asked), b"here"])
    assert codes(web, "http://a/1") == [told]
    assert web.pauses == pauses


def test_a_host_that_fails_five_times_in_a_row_is_asked_no_more_and_others_are() -> None:
    web = Web(a=[passing()])
    urls = [f"http://a/{n}" for n in range(8)]
    assert codes(web, *urls, "http://b/1") == ["too_slow"] * 5 + ["host_silent"] * 3 + ["fetched"]
    assert len(web.asked) == 5 * (len(PAUSES) + 1) + 1


def test_an_answer_between_failures_keeps_a_host() -> None:
    web = Web(a=[*[passing()] * 12, lasting(), *[passing()] * 12, b"here"])
    assert codes(web, *(f"http://a/{n}" for n in range(10))) == [
        *["too_slow"] * 4,
        "bad_status",
        *["too_slow"] * 4,
        "fetched",
    ]


def test_a_host_with_too_much_to_do_is_not_taken_for_silent() -> None:
    assert codes(Web(a=[passing(429)]), *(f"http://a/{n}" for n in range(7))) == ["bad_status"] * 7


def test_what_waits_is_cancelled_when_downloads_are_closed() -> None:
    web = Web()
    opened = threading.Event()
    web.gate = lambda: opened.wait(60)
    downloads = web.downloads()
    futures = [downloads.begin(f"http://a/{n}") for n in range(AT_ONE_HOST + 2)]
    threading.Timer(0.05, opened.set).start()
    downloads.close()
    assert [future.cancelled() for future in futures] == [False] * AT_ONE_HOST + [True] * 2


def test_nobody_waits_for_a_further_try_when_downloads_are_closed() -> None:
    web = Web(a=[passing(429, 9)])
    downloads = Downloads(web.get, lambda url, get: get(url).data)
    future = downloads.begin("http://a/1")
    downloads.close()
    assert future.done() and len(web.asked) <= 2


@pytest.mark.parametrize(("url", "host"), [("http://A.example:80/x", "a.example"), ("http://[::1", ""), ("x", "")])
def test_the_host_of_an_address(url: str, host: str) -> None:
    assert host_of(url) == host
