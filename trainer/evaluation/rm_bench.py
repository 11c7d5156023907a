"""RM-Bench: does a reward model see substance through style?

Every item has three chosen and three rejected responses, in the styles concise, detailed plain and
detailed markdown. Source: Liu et al., RM-Bench (arXiv 2410.16184).
"""

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reward_model.errors import UsageError

STYLES = ("concise", "detailed plain", "detailed markdown")
DOMAINS = ("chat", "math", "code", "safety")


@dataclass(frozen=True, slots=True)
class Item:
    """``chosen`` and ``rejected``: three texts each, in the order of :data:`STYLES`."""

    prompt: str
    chosen: tuple[str, str, str]
    rejected: tuple[str, str, str]


@dataclass(frozen=True)
class Domain:
    """``matrix[i][j]``: share of items whose chosen response in style i beats the rejected one in
    style j strictly; a tie is wrong. ``unscored``: items left out because one of the six responses
    has no reward."""

    items: int
    unscored: int
    matrix: list[list[float]]
    hard: float
    normal: float
    easy: float


@dataclass(frozen=True)
class RmBench:
    """``overall`` is the mean over the present domains of mean(hard, normal, easy)."""

    domains: dict[str, Domain]
    missing: list[str]
    hard: float
    normal: float
    easy: float
    overall: float


def domain(
    chosen_N3: Sequence[Sequence[float]],
    rejected_N3: Sequence[Sequence[float]],
    *,
    unscored: int = 0,
) -> Domain:
    """The matrix of one domain and its three means.

    hard: the 3 cells above the diagonal (a plainer chosen against a fancier rejected response);
    normal: the diagonal; easy: the 3 cells below.
    """
    chosen, rejected = np.asarray(chosen_N3, float), np.asarray(rejected_N3, float)
    matrix_33: NDArray[np.float64] = (chosen[:, :, None] > rejected[:, None, :]).mean(0)
    above, below = np.triu_indices(3, 1), np.tril_indices(3, -1)
    return Domain(
        items=len(chosen),
        unscored=unscored,
        matrix=matrix_33.tolist(),
        hard=float(matrix_33[above].mean()),
        normal=float(np.diag(matrix_33).mean()),
        easy=float(matrix_33[below].mean()),
    )


def summary(domains: Mapping[str, Domain]) -> RmBench:
    """Means over domains, each with the same weight."""
    parts = domains.values()
    return RmBench(
        domains=dict(domains),
        missing=[name for name in DOMAINS if name not in domains],
        hard=mean(part.hard for part in parts),
        normal=mean(part.normal for part in parts),
        easy=mean(part.easy for part in parts),
        overall=mean(mean((part.hard, part.normal, part.easy)) for part in parts),
    )


def domain_of(name: str) -> str:
    """``safety-refuse`` and ``safety-response`` are pooled as ``safety``."""
    return name.split("-", 1)[0].split("_", 1)[0]


def read_items(path: Path) -> list[Item]:
    """The items of one file, a JSON array, plain or gzipped.

    Raises:
        UsageError: no such file, or not in RM-Bench's form.
    """
    if not path.is_file():
        raise UsageError(f"rm_bench: {path}: no such file")
    data = path.read_bytes()
    try:
        rows = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
        items = [_item(row) for row in rows]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UsageError(f"rm_bench: {path}: not a list of RM-Bench items: {error}") from None
    if not items:
        raise UsageError(f"rm_bench: {path}: no items in it")
    return items


def _item(row: Mapping[str, Any]) -> Item:
    chosen, rejected = tuple(row["chosen"]), tuple(row["rejected"])
    if len(chosen) != 3 or len(rejected) != 3:
        raise ValueError("chosen and rejected need three responses each")
    return Item(row["prompt"], chosen, rejected)
