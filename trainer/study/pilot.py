"""Which learning rate: the baseline of replicate 0 at several, judged on the dev set alone."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from reward_model import atomic
from trainer.study.cells import DEV
from trainer.study.config import StudySettings
from trainer.study.folds import Replicate
from trainer.study.records import Record
from trainer.study.runs import prepare, record_path, recorded, records_directory, run_settings

PILOT = "pilot.json"


@dataclass(frozen=True)
class Trial:
    """A learning rate, and Kendall's τ-b on the dev set at every measured step."""

    lr: float
    taus: dict[int, float]

    @property
    def best(self) -> tuple[int, float]:
        """The step with the highest τ-b after the first, and what it was."""
        return max(((step, tau) for step, tau in self.taus.items() if step), key=lambda one: one[1])


def try_rates(settings: StudySettings) -> Iterator[Trial]:
    """One trial after another; finished ones are read from their records.

    The rate that the study is set to is the study's own run, recorded where that looks for it.
    Rates that other processes are at come last.

    Raises:
        UsageError: a record is of a run with other settings or on other data.
    """
    replicate = next(prepare(settings))
    left = []
    for rate in settings.pilot or ():
        record = _tried(settings, replicate, rate, wait=False)
        if record is None:
            left.append(rate)
        else:
            yield _trial(rate, record)
    for rate in left:
        if record := _tried(settings, replicate, rate, wait=True):
            yield _trial(rate, record)


def _tried(
    settings: StudySettings, replicate: Replicate, rate: float, *, wait: bool
) -> Record | None:
    training = settings.training.model_copy(update={"lr": rate})
    tried = settings.model_copy(update={"training": training})
    run = run_settings(tried, settings.baseline, replicate.number, replicate.seed)
    path = record_path(settings, settings.baseline, replicate.number)
    if rate != settings.training.lr:
        name = f"lr-{rate:g}"
        run = run.model_copy(update={"output_dir": settings.output_dir / "pilot" / name})
        path = records_directory(settings) / "pilot" / f"{name}.json"
    return recorded(tried, run, path, replicate.number, wait=wait)


def _trial(rate: float, record: Record) -> Trial:
    return Trial(rate, {step: found[DEV].tau for step, found in record.trajectory.items()})


def write_trials(settings: StudySettings, trials: list[Trial]) -> None:
    """``pilot.json``: learning rate → step → τ-b on the dev set."""
    content = {f"{trial.lr:g}": trial.taus for trial in trials}
    atomic.write_text(settings.output_dir / PILOT, json.dumps(content, indent=2) + "\n")
