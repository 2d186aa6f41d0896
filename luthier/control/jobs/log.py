"""The log of a job as text: one line for each event, under a header."""

from __future__ import annotations

from luthier.control.jobs.values import JobEvent

HEADER = "time (UTC)           level  message"
"""Line 0; line N is the event of that number."""


def line_of(event: JobEvent) -> str:
    """An event as one line, whatever signs for the end of one its message has."""
    return f"{event.created_at:%Y-%m-%d %H:%M:%S}  {event.level:<5}  {' '.join(event.message.splitlines())}"
