"""Samples with their scores as tables: JSON lines in the run directory, one line per prompt."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.data.rows import read_rows, write_rows
from trainer.rloo.samples import Group


def write_table(path: Path, groups: Sequence[Group]) -> None:
    """Every sample of ``groups`` with its scores."""
    write_rows(path, map(row, groups))


def read_table(path: Path) -> list[dict[str, Any]]:
    """What :func:`write_table` wrote, a row per prompt."""
    return [row for row in read_rows(str(path)) if row is not None]


def row(group: Group) -> dict[str, Any]:
    """A prompt and its samples: text, length, end, version, shaped reward and raw scores."""
    samples = [
        {
            "text": sample.text,
            "tokens": len(sample.token_ids),
            "ended": sample.ended,
            "version": sample.version,
            "reward": group.rewards[n],
            **{f"raw/{name}": scores[n] for name, scores in group.measured.items()},
        }
        for n, sample in enumerate(group.samples)
    ]
    prompt = {"index": group.prompt.index, "messages": list(group.prompt.messages)}
    return {"prompt": prompt, "samples": samples}


def last_message(row: dict[str, Any]) -> str:
    """What the samples of a row answer."""
    return str(row["prompt"]["messages"][-1]["content"])


def flat(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Column names and one line per sample, for a table that has no nested cells."""
    lines = [{"prompt": last_message(row), **sample} for row in rows for sample in row["samples"]]
    columns = list(dict.fromkeys(name for line in lines for name in line))
    return columns, [[line.get(name) for name in columns] for line in lines]
