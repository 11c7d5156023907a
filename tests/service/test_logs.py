"""Log lines in both formats."""

import json
import logging

import pytest

from service.logs import FIELDS, JsonFormatter, PlainFormatter, log_fault


def record(**fields: object) -> logging.LogRecord:
    made = logging.LogRecord("service.x", logging.INFO, "f", 1, "model %s loaded", ("a",), None)
    made.__dict__[FIELDS] = fields
    return made


def test_json_is_one_object_with_the_fields() -> None:
    line = json.loads(JsonFormatter().format(record(tokens=3, path="a b")))
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "service.x",
        "message": "model a loaded",
        "tokens": 3,
        "path": "a b",
    }


def test_plain_is_one_line() -> None:
    line = PlainFormatter().format(record(tokens=3))
    assert line.endswith("INFO model a loaded tokens=3")


def test_a_fault_tells_where_and_not_what_it_was_given(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError("private words")
    except ValueError as error:
        log_fault(logging.getLogger("service.x"), "it failed", error)
    fields = caplog.records[0].__dict__[FIELDS]
    assert fields["error"] == "ValueError"
    assert "test_logs.py" in fields["traceback"][-1]
    assert "private" not in JsonFormatter().format(caplog.records[0])
