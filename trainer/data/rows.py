"""Rows of a data set: a local JSONL, gzipped JSONL or Parquet file, a directory, or a hub name."""

import gzip
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from reward_model import atomic
from reward_model.errors import UsageError

Row = dict[str, Any]

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


def read_rows(source: str, split: str = "train") -> Iterator[Row | None]:
    """The rows of ``source`` in order; None stands for a line that is not a JSON object.

    Args:
        source: a file with one of :data:`SUFFIXES`, or a data set's name on the Hugging Face hub.
        split: which split of a hub data set.

    Raises:
        UsageError: no such file or data set, or a file of another kind.
    """
    path = Path(source)
    if path.is_file() or source.endswith(SUFFIXES):
        return _read_file(path)
    if path.exists():
        raise UsageError(f"{source}: is a directory; name one {', '.join(SUFFIXES)} file in it")
    return _read_hub(source, split)


def is_scored(source: str, split: str = "train") -> bool:
    """Whether ``source`` holds scored responses; otherwise it holds pairs."""
    first = next(iter(read_rows(source, split)), None)
    return first is not None and "responses" in first


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write rows as JSON lines, whole or not at all; return how many."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    data = "".join(lines).encode()
    atomic.write_bytes(path, gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return len(lines)


def _read_file(path: Path) -> Iterator[Row | None]:
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    if path.name.endswith(".parquet"):
        return _read_parquet(path)
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        return _read_json_lines(path)
    raise UsageError(f"{path}: not a data file; expected one of {', '.join(SUFFIXES)}")


def _read_json_lines(path: Path) -> Iterator[Row | None]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for line in file:
                if line.strip():
                    yield _parse(line)
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise UsageError(f"{path}: cannot be read as UTF-8 JSON lines: {error}") from None


def _parse(line: str) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _read_parquet(path: Path) -> Iterator[Row | None]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowException as error:
        raise UsageError(f"{path}: cannot be read as Parquet: {error}") from None
    return itertools.chain.from_iterable(batch.to_pylist() for batch in file.iter_batches())


def _read_hub(name: str, split: str) -> Iterator[Row | None]:
    import datasets

    try:
        return iter(datasets.load_dataset(name, split=split))
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"{name}: neither a local file nor a data set that can be loaded from the hub "
            f"(split {split}): {reason}"
        ) from None
