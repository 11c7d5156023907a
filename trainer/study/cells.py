"""The files of a replicate: train pairs, the four cells, and the dev set.

Every arm reads the same files. What the backbone cannot read whole is left out and counted, so
that no arm sees a cut response.
"""

import gzip
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward_model import atomic
from reward_model.encode import Encoder
from reward_model.errors import ItemError, UsageError
from trainer.data.alpaca_eval import CELLS, AlpacaEvalSettings, split_alpaca_eval
from trainer.data.rows import Row, write_rows
from trainer.study.config import DesignSettings
from trainer.study.folds import Replicate

DEV = "dev_mutual"
STRONG = "strong_ood"
COUNTS = "cells.json"


def measured(design: DesignSettings) -> tuple[str, ...]:
    """Names of the cells of a replicate."""
    return (*CELLS, DEV, STRONG) if design.strong_ood else (*CELLS, DEV)


@dataclass(frozen=True)
class Source:
    """What the source directory holds, read once."""

    prompts: list[Row]
    splits: dict[str, Any]
    lineages: dict[str, str]


def read_source(directory: Path) -> Source:
    """Read the three files of ``directory``.

    Raises:
        UsageError: names the file that is missing.
    """
    for name in ("prompts.jsonl.gz", "splits.json", "models.json"):
        if not (directory / name).is_file():
            raise UsageError(f"source: {directory / name}: no such file")
    with gzip.open(directory / "prompts.jsonl.gz", "rt", encoding="utf-8") as file:
        prompts = [json.loads(line) for line in file]
    models = json.loads((directory / "models.json").read_text(encoding="utf-8"))
    lineages = {name: model["lineage"] for name, model in models.items()}
    splits = json.loads((directory / "splits.json").read_text(encoding="utf-8"))
    return Source(prompts, splits, lineages)


def write_cells(
    replicate: Replicate, source: Source, design: DesignSettings, encoder: Encoder, out: Path
) -> dict[str, Any]:
    """Write ``train.jsonl``, a file per cell and ``cells.json`` into ``out``; return the counts.

    Raises:
        UsageError: a cell in which nothing is left.
    """
    options = AlpacaEvalSettings(
        source=Path("."),
        out=out,
        pairs_per_prompt=design.pairs_per_prompt,
        min_gold_gap=design.min_gold_gap,
        seed=replicate.seed,
    )
    split = split_alpaca_eval(source.prompts, replicate.splits, options)
    dev = split_alpaca_eval(source.prompts, replicate.dev, options)
    trained = {row[side].strip() for row in split.train for side in ("chosen", "rejected")}
    cells = split.cells | {DEV: _without(dev.cells["mutual_ood"], trained)}
    if design.strong_ood:
        strong = split_alpaca_eval(source.prompts, replicate.strong, options)
        cells[STRONG] = _without(strong.cells["mutual_ood"], trained)
    train, too_long = _fitting_pairs(split.train, design.train_pairs, encoder)
    counts: dict[str, Any] = {
        "replicate": replicate.number,
        "held_out_lineages": replicate.held_out_lineages,
        "train": {"pairs": len(train), "too_long": too_long},
    }
    write_rows(out / "train.jsonl", train)
    for name in measured(design):
        rows, lost = _sample(cells[name], name, replicate, design, encoder)
        if not rows:
            raise UsageError(f"design: replicate {replicate.number} has nothing in cell {name}")
        for row in rows:
            for response in row["responses"]:
                response["lineage"] = source.lineages[response["model"]]
        write_rows(out / f"{name}.jsonl", rows)
        responses = sum(len(row["responses"]) for row in rows)
        counts[name] = {"prompts": len(rows), "responses": responses, "too_long": lost}
    atomic.write_text(out / COUNTS, json.dumps(counts, indent=2) + "\n")
    return counts


def _without(rows: list[Row], texts: set[str]) -> list[Row]:
    return [
        row | {"responses": [one for one in row["responses"] if one["text"].strip() not in texts]}
        for row in rows
    ]


def _fitting_pairs(rows: list[Row], limit: int, encoder: Encoder) -> tuple[list[Row], int]:
    kept: list[Row] = []
    too_long = 0
    for row in rows:
        if len(kept) == limit:
            break
        if all(_fits(encoder, row["prompt"], row[side]) for side in ("chosen", "rejected")):
            kept.append(row)
        else:
            too_long += 1
    return kept, too_long


def _sample(
    rows: list[Row], cell: str, replicate: Replicate, design: DesignSettings, encoder: Encoder
) -> tuple[list[Row], int]:
    """Prompts with at least two responses that fit, so many responses of each."""
    draw = random.Random(f"{replicate.seed}/{cell}")
    kept: list[Row] = []
    too_long = 0
    for row in draw.sample(rows, len(rows)):
        if len(kept) == design.cell_prompts:
            break
        fitting = [one for one in row["responses"] if _fits(encoder, row["prompt"], one["text"])]
        too_long += len(row["responses"]) - len(fitting)
        if len(fitting) > 1:
            count = min(design.cell_responses, len(fitting))
            kept.append(row | {"responses": draw.sample(fitting, count)})
    return kept, too_long


def _fits(encoder: Encoder, prompt: Any, response: str) -> bool:
    try:
        encoder.prompt_response(prompt, response)
    except ItemError:
        return False
    return True
