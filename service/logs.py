"""Log lines, plain or JSON, that never hold user text.

uvicorn's access log prints query strings, and with them keys; it is off and ours takes its place.
"""

import json
import logging
import sys
import time
import traceback
from typing import Any, Literal

FIELDS = "fields"
"""The ``extra`` under which a record carries its machine-readable part."""


class PlainFormatter(logging.Formatter):
    """``2026-11-20T10:00:00 INFO message key=value …``"""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = getattr(record, FIELDS, {})
        words = [_time(record), record.levelname, record.getMessage()]
        words += [f"{key}={value}" for key, value in fields.items()]
        return " ".join(words)


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        return json.dumps(line, default=str)


def configure_logging(format: Literal["plain", "json"], level: str) -> None:
    """Send the service's log to standard error; of uvicorn only what is wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else PlainFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("service").setLevel(level.upper())


def log_fault(logger: logging.Logger, message: str, error: BaseException) -> None:
    """Log where ``error`` came from. Its own text is left out: it may quote what it was given."""
    places = [
        f"{frame.filename}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
    ]
    fields = {"error": type(error).__name__, "traceback": places}
    logger.error("%s", message, extra={FIELDS: fields})


def _time(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"
