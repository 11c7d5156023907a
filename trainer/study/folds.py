"""Who is held out from which replicate.

A replicate is a seed, a fold of prompts and a list of lineages: its arms share all three, so that
they start from the same head, see the same pairs in the same order, and differ by the loss alone.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reward_model.errors import UsageError
from trainer.study.config import DesignSettings

HELD_OUT_PER_PROMPT = 8
"""Train models whose response to a train prompt is kept for the in-domain cell."""

Side = tuple[Sequence[str], Sequence[str]]
"""Prompts and response models."""


@dataclass(frozen=True)
class Replicate:
    """``splits`` is in the form of ``splits.json``; so are ``dev``, the one of the dev set, and
    ``strong``, with the strong models as the valid ones."""

    number: int
    seed: int
    held_out_lineages: tuple[str, ...]
    splits: dict[str, Any]
    dev: dict[str, Any]
    strong: dict[str, Any]


def replicates(
    splits: Mapping[str, Any], lineages: Mapping[str, str], design: DesignSettings
) -> list[Replicate]:
    """All replicates of a design.

    Args:
        splits: of the source. Prompts that occur in a benchmark are never trained on; models that
            attack the judge, the judge's baseline and the strong ones are in no cell.
        lineages: of every response model.

    Raises:
        UsageError: a lineage that no model has, or one that may not be held out.
    """
    models = sorted([*splits["train_models"], *splits["valid_models"]])
    by_lineage = {name: [m for m in models if lineages[m] == name] for name in lineages.values()}
    _refuse_unknown(design, {name for name, found in by_lineage.items() if found})
    if design.hold_out == "valid":
        _refuse_trained(design, {lineages[model] for model in splits["train_models"]})
    dev_models = [model for name in design.dev_lineages for model in by_lineage[name]]
    strong_models = splits["strong_ood_models"]
    dev_prompts, always, folds = _prompts(splits, design)
    found = []
    for number in range(design.replicates):
        fold = number % design.prompt_folds
        # The shift lets the same prompts meet other lineages in the next round of the folds.
        turn = (number + number // design.prompt_folds) % len(design.lineage_folds)
        held = tuple(design.lineage_folds[turn])
        valid_models = [model for name in held for model in by_lineage[name]]
        train_models = [m for m in models if m not in valid_models and m not in dev_models]
        held_prompts = folds[fold]
        train_prompts = [*always, *(p for one in folds if one is not held_prompts for p in one)]
        train = train_prompts, train_models
        found.append(
            Replicate(
                number,
                seed=design.seed * 1000 + number,
                held_out_lineages=held,
                splits=_splits(splits, train, (held_prompts, valid_models), number),
                dev=_splits(splits, train, (dev_prompts, dev_models), number),
                strong=_splits(splits, train, (held_prompts, strong_models), number),
            )
        )
    return found


def _prompts(
    splits: Mapping[str, Any], design: DesignSettings
) -> tuple[list[str], list[str], list[list[str]]]:
    """Those of the dev set, those that every replicate trains on, and the folds."""
    draw = random.Random(f"{design.seed}/prompts")
    if design.hold_out == "all":
        prompts = sorted([*splits["train_prompts"], *splits["valid_prompts"]])
        draw.shuffle(prompts)
        dev, always, held = prompts[: design.dev_prompts], [], prompts[design.dev_prompts :]
    else:
        train, held = sorted(splits["train_prompts"]), sorted(splits["valid_prompts"])
        draw.shuffle(train)
        draw.shuffle(held)
        dev, always = train[: design.dev_prompts], train[design.dev_prompts :]
    return dev, always, [held[fold :: design.prompt_folds] for fold in range(design.prompt_folds)]


def _splits(source: Mapping[str, Any], train: Side, valid: Side, number: int) -> dict[str, Any]:
    (train_prompts, train_models), (valid_prompts, valid_models) = train, valid

    def held_out(prompt: str) -> list[str]:
        count = min(HELD_OUT_PER_PROMPT, len(train_models) // 3)
        return random.Random(f"{number}/{prompt}").sample(train_models, count)

    return {
        "train_prompts": list(train_prompts),
        "valid_prompts": list(valid_prompts),
        "valid_prompts_benchmark_overlap": source["valid_prompts_benchmark_overlap"],
        "train_models": list(train_models),
        "valid_models": list(valid_models),
        "strong_ood_models": [m for m in source["strong_ood_models"] if m not in valid_models],
        "excluded_models": source["excluded_models"],
        "id_heldout_models_per_train_prompt": {p: held_out(p) for p in train_prompts},
    }


def _refuse_unknown(design: DesignSettings, known: set[str]) -> None:
    for name in [*design.dev_lineages, *(one for fold in design.lineage_folds for one in fold)]:
        if name not in known:
            raise UsageError(
                f"design: no response model is of the lineage {name}; there are "
                f"{', '.join(sorted(known))}"
            )


def _refuse_trained(design: DesignSettings, trained: set[str]) -> None:
    for name in (one for fold in design.lineage_folds for one in fold):
        if name in trained:
            raise UsageError(
                f"design: lineage_folds: {name} has train models of the source; with hold_out "
                "valid only lineages without any can be held out"
            )
