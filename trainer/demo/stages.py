"""Which parts of the demo are done, so that running it again resumes, and never mixes runs.

Every stage has a key: a hash of its settings and of the keys of the stages it builds on. A stage
whose marker carries the same key is not run again; one that was interrupted goes on in its
directory; one with another key starts in an empty directory.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reward_model.atomic import write_text
from reward_model.errors import UsageError
from trainer.lock import locked

MARKERS, LOCK = "stages", ".lock"


@contextmanager
def only_one(root: Path) -> Iterator[None]:
    """Hold ``root`` for this process; the lock goes with the process, however it ends.

    Raises:
        UsageError: another demo runs there.
    """
    with locked(root / LOCK, wait=False) as ours:
        if not ours:
            raise UsageError(
                f"another demo is running in {root}: wait for it, or choose another output_dir"
            )
        yield


def clear(root: Path) -> None:
    """Throw away what ``root`` holds, but for the lock."""
    for path in root.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


class Stage:
    """One part of the demo in a directory of its own, ``root/<name>``."""

    def __init__(
        self, root: Path, name: str, settings: Mapping[str, Any], after: tuple["Stage", ...] = ()
    ) -> None:
        self.name = name
        self.directory = root / name
        self._marker = root / MARKERS / f"{name}.json"
        text = json.dumps([settings, [stage.key for stage in after]], sort_keys=True, default=str)
        self.key: str = hashlib.sha256(text.encode()).hexdigest()
        self._spent = self._started = 0.0

    @property
    def done(self) -> bool:
        marker = self._read()
        return marker.get("key") == self.key and "seconds" in marker

    @property
    def seconds(self) -> float:
        """What the stage took, all its attempts together."""
        return float(self._read().get("seconds", 0.0))

    def begin(self) -> None:
        """Make the directory ready: as it is for going on, empty for another key."""
        marker = self._read()
        if marker.get("key") != self.key:
            shutil.rmtree(self.directory, ignore_errors=True)
            marker = {}
        self.directory.mkdir(parents=True, exist_ok=True)
        self._spent = float(marker.get("spent", 0.0))
        self._started = time.monotonic()
        self._write({"spent": self._spent})

    def interrupt(self) -> None:
        """Remember the time spent; the stage is not done."""
        self._write({"spent": self._elapsed()})

    def finish(self) -> None:
        self._write({"seconds": self._elapsed()})

    def _elapsed(self) -> float:
        return round(self._spent + time.monotonic() - self._started, 1)

    def _read(self) -> dict[str, Any]:
        try:
            marker = json.loads(self._marker.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return marker if isinstance(marker, dict) else {}

    def _write(self, values: Mapping[str, float]) -> None:
        write_text(self._marker, json.dumps({"key": self.key, **values}) + "\n")
