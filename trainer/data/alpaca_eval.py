"""The five-way split of AlpacaEval responses with a gold preference, as files of this project.

    python -m trainer.data.alpaca_eval --source ../shared/data/alpaca_eval --out data/alpaca_eval

Reads ``prompts.jsonl.gz`` and ``splits.json`` of the source and writes

    train.jsonl         pairs: train prompts × train models without the held-out ones
    in_domain.jsonl     scored: train prompts × the train models held out for each
    prompt_ood.jsonl    scored: valid prompts × train models
    response_ood.jsonl  scored: train prompts × valid models
    mutual_ood.jsonl    scored: valid prompts × valid models
    llmbar.jsonl        pairs, when ``../eval_pairs/llmbar.jsonl.gz`` stands beside the source
    split.json          what was read, dropped and written

Checked: no prompt and no response model is on both sides of a split. Empty responses are dropped,
and so are responses of the four cells whose text equals a response of the train cell.
"""

import gzip
import itertools
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from reward_model import atomic
from reward_model.command import Settings, run
from reward_model.errors import UsageError
from trainer.data.rows import Row, write_rows

CELLS = ("in_domain", "prompt_ood", "response_ood", "mutual_ood")


class AlpacaEvalSettings(Settings):
    """Where to read, where to write, and how many pairs to make."""

    source: Path = Field(description="directory with prompts.jsonl.gz and splits.json")
    out: Path = Field(description="directory to write the split files to")
    pairs_per_prompt: int = Field(default=24, gt=0, description="train pairs per prompt, at most")
    min_gold_gap: float = Field(default=1.0, gt=0, description="least |gold difference| of a pair")
    seed: int = 0


@dataclass(slots=True)
class Split:
    """The cells as rows, and what was dropped on the way."""

    train: list[Row] = field(default_factory=list)
    cells: dict[str, list[Row]] = field(default_factory=lambda: {name: [] for name in CELLS})
    dropped: dict[str, dict[str, int]] = field(
        default_factory=lambda: {name: {"empty": 0, "equal_to_train": 0} for name in CELLS}
    )


def split_alpaca_eval(
    prompts: list[Row], splits: dict[str, Any], settings: AlpacaEvalSettings
) -> Split:
    """Divide scored responses into the train pairs and the four evaluation cells.

    Raises:
        UsageError: the split is not disjoint, or names a prompt that is not there.
    """
    check_disjoint(splits)
    by_id = {prompt["prompt_id"]: prompt for prompt in prompts}
    train_prompts = _pick(by_id, splits["train_prompts"])
    valid_prompts = _pick(by_id, splits["valid_prompts"])
    train_models, valid_models = set(splits["train_models"]), set(splits["valid_models"])
    held_out = splits["id_heldout_models_per_train_prompt"]

    result = Split()
    seen_texts: set[str] = set()
    for prompt in train_prompts:
        models = train_models - set(held_out[prompt["prompt_id"]])
        responses = [entry for entry in _responses(prompt, models) if entry["text"].strip()]
        seen_texts |= {entry["text"].strip() for entry in responses}
        result.train += _train_pairs(prompt, responses, settings)
    random.Random(settings.seed).shuffle(result.train)
    for prompt in train_prompts:
        _add(result, "in_domain", prompt, set(held_out[prompt["prompt_id"]]), seen_texts)
        _add(result, "response_ood", prompt, valid_models, seen_texts)
    for prompt in valid_prompts:
        _add(result, "prompt_ood", prompt, train_models, seen_texts)
        _add(result, "mutual_ood", prompt, valid_models, seen_texts)
    return result


def check_disjoint(splits: dict[str, Any]) -> None:
    """Refuse a split with a prompt or a response model on both sides.

    Raises:
        UsageError: names what is shared.
    """
    others = splits["valid_models"] + splits["strong_ood_models"] + splits["excluded_models"]
    _refuse_common("response models", splits["train_models"], others)
    held_back = splits["valid_prompts"] + splits["valid_prompts_benchmark_overlap"]
    _refuse_common("prompts", splits["train_prompts"], held_back)
    for prompt_id, models in splits["id_heldout_models_per_train_prompt"].items():
        if stray := set(models) - set(splits["train_models"]):
            raise UsageError(
                f"splits.json: {prompt_id} holds out {sorted(stray)[0]}: no train model"
            )


def _refuse_common(what: str, left: list[str], right: list[str]) -> None:
    if common := sorted(set(left) & set(right)):
        raise UsageError(
            f"splits.json: {what} for training and for validation overlap: {', '.join(common[:3])}"
        )


