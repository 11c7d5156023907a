"""How far a file is: a bar on a terminal, a line now and then in a log."""

import logging
import sys
import time
from typing import Literal

from tqdm import tqdm

from service.logs import FIELDS

logger = logging.getLogger("service.offline")

REPORT_SECONDS = 30.0
"""How often a log says how far it is; a terminal sees it all the time."""


class Progress:
    """Counts lines and tokens. Use as a context manager."""

    def __init__(self, lines: int, done: int) -> None:
        self._bar = tqdm(
            total=lines, initial=done, unit="line", disable=not sys.stderr.isatty(), leave=False
        )
        self._lines, self._done, self._tokens = lines, done, 0
        self._started = self._said = time.monotonic()

    def __enter__(self) -> "Progress":
        if self._done:
            self._say("going on")
        return self

    def __exit__(self, *_: object) -> Literal[False]:
        self._bar.close()
        return False

    def add(self, lines: int, tokens: int) -> None:
        self._done += lines
        self._tokens += tokens
        self._bar.set_postfix_str(f"{self._rate():,.0f} tokens/s", refresh=False)
        self._bar.update(lines)
        if self._bar.disable and time.monotonic() - self._said > REPORT_SECONDS:
            self._say("scoring")

    def _say(self, message: str) -> None:
        self._said = time.monotonic()
        fields = {"lines": self._done, "of": self._lines, "tokens_per_second": round(self._rate())}
        logger.info(message, extra={FIELDS: fields})

    def _rate(self) -> float:
        return self._tokens / max(time.monotonic() - self._started, 1e-6)
