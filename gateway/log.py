"""Structured logs: JSON lines on stderr, with the request id where there is one, masking as the last step.

No line per request in the hot path. Exceptions are logged by type and place, never by text: driver and parser messages
quote the values that they choked on (reliability.md §0.8).
"""

import asyncio
import logging
import re
import sys
import threading
import traceback
import warnings
from types import TracebackType
from typing import Any

import structlog

_ID_NUMBER = re.compile(r"\b[1-9]\d{5}(?:19|20)\d{9}[\dXx]\b")
_CARD_NUMBER = re.compile(r"\b[A-Z]{1,2}\d{7,8}\b")
_CARD_IDENTIFIER = re.compile(r"\b[0-9A-Fa-f]{6}D156[0-9A-Fa-f]{22}\b")
_BANK_CARD = re.compile(r"\b\d{16,19}\b")
_TOKEN = re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]+")
_PLAIN_WORDS = re.compile(r"(?:[A-Za-z][a-z']*[ ,.]{0,2}){1,12}")
_MASKS = (_ID_NUMBER, _CARD_IDENTIFIER, _CARD_NUMBER, _BANK_CARD, _TOKEN)


def configure(level: str, component: str) -> None:
    """Set up logging of this process; the standard library's loggers (aiohttp, asyncio) go the same way."""
    number = getattr(logging, level.upper())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _place_of_exception,
        mask,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer(ensure_ascii=False)],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(component=component)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(ensure_ascii=False),
            ],
        )
    )
    handler.addFilter(_keep_words)
    logging.basicConfig(level=number, handlers=[handler], force=True)
    warnings.showwarning = _warning
    sys.excepthook = lambda kind, _, trace: _uncaught("main", kind, trace)
    sys.unraisablehook = lambda found: _uncaught("destructor", found.exc_type, found.exc_traceback)
    threading.excepthook = lambda found: _uncaught("thread", found.exc_type, found.exc_traceback)


def watch_loop(loop: asyncio.AbstractEventLoop) -> None:
    """What the event loop would print of an exception nobody took (its text, its task's repr): by type and place."""

    def report(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        told = {} if error is None else {"exception": describe(type(error), error.__traceback__)}
        structlog.get_logger().error("event loop", what=_words(context.get("message")), **told)

    loop.set_exception_handler(report)


def mask(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    """Replace whatever looks like a personal number or a token: the net below every other care."""
    for key, value in event.items():
        event[key] = _masked(value)
    return event


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        for pattern in _MASKS:
            value = pattern.sub("***", value)
        return value
    if isinstance(value, dict):
        return {_masked(key): _masked(inner) for key, inner in value.items()}
    return [_masked(inner) for inner in value] if isinstance(value, list | tuple | set | frozenset) else value


def _place_of_exception(_: Any, __: str, event: dict[str, Any]) -> dict[str, Any]:
    info = event.pop("exc_info", None)
    if info is True:
        info = sys.exc_info()
    if isinstance(info, BaseException):
        info = (type(info), info, info.__traceback__)
    if isinstance(info, tuple) and info[0] is not None:
        event["exception"] = describe(info[0], info[2])
    return event


def describe(kind: type[BaseException], trace: TracebackType | None) -> str:
    """`KeyError at gateway/x.py:12 in f < gateway/y.py:3 in g`: the type and the places, not the text."""
    frames = traceback.extract_tb(trace)[-6:]
    places = " < ".join(f"{'/'.join(f.filename.split('/')[-3:])}:{f.lineno} in {f.name}" for f in reversed(frames))
    return f"{kind.__name__} at {places}"


def _keep_words(record: logging.LogRecord) -> bool:
    """The libraries' lines: the first words and the place, nothing that was formatted into them."""
    record.msg, record.args = f"{_words(record.msg)} [{record.module}.{record.funcName}:{record.lineno}]", None
    record.stack_info = None
    return True


def _words(text: object) -> str:
    """A message up to the first thing that is not a plain word."""
    found = _PLAIN_WORDS.match(str(text))
    return found[0].strip() if found else ""


def _warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    place = f"{'/'.join(filename.split('/')[-3:])}:{lineno}"
    structlog.get_logger().warning("python warning", kind=category.__name__, place=place)


def _uncaught(where: str, kind: type[BaseException], trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        structlog.get_logger().critical("exception not caught", where=where, exception=describe(kind, trace))
