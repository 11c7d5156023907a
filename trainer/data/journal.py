"""Long work on rows that goes on after a kill: finished rows are appended, one line each."""

import json
from pathlib import Path

from reward_model.errors import UsageError
from trainer.data.rows import Row, write_rows


class Journal:
    """``<out>.partial`` while the work lasts, ``out`` when it is done.

    The first line holds what the work was told; other settings are refused on resumption. A line
    torn by a kill is dropped, and its row done again.

    Raises:
        UsageError: ``out`` is there already, or the journal belongs to other settings.
    """

    def __init__(self, out: Path, told: Row) -> None:
        self.out = out
        self.path = out.with_name(out.name + ".partial")
        if out.exists():
            raise UsageError(f"{out}: is there already; move it away, or choose another out")
        lines = self.path.read_text(encoding="utf-8").split("\n")[:-1] if self.path.exists() else []
        if lines and json.loads(lines[0]) != told:
            raise UsageError(f"{self.path}: was begun with other settings; remove it to start anew")
        self.done: dict[str, Row] = {row["key"]: row for row in map(json.loads, lines[1:])}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [told, *self.done.values()]
        self.path.write_text("".join(_line(row) for row in kept), encoding="utf-8")
        self._file = self.path.open("a", encoding="utf-8")

    def add(self, key: str, row: Row) -> None:
        """Record that ``key`` is done."""
        self.done[key] = {"key": key, **row}
        self._file.write(_line(self.done[key]))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def finish(self, rows: list[Row]) -> int:
        """Write ``out``, whole or not at all, and remove the journal; return how many rows."""
        self.close()
        count = write_rows(self.out, rows)
        self.path.unlink()
        return count


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
