"""``report.json``: what a run was given, what it did with it, and what came out."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from reward_model import atomic
from reward_model.contract import Contract
from trainer.reward.bsr import weights
from trainer.reward.checkpoint import Progress
from trainer.reward.config import RewardSettings
from trainer.reward.dataset import Data
from trainer.reward.run_directory import REPORT


def run_report(
    settings: RewardSettings,
    data: Data,
    steps: int,
    progress: Progress,
    measured: dict[str, dict[str, float]],
    contract: Contract,
    head_norm: float,
) -> dict[str, Any]:
    """The report of a finished run as one JSON object. ``best`` is null if none was asked for."""
    best = progress.best
    return {
        "settings": settings.model_dump(mode="json", by_alias=True, exclude_none=True),
        "objective": objective_weights(settings),
        "data": {
            "rows": data.source.rows,
            "faulty_rows": dict(data.source.faults),
            "pairs": len(data.source.pairs),
            "lost_pairs": dict(data.examples.lost),
            "pairs_with_cut_prompt": data.examples.cut,
            "pairs_trained": len(data.examples.examples),
            "margin_used": data.use_margin,
            "lost_validation_items": {one.name: one.lost for one in data.validation},
        },
        "training": {
            "steps": progress.step,
            "steps_planned": steps,
            "head_norm": head_norm,
            "tokens": progress.tokens,
            "seconds": round(progress.seconds, 1),
            "tokens_per_second": round(progress.tokens / max(progress.seconds, 1e-9)),
        },
        "best": None if best.step is None else {"by": settings.run.best_by} | asdict(best),
        "measured": measured,
        "contract": contract.model_dump(mode="json", by_alias=True, exclude_none=True),
    }


def objective_weights(settings: RewardSettings) -> dict[str, float]:
    """What a full batch's penalty weighs on μ² and on v, so that arms can be compared.

    μ is the mean reward and v the variance of pair means; see :mod:`trainer.reward.bsr`. Over
    several ranks a ``device`` scope covers fewer pairs than is assumed here.
    """
    loss = settings.loss
    if loss.name == "bt_bsr" and loss.lambda_ is not None and loss.scale is not None:
        pairs = settings.optimiser.batch_pairs
        if loss.scope == "micro":
            pairs = settings.compute.micro_batch_pairs or pairs
        both = weights(loss.lambda_, loss.scale, pairs)
        return {"squared_mean": both.squared_mean, "pair_variance": both.pair_variance}
    if loss.name == "bt_center" and loss.c is not None:
        return {"squared_mean": 4 * loss.c, "pair_variance": 4 * loss.c}
    if loss.name == "bt_l2" and loss.lambda_ is not None:
        return {"squared_mean": loss.lambda_, "pair_variance": loss.lambda_}
    return {"squared_mean": 0.0, "pair_variance": 0.0}


def write_report(run_dir: Path, report: dict[str, Any]) -> None:
    """Write ``report.json``; its presence says that the run is finished."""
    atomic.write_text(run_dir / REPORT, json.dumps(report, indent=2) + "\n")


def headline(report: dict[str, Any]) -> str:
    """One line: how much was trained, and the accuracies."""
    training = report["training"]
    parts = [f"{report['data']['pairs_trained']} pairs, {training['steps']} steps"]
    for name, values in report["measured"].items():
        parts.append(f"{name.removeprefix('validation/')} accuracy {values['accuracy']:.3f}")
    return ", ".join(parts)
