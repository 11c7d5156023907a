"""Every arm of every replicate, trained by ``trainer.reward`` and measured along the way."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from reward_model.model import RewardModel
from trainer.lock import locked
from trainer.reward.config import RewardSettings
from trainer.reward.run_directory import REWARDS
from trainer.reward.train import train
from trainer.study.benchmarks import benchmark_digests, benchmarks_path, measure
from trainer.study.cells import COUNTS, measured, read_source, write_cells
from trainer.study.config import StudySettings
from trainer.study.folds import Replicate, replicates
from trainer.study.measures import CellPrompt, read_cell
from trainer.study.records import Record, digests, identity_of, record_of

EVERY = 10**9
"""More prompts or responses than a cell has: nothing is drawn again."""


def run_all(settings: StudySettings) -> Iterator[int]:
    """Train and measure what has no record yet; yield a replicate's number when a round is done.

    The arms of the primary endpoint come first, then all others; a round's benchmarks come after
    its training. In a round replicates come one after another, so that a study that was stopped
    early can be analysed. A killed one goes on in the middle of a run. Several processes share the
    runs: each takes the next that none is at, and waits for the others at the end.

    Raises:
        UsageError: a record is of a run with other settings or on other data, or a benchmark's file
            is missing.
    """
    if settings.benchmarks is not None:
        benchmark_digests(settings.benchmarks)
    left = []
    for arms in _rounds(settings):
        for replicate in prepare(settings):
            if _run_arms(settings, replicate, arms, wait=False):
                yield replicate.number
            else:
                left.append((replicate, arms))
        for replicate in prepare(settings):
            if _measure_benchmarks(settings, replicate, arms):
                yield replicate.number
    for replicate, arms in left:
        _run_arms(settings, replicate, arms, wait=True)
        _measure_benchmarks(settings, replicate, arms)
        yield replicate.number


def _rounds(settings: StudySettings) -> list[list[str]]:
    others = [arm for arm in settings.arms if arm not in settings.primary_arms]
    return [settings.primary_arms, others] if others else [settings.primary_arms]


def _run_arms(
    settings: StudySettings, replicate: Replicate, arms: Sequence[str], *, wait: bool
) -> bool:
    """Whether all ``arms`` have a record now."""
    number = replicate.number
    for arm in arms:
        run = run_settings(settings, arm, number, replicate.seed)
        path = record_path(settings, arm, number)
        recorded(settings, run, path, number, wait=wait)
    return all(has_record(settings, arm, number) for arm in arms)


def recorded(
    settings: StudySettings, run: RewardSettings, path: Path, number: int, *, wait: bool
) -> Record | None:
    """The record at ``path`` of a run on replicate ``number``; trained if there is none yet.

    Args:
        wait: for another process that is at this run, instead of returning None.

    Raises:
        UsageError: it is of other settings or other data.
    """
    if path.is_file():
        return _read(settings, run, path, number)
    with locked(_lock(run.output_dir), wait=wait) as ours:
        if not ours:
            return None
        if path.is_file():
            return _read(settings, run, path, number)
        train(run)
        steps, cells = read_rewards(run.output_dir), read_cells(settings, number)
        hashes = _digests(settings, number)
        record = record_of(run, steps, cells, hashes, settings.design.min_gold_gap)
        record.write(path)
        return record


def _measure_benchmarks(settings: StudySettings, replicate: Replicate, arms: Sequence[str]) -> bool:
    """Of the finished runs that no other process is at; whether there were any to measure."""
    if settings.benchmarks is None:
        return False
    measured = False
    for arm in arms:
        run = run_settings(settings, arm, replicate.number, replicate.seed)
        record = record_path(settings, arm, replicate.number)
        path = benchmarks_path(record)
        with locked(_lock(run.output_dir), wait=False) as ours:
            if not ours or path.is_file() or not record.is_file():
                continue
            found = measure(
                run.output_dir, Path(run.data.train), settings.benchmarks,
                precision=settings.training.precision, seed=settings.design.seed,
            )  # fmt: skip
            if found is not None:
                found.write(path)
                measured = True
    return measured


def read_record(settings: StudySettings, arm: str, replicate: Replicate) -> Record:
    """The record of a run whose replicate is prepared.

    Raises:
        UsageError: it is of other settings or other data.
    """
    number = replicate.number
    run = run_settings(settings, arm, number, replicate.seed)
    return _read(settings, run, record_path(settings, arm, number), number)


def _lock(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.lock")


def _read(settings: StudySettings, run: RewardSettings, path: Path, number: int) -> Record:
    record = Record.read(path)
    record.check(path, identity_of(run), _digests(settings, number))
    return record


def _digests(settings: StudySettings, number: int) -> dict[str, str]:
    return digests(cells_directory(settings, number), measured(settings.design))


def prepare(settings: StudySettings, *, complete: bool = False) -> Iterator[Replicate]:
    """Every replicate, or only those whose primary arms have records, with its cells written."""
    source = read_source(settings.source)
    encoder = None
    for replicate in replicates(source.splits, source.lineages, settings.design):
        number = replicate.number
        if complete and not all(has_record(settings, arm, number) for arm in settings.primary_arms):
            continue
        cells = cells_directory(settings, number)
        with locked(_lock(cells), wait=True):
            if not (cells / COUNTS).is_file():
                encoder = (
                    encoder
                    or RewardModel.from_backbone(
                        settings.backbone, max_length=settings.design.max_length
                    ).encoder
                )
                write_cells(replicate, source, settings.design, encoder, cells)
        yield replicate


def has_record(settings: StudySettings, arm: str, number: int) -> bool:
    """Whether a run is finished."""
    return record_path(settings, arm, number).is_file()


def finished(settings: StudySettings) -> dict[str, int]:
    """The files of records that are there, and when they were written, in ns."""
    paths = records_directory(settings).rglob("*.json")
    return {str(path): path.stat().st_mtime_ns for path in paths}


def read_cells(settings: StudySettings, number: int) -> dict[str, list[CellPrompt]]:
    """The measured cells of a replicate."""
    directory = cells_directory(settings, number)
    names = measured(settings.design)
    return {name: read_cell(directory / f"{name}.jsonl") for name in names}


def read_rewards(run: Path) -> dict[int, dict[str, list[float]]]:
    """Step → set → rewards, of one run."""
    found = {}
    for path in (run / REWARDS).glob("step-*.json"):
        if match := re.fullmatch(r"step-(\d+)\.json", path.name):
            found[int(match[1])] = json.loads(path.read_text())
    return found


def cells_directory(settings: StudySettings, number: int) -> Path:
    return settings.output_dir / "cells" / f"replicate-{number}"


def record_path(settings: StudySettings, arm: str, number: int) -> Path:
    return records_directory(settings) / f"replicate-{number}" / f"{arm}.json"


def records_directory(settings: StudySettings) -> Path:
    return settings.records or settings.output_dir / "records"


def run_directory(settings: StudySettings, arm: str, number: int) -> Path:
    return settings.output_dir / "runs" / arm / f"replicate-{number}"


def run_settings(settings: StudySettings, arm: str, number: int, seed: int) -> RewardSettings:
    """The run of one arm and replicate. Head and order of pairs follow from the seed alone."""
    cells, training = cells_directory(settings, number), settings.training
    micro, names = settings.arms[arm].scope == "micro", measured(settings.design)
    steps = -(-settings.design.train_pairs // training.batch_pairs) * training.epochs
    return RewardSettings.model_validate(
        {
            "backbone": settings.backbone,
            "output_dir": run_directory(settings, arm, number),
            "loss": settings.arms[arm].model_dump(by_alias=True),
            "data": {
                "train": str(cells / "train.jsonl"),
                "max_length": settings.design.max_length,
                "validation": {name: str(cells / f"{name}.jsonl") for name in names},
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
                "precision": training.precision,
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
