"""Several seeds with one command: a run for each, and one report that compares them."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward_model import atomic
from trainer.report import Report
from trainer.reward.config import RewardSettings
from trainer.reward.run_directory import REPORT
from trainer.reward.train import train

SWEEP, PAGE = "sweep.json", "sweep.html"


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n − 1) over seeds; None with a single seed."""

    mean: float
    std: float | None
    values: list[float]


def sweep(settings: RewardSettings) -> None:
    """Train ``settings.seeds`` runs, from ``settings.seed`` on, in ``output_dir/seed-<n>``.

    Finished runs are kept and a killed one goes on, so a killed sweep goes on as well.
    """
    seeds = range(settings.seed, settings.seed + settings.seeds)
    for seed in seeds:
        train(one_seed(settings, seed))
    if not is_first_rank():
        return
    reports = [
        json.loads((one_seed(settings, seed).output_dir / REPORT).read_text()) for seed in seeds
    ]
    spreads = compare(reports)
    write(settings.output_dir, list(seeds), spreads)
    for name, spread in spreads.items():
        if name.endswith("/accuracy"):
            print(f"{name}: {spread.mean:.4f} ± {spread.std or 0:.4f} over {len(seeds)} seeds")


def one_seed(settings: RewardSettings, seed: int) -> RewardSettings:
    return settings.model_copy(
        update={"seed": seed, "seeds": 1, "output_dir": settings.output_dir / f"seed-{seed}"}
    )


def compare(reports: Sequence[dict[str, Any]]) -> dict[str, Spread]:
    """Every final measurement that all runs have, and ‖W_p‖, over the runs."""
    tables = [
        {
            f"{name}/{key}": value
            for name, values in report["measured"].items()
            for key, value in values.items()
        }
        | {"head_norm": report["training"]["head_norm"]}
        for report in reports
    ]
    names = [name for name in tables[0] if all(_is_number(table.get(name)) for table in tables)]
    return {name: _spread([table[name] for table in tables]) for name in names}


def write(output_dir: Path, seeds: Sequence[int], spreads: dict[str, Spread]) -> None:
    """``sweep.json`` and ``sweep.html``."""
    values = {name: vars(spread) for name, spread in spreads.items()}
    content = {"seeds": list(seeds), "measured": values}
    atomic.write_text(output_dir / SWEEP, json.dumps(content, indent=2) + "\n")
    page = Report("Reward models over seeds", f"Seeds {', '.join(map(str, seeds))}.")
    page.table(
        ["measurement", "mean", "standard deviation", *(f"seed {seed}" for seed in seeds)],
        [[name, one.mean, one.std, *one.values] for name, one in spreads.items()],
        "At the last step of each run; head norm is ‖W_p‖. Standard deviation with n − 1.",
    )
    page.write(output_dir / PAGE)


def is_first_rank() -> bool:
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


def _spread(values: list[float]) -> Spread:
    std = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.mean(values), std, values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
