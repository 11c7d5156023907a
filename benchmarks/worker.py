"""An arm of a benchmark in a process of its own: other interpreters and other environments.

The process reads one JSON object per line and answers with one; its own output goes to stderr.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import IO, Any

JsonObject = dict[str, Any]


class Worker:
    """The parent's side. Use as a context manager; :meth:`ask` waits for the answer."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | dict(environment or {}),
            text=True,
        )
        self.ready: JsonObject = self._read()

    def ask(self, request: JsonObject) -> JsonObject:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> JsonObject:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended: {self._process.args}, exit {self._process.wait()}")
        answer: JsonObject = json.loads(line)
        return answer

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()


def answers() -> IO[str]:
    """In the worker, first of all: the real stdout for answers; whatever prints goes to stderr."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return channel


def serve(handle: Callable[[JsonObject], JsonObject], channel: IO[str], ready: JsonObject) -> None:
    """In the worker: say that it is up, then answer line by line until the parent closes."""
    print(json.dumps(ready), file=channel, flush=True)
    for line in sys.stdin:
        print(json.dumps(handle(json.loads(line))), file=channel, flush=True)
