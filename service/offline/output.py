"""The output file while it grows, and how it is gone on with."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path
from typing import Any

from reward_model.errors import UsageError


class Output:
    """``OUT.jsonl.part`` while it grows. ``done`` counts its whole lines.

    The first line tells what the results belong to; it stays behind when the file is finished.
    """

    def __init__(self, path: Path, belongs_to: dict[str, Any]) -> None:
        self.path = path
        self.part = path.with_name(f"{path.name}.part")
        self._head = json.dumps(belongs_to).encode() + b"\n"
        self.done = 0

    @contextmanager
    def open(self) -> Iterator["Output"]:
        """Go on where an earlier run stopped.

        Raises:
            UsageError: the results so far are of another input, model or setting.
        """
        self.part.parent.mkdir(parents=True, exist_ok=True)
        self.part.touch()
        with self.part.open("r+b") as file:
            self._file = file
            self._recover(file)
            yield self

    def append(self, lines: list[dict[str, Any]]) -> None:
        self._file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        self._file.flush()
        self.done += len(lines)

    def finish(self) -> None:
        """Leave the results alone under their final name."""
        whole = self.path.with_name(f".{self.path.name}.whole")
        self._file.seek(len(self._head))
        with whole.open("wb") as file:
            while block := self._file.read(1 << 20):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        os.replace(whole, self.path)
        self.part.unlink()

    def _recover(self, file: BufferedRandom) -> None:
        head = file.readline()
        if not head.endswith(b"\n"):  # new, or killed at its very first line
            file.seek(0)
            file.truncate()
            file.write(self._head)
            return
        if head != self._head:
            raise UsageError(
                f"{self.part}: results of another input, model or setting; remove it to start anew"
            )
        end = file.tell()
        for line in file:
            if not line.endswith(b"\n"):
                break
            end += len(line)
            self.done += 1
        file.seek(end)
        file.truncate()
