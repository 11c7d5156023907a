"""Which prompts were trained at which step: ``ledger.jsonl``.

A position counts through all prompts of all epochs. Every line is written before the checkpoint of
its step; a resumed run drops the lines after its checkpoint, so that the file is the history that
leads to the current weights: each position is trained once, or skipped with a reason.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reward_model.atomic import write_text

FILE_NAME = "ledger.jsonl"


class Ledger:
    """Appends to the file and knows which positions are done."""

    def __init__(self, run_dir: Path, resume_step: int | None = None) -> None:
        self._path = run_dir / FILE_NAME
        lines = [] if resume_step is None else read_ledger(run_dir)
        kept = [line for line in lines if line["step"] <= (resume_step or 0)]
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._done = {position for line in kept for position in line.get("trained", ())}
        self._skipped = {
            int(p): reason for line in kept for p, reason in line.get("skipped", {}).items()
        }

    @property
    def skipped(self) -> Mapping[int, str]:
        return self._skipped

    def is_done(self, position: int) -> bool:
        return position in self._done or position in self._skipped

    def train(self, step: int, positions: Sequence[int]) -> None:
        """Step ``step`` (the first is 1) was made with these positions."""
        self._done.update(positions)
        self._append({"step": step, "trained": list(positions)})

    def skip(self, step: int, position: int, reason: str) -> None:
        self._skipped[position] = reason
        self._append({"step": step, "skipped": {str(position): reason}})

    def _append(self, line: dict[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def read_ledger(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of the file; a torn last line is left out."""
    path = run_dir / FILE_NAME
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]
