"""Many downloads side by side, a few of one host: tried again where a failure may pass, given up where a host is silent."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar
from urllib.parse import urlsplit

from luthier.fetcher import Fetched, FetchRefused

AT_ONCE = 8
AT_ONE_HOST = 4
PAUSES = (1.0, 3.0)
"""Seconds before each further try of a download that failed in a way that may pass."""

_LONGEST_PAUSE = 10.0  # seconds that a host may ask for; who asks for more is not waited for
_GIVEN_UP_AFTER = 5  # downloads of one host that failed one after the other

T = TypeVar("T")


class Downloads(Generic[T]):
    """Threads that bring what is asked for. `close` ends them; what was not begun by then is cancelled."""

    def __init__(
        self,
        get: Callable[[str], Fetched],
        use: Callable[[str, Callable[[str], Fetched]], T],
        *,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        """`use(url, get)` is what a thread does for an address; the `get` that it is given is the one given here, made patient.

        `get` raises FetchRefused. `pause` is there for tests; absent, a thread sleeps, until downloads are closed.
        """
        self._get = get
        self._use = use
        self._closed = threading.Event()
        self._pause = pause or self._closed.wait
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="download")
        self._lock = threading.Lock()
        self._waiting: list[tuple[str, str, Future[T]]] = []  # host, URL, what becomes of it
        self._busy: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()

    def begin(self, url: str) -> Future[T]:
        """What `use` gives back for an address, or raises, once it is its turn."""
        future: Future[T] = Future()
        with self._lock:
            self._waiting.append((host_of(url), url, future))
            self._start()
        return future

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for *_, future in waiting:
            future.cancel()
        self._threads.shutdown()

    def _start(self) -> None:
        """Start what may start, in the order that it was asked for; under the lock."""
        for one in self._waiting[:]:
            if self._busy.total() >= AT_ONCE:
                return
            if self._busy[one[0]] < AT_ONE_HOST:
                self._waiting.remove(one)
                self._busy[one[0]] += 1
                self._threads.submit(self._run, *one)

    def _run(self, host: str, url: str, future: Future[T]) -> None:
        try:
            future.set_result(self._use(url, self._patiently))
        except BaseException as failed:
            future.set_exception(failed)
        with self._lock:
            self._busy[host] -= 1
            self._start()

    def _patiently(self, url: str) -> Fetched:
        host = host_of(url)
        for pause in (*PAUSES, None):
            if self._failed[host] >= _GIVEN_UP_AFTER:
                raise FetchRefused("host_silent", f"{host} does not answer, and was given up.", is_passing=True)
            try:
                found = self._get(url)
            except FetchRefused as refused:
                wait = refused.retry_after if pause is not None and refused.retry_after is not None else pause
                if refused.is_passing and wait is not None and wait <= _LONGEST_PAUSE and not self._closed.is_set():
                    self._pause(wait)
                    continue
                self._count(host, refused)
                raise
            self._count(host, None)
            return found
        raise AssertionError("the last try returns or raises")

    def _count(self, host: str, refused: FetchRefused | None) -> None:
        """Count the failures of a host that no answer came between; one that says it has too much to do does answer."""
        with self._lock:
            if refused is None or not refused.is_passing:
                self._failed[host] = 0
            elif refused.status is None or refused.status >= 500:
                self._failed[host] += 1


def host_of(url: str) -> str:
    """The host of an address, for telling hosts apart; "" where it has none."""
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""