def _pick(by_id: dict[str, Row], ids: list[str]) -> list[Row]:
    for name in ids:
        if name not in by_id:
            raise UsageError(f"prompts.jsonl.gz: prompt {name} of splits.json is missing")
    return [by_id[name] for name in ids]


def _responses(prompt: Row, models: set[str]) -> list[Row]:
    return [
        {"model": entry["model"], "text": entry["output"], "gold": entry["gold"]}
        for entry in prompt["responses"]
        if entry["model"] in models and entry["gold"] is not None
    ]


def _turns(prompt: Row) -> list[Row]:
    return [{"role": "user", "content": prompt["instruction"]}]


def _train_pairs(prompt: Row, responses: list[Row], settings: AlpacaEvalSettings) -> Iterator[Row]:
    """Up to ``pairs_per_prompt`` pairs, drawn without replacement from those with gap enough."""
    candidates = [
        (one, two)
        for one, two in itertools.combinations(responses, 2)
        if abs(one["gold"] - two["gold"]) >= settings.min_gold_gap and one["text"] != two["text"]
    ]
    draw = random.Random(f"{settings.seed}/{prompt['prompt_id']}")
    for pair in draw.sample(candidates, min(settings.pairs_per_prompt, len(candidates))):
        better, worse = sorted(pair, key=lambda entry: entry["gold"], reverse=True)
        yield {
            "prompt_id": prompt["prompt_id"],
            "prompt": _turns(prompt),
            "chosen": better["text"],
            "rejected": worse["text"],
            "chosen_model": better["model"],
            "rejected_model": worse["model"],
            "gold_gap": round(better["gold"] - worse["gold"], 6),
        }


def _add(split: Split, cell: str, prompt: Row, models: set[str], seen_texts: set[str]) -> None:
    kept = []
    for entry in _responses(prompt, models):
        if not entry["text"].strip():
            split.dropped[cell]["empty"] += 1
        elif entry["text"].strip() in seen_texts:
            split.dropped[cell]["equal_to_train"] += 1
        else:
            kept.append(entry)
    if kept:
        row = {"prompt_id": prompt["prompt_id"], "prompt": _turns(prompt), "responses": kept}
        split.cells[cell].append(row)


def count_pairs(rows: list[Row], min_gold_gap: float) -> int:
    """Pairs of one prompt's responses whose gold scores lie at least ``min_gold_gap`` apart."""
    return sum(
        abs(one["gold"] - two["gold"]) >= min_gold_gap
        for row in rows
        for one, two in itertools.combinations(row["responses"], 2)
    )


def write_split(settings: AlpacaEvalSettings) -> dict[str, Any]:
    """Read the source, write all files, and return the content of ``split.json``."""
    prompts = _read_prompts(settings.source / "prompts.jsonl.gz")
    splits = json.loads(_text(settings.source / "splits.json"))
    split = split_alpaca_eval(prompts, splits, settings)
    out = settings.out
    report: dict[str, Any] = {
        "seed": settings.seed,
        "pairs_per_prompt": settings.pairs_per_prompt,
        "min_gold_gap": settings.min_gold_gap,
        "prompts_read": len(prompts),
        "cells": {"train": {"pairs": write_rows(out / "train.jsonl", split.train)}},
    }
    for name, rows in split.cells.items():
        report["cells"][name] = {
            "prompts": write_rows(out / f"{name}.jsonl", rows),
            "responses": sum(len(row["responses"]) for row in rows),
            "pairs": count_pairs(rows, settings.min_gold_gap),
            "dropped": split.dropped[name],
        }
    llmbar = settings.source.parent / "eval_pairs" / "llmbar.jsonl.gz"
    if llmbar.is_file():
        rows = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]}
                for row in _read_prompts(llmbar)]  # fmt: skip
        report["cells"]["llmbar"] = {"pairs": write_rows(out / "llmbar.jsonl", rows)}
    atomic.write_text(out / "split.json", json.dumps(report, indent=2) + "\n")
    return report


def _read_prompts(path: Path) -> list[Row]:
    if not path.is_file():
        raise UsageError(f"{path}: no such file; --source is the alpaca_eval directory")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _text(path: Path) -> str:
    if not path.is_file():
        raise UsageError(f"{path}: no such file; --source is the alpaca_eval directory")
    return path.read_text(encoding="utf-8")


def _command(settings: AlpacaEvalSettings) -> None:
    report = write_split(settings)
    for name, counts in report["cells"].items():
        print(f"{name:13}", ", ".join(f"{key} {value}" for key, value in counts.items()))


def main() -> int:
    return run(AlpacaEvalSettings, _command, prog="python -m trainer.data.alpaca_eval")


if __name__ == "__main__":
    sys.exit(main())
