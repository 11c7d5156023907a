"""Every arm of every replicate, trained by ``trainer.reward`` and measured along the way."""

from collections.abc import Iterator
from pathlib import Path

from reward_model.model import RewardModel
from trainer.reward.config import RewardSettings
from trainer.reward.train import train
from trainer.study.cells import COUNTS, MEASURED, read_source, write_cells
from trainer.study.config import StudySettings
from trainer.study.folds import replicates

EVERY = 10**9
"""More prompts or responses than a cell has: nothing is drawn again."""


def run_all(settings: StudySettings) -> Iterator[int]:
    """Train what is not trained yet; yield the number of every replicate when it is complete.

    Replicates come one after another, all arms of one before the next, so that a study that was
    stopped early can be analysed. A killed one goes on in the middle of a run.
    """
    source = read_source(settings.source)
    encoder = None
    for replicate in replicates(source.splits, source.lineages, settings.design):
        cells = cells_directory(settings, replicate.number)
        if not (cells / COUNTS).is_file():
            encoder = (
                encoder
                or RewardModel.from_backbone(
                    settings.backbone, max_length=settings.design.max_length
                ).encoder
            )
            write_cells(replicate, source, settings.design, encoder, cells)
        for arm in settings.arms:
            train(run_settings(settings, arm, replicate.number, replicate.seed))
        yield replicate.number


def cells_directory(settings: StudySettings, number: int) -> Path:
    return settings.output_dir / "cells" / f"replicate-{number}"


def run_directory(settings: StudySettings, arm: str, number: int) -> Path:
    return settings.output_dir / "runs" / arm / f"replicate-{number}"


def run_settings(settings: StudySettings, arm: str, number: int, seed: int) -> RewardSettings:
    """The run of one arm and replicate. Head and order of pairs follow from the seed alone."""
    cells, training = cells_directory(settings, number), settings.training
    micro = settings.arms[arm].scope == "micro"
    steps = -(-settings.design.train_pairs // training.batch_pairs) * training.epochs
    return RewardSettings.model_validate(
        {
            "backbone": settings.backbone,
            "output_dir": run_directory(settings, arm, number),
            "loss": settings.arms[arm].model_dump(by_alias=True),
            "data": {
                "train": str(cells / "train.jsonl"),
                "max_length": settings.design.max_length,
                "validation": {name: str(cells / f"{name}.jsonl") for name in MEASURED},
                "validation_limit": EVERY,
                "validation_responses": EVERY,
                "min_gold_gap": settings.design.min_gold_gap,
            },
            "optimiser": {
                "lr": training.lr,
                "batch_pairs": training.batch_pairs,
                "epochs": training.epochs,
            },
            "compute": {
                "micro_batch_tokens": training.micro_batch_tokens,
                "micro_batch_pairs": training.micro_batch_pairs if micro else None,
            },
            "run": {
                "validate_every": max(steps // training.measurements, 1),
                "checkpoint_every": max(steps // training.measurements, 1),
                "keep_checkpoints": 1,
                "keep_rewards": True,
                "tensorboard": False,
            },
            "seed": seed,
        }
    )
