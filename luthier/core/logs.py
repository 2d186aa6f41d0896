"""Structured logs, with request, job and run ids bound to every line."""

from __future__ import annotations

import logging
import sys

import structlog

bind = structlog.contextvars.bound_contextvars


def configure(level: str = "info", json: bool = False) -> None:
    """Send logs to standard error, as lines for people or as JSON for machines."""
    minimum = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([structlog.processors.format_exc_info, structlog.processors.JSONRenderer()] if json else [_for_people()]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(minimum),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=max(minimum, logging.WARNING), stream=sys.stderr, format="%(message)s")
    logging.getLogger("bitsandbytes").setLevel(
        logging.ERROR
    )  # it warns, whenever PEFT is imported, of a kernel it lacks


def _for_people() -> structlog.typing.Processor:
    """Tracebacks are plain: the pretty ones show the values of variables, which are customers' rows and keys."""
    plain = structlog.dev.plain_traceback
    return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)


def get(name: str) -> structlog.typing.FilteringBoundLogger:
    return structlog.get_logger(part=name)
