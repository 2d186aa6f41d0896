"""How many answers are made at a time: who is let in, who waits in line, and who is sent away."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from luthier.core.errors import InvalidParameter, LuthierError, NoCapacity, RateLimited

_AGAIN_AFTER_SECONDS = 2.0


@dataclass(frozen=True)
class Limits:
    """Counted in answers, so that a request for n of them counts n times."""

    running: int = 512
    running_per_project: int = 256
    waiting: int = 4096
    waiting_per_project: int = 1024
    answer_within_seconds: float = 600.0

    @property
    def most_at_once(self) -> int:
        """Answers that one request may ask for."""
        return min(self.running, self.running_per_project)


@dataclass
class Place:
    """So many answers may be made, until it is left. Leaving it again does nothing."""

    gate: Gate
    project: str
    answers: int
    in_background: bool = False
    is_left: bool = False

    def leave(self) -> None:
        if not self.is_left:
            self.is_left = True
            self.gate.take_back(self)


@dataclass(eq=False)
class _Waiting:
    answers: int
    place: asyncio.Future[Place]


@dataclass
class _Project:
    """What runs and waits of one project; nothing is kept of one that has neither."""

    running: int = 0
    in_background: int = 0
    line: deque[_Waiting] = field(default_factory=deque)

    @property
    def waiting(self) -> int:
        return sum(one.answers for one in self.line)


class Gate:
    """Lets projects in by turns, each in the order in which its requests came. For one event loop."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._running = 0
        self._in_background = 0
        self._waiting = 0
        self._projects: OrderedDict[str, _Project] = OrderedDict()  # whose turn is next stands first

    async def enter(self, project: str, answers: int) -> Place:
        """A place for so many answers, waiting in line where there is none. Cancelling this leaves the line.

        Raises RateLimited where the project's own line is full, NoCapacity where everybody's together is, and
        InvalidParameter for more answers than could ever be made at once.
        """
        self._check_count(answers)
        ours = self._projects.setdefault(project, _Project())
        if not ours.line and self._next() is None and self._has_room(ours, answers):
            return self._let_in(project, answers)
        try:
            self._check_lines(ours, answers)
        except LuthierError:
            self._forget(project)
            raise
        one = _Waiting(answers, asyncio.get_running_loop().create_future())
        ours.line.append(one)
        self._waiting += answers
        try:
            return await one.place
        except asyncio.CancelledError:
            if one in ours.line:
                ours.line.remove(one)
                self._waiting -= answers
                self._forget(project)
                self._call_in()  # who stood behind may need less
            elif not one.place.cancelled():
                one.place.result().leave()  # its turn came as the caller went
            raise

    def enter_in_background(self, project: str, answers: int) -> Place:
        """A place for work that nobody waits for at the other end of a connection. It is no turn in line.

        It is had only where nobody waits, and up to half of what may run, of the project's and in all; but for one request.
        Raises NoCapacity where there is none now, and InvalidParameter as `enter` does.
        """
        self._check_count(answers)
        ours = self._projects.get(project, _Project())
        half, half_of_project = self.limits.running // 2, self.limits.running_per_project // 2
        is_within = (not self._in_background or self._in_background + answers <= half) and (
            not ours.in_background or ours.in_background + answers <= half_of_project
        )
        if self._waiting or not is_within or not self._has_room(ours, answers):
            raise NoCapacity("Others are answered first.", retry_after=_AGAIN_AFTER_SECONDS)
        return self._let_in(project, answers, in_background=True)

    def take_back(self, place: Place) -> None:
        ours = self._projects[place.project]
        self._running -= place.answers
        ours.running -= place.answers
        if place.in_background:
            self._in_background -= place.answers
            ours.in_background -= place.answers
        self._forget(place.project)
        self._call_in()

    def _check_count(self, answers: int) -> None:
        if answers > self.limits.most_at_once:
            raise InvalidParameter("n", f"may be up to {self.limits.most_at_once} on this server, got {answers}")

    def _has_room(self, ours: _Project, answers: int) -> bool:
        return (
            self._running + answers <= self.limits.running and ours.running + answers <= self.limits.running_per_project
        )

    def _let_in(self, project: str, answers: int, *, in_background: bool = False) -> Place:
        ours = self._projects.setdefault(project, _Project())
        self._running += answers
        ours.running += answers
        if in_background:
            self._in_background += answers
            ours.in_background += answers
        return Place(self, project, answers, in_background)

    def _check_lines(self, ours: _Project, answers: int) -> None:
        if ours.waiting + answers > self.limits.waiting_per_project:
            raise RateLimited(
                f"{ours.running} answers of this project are being made and {ours.waiting} wait, as many as may.",
                hint="Ask for fewer at a time.",
                retry_after=_AGAIN_AFTER_SECONDS,
            )
        if self._waiting + answers > self.limits.waiting:
            raise NoCapacity(
                "So many ask this server that nobody more can wait in line.",
                hint="Try again.",
                retry_after=_AGAIN_AFTER_SECONDS,
            )

    def _call_in(self) -> None:
        """Let in the first of every line that has room, one project after the other, as long as there is any.

        A project that has room of its own, and finds none in all, keeps its turn: no smaller request of another overtakes it.
        """
        is_full = False
        while not is_full and (name := self._next()) is not None:
            ours = self._projects[name]
            one = ours.line[0]
            is_full = not self._has_room(ours, one.answers)
            if not is_full:
                ours.line.popleft()
                self._waiting -= one.answers
                if not one.place.cancelled():  # its caller has just gone
                    one.place.set_result(self._let_in(name, one.answers))
                    self._projects.move_to_end(name)
                self._forget(name)

    def _next(self) -> str | None:
        """The project whose turn it is, of those that wait and may have more running."""
        most = self.limits.running_per_project
        return next(
            (
                name
                for name, ours in self._projects.items()
                if ours.line and ours.running + ours.line[0].answers <= most
            ),
            None,
        )

    def _forget(self, project: str) -> None:
        ours = self._projects.get(project)
        if ours is not None and not ours.running and not ours.line:
            del self._projects[project]
