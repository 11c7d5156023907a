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


@dataclass(frozen=True)
class Replicate:
    """``splits`` is in the form of ``splits.json``, ``dev`` is the one of the dev set."""

    number: int
    seed: int
    held_out_lineages: tuple[str, ...]
    splits: dict[str, Any]
    dev: dict[str, Any]


def replicates(
    splits: Mapping[str, Any], lineages: Mapping[str, str], design: DesignSettings
) -> list[Replicate]:
    """All replicates of a design.

    Args:
        splits: of the source. Prompts that occur in a benchmark are never trained on; models that
            attack the judge, the judge's baseline and the strong ones are in no cell.
        lineages: of every response model.

    Raises:
        UsageError: a lineage that no model has.
    """
    models = sorted([*splits["train_models"], *splits["valid_models"]])
    by_lineage = {name: [m for m in models if lineages[m] == name] for name in lineages.values()}
    _refuse_unknown(design, {name for name, found in by_lineage.items() if found})
    dev_models = [model for name in design.dev_lineages for model in by_lineage[name]]
    prompts = sorted([*splits["train_prompts"], *splits["valid_prompts"]])
    random.Random(f"{design.seed}/prompts").shuffle(prompts)
    dev_prompts, rest = prompts[: design.dev_prompts], prompts[design.dev_prompts :]
    folds = [rest[fold :: design.prompt_folds] for fold in range(design.prompt_folds)]
    found = []
    for number in range(design.replicates):
        fold = number % design.prompt_folds
        # The shift lets the same prompts meet other lineages in the next round of the folds.
        turn = (number + number // design.prompt_folds) % len(design.lineage_folds)
        held = tuple(design.lineage_folds[turn])
        valid_models = [model for name in held for model in by_lineage[name]]
        train_models = [m for m in models if m not in valid_models and m not in dev_models]
        train_prompts = [p for other in range(design.prompt_folds) if other != fold
                         for p in folds[other]]  # fmt: skip
        found.append(
            Replicate(
                number,
                seed=design.seed * 1000 + number,
                held_out_lineages=held,
                splits=_splits(
                    splits, train_prompts, folds[fold], train_models, valid_models, number
                ),
                dev=_splits(splits, train_prompts, dev_prompts, train_models, dev_models, number),
            )
        )
    return found


def _splits(
    source: Mapping[str, Any],
    train_prompts: Sequence[str],
    valid_prompts: Sequence[str],
    train_models: Sequence[str],
    valid_models: Sequence[str],
    number: int,
) -> dict[str, Any]:
    def held_out(prompt: str) -> list[str]:
        count = min(HELD_OUT_PER_PROMPT, len(train_models) // 3)
        return random.Random(f"{number}/{prompt}").sample(train_models, count)

    return {
        "train_prompts": list(train_prompts),
        "valid_prompts": list(valid_prompts),
        "valid_prompts_benchmark_overlap": source["valid_prompts_benchmark_overlap"],
        "train_models": list(train_models),
        "valid_models": list(valid_models),
        "strong_ood_models": source["strong_ood_models"],
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
