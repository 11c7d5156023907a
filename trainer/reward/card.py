"""The model card: ``README.md`` beside the weights, written from the run."""

from pathlib import Path
from typing import Any

import yaml

from reward_model import atomic
from trainer.reward.run_directory import BEST, MODEL

CARD = "README.md"

_COLUMNS = ("accuracy", "ties", "tau", "margin", "reward_mean", "reward_std", "h_norm_std")


def write_cards(run_dir: Path, report: dict[str, Any]) -> None:
    """Put a card into ``model/``, and one that names its step into ``best/``."""
    if (run_dir / MODEL).is_dir():
        atomic.write_text(run_dir / MODEL / CARD, card(report))
    if (run_dir / BEST).is_dir() and (best := report["best"]) is not None:
        note = (
            f"The model of step {best['step']}: {best['by']} was best there, {best['value']:.4g}."
        )
        atomic.write_text(run_dir / BEST / CARD, card(report, note))


def card(report: dict[str, Any], note: str = "") -> str:
    """The card as Markdown with the front matter that model hubs read."""
    settings, training, data = report["settings"], report["training"], report["data"]
    loss = settings["loss"]
    terms = "".join(f", {key} {value}" for key, value in loss.items() if key != "name")
    front = {
        "base_model": settings["backbone"],
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["reward-model", "rlhf", loss["name"]],
    }
    weights = report["objective"]
    optimiser = settings["optimiser"]
    parts = [
        "---\n" + yaml.safe_dump(front, sort_keys=False) + "---",
        f"# Reward model on {settings['backbone']}, {loss['name']}",
        "A scalar reward for a conversation that ends with an assistant's turn. "
        "`reward_model.json` is its contract: template, BOS and EOS rule, pooled position. Serve "
        "it with `python -m service --model DIR`, or open it as an "
        "`AutoModelForSequenceClassification`; the raw logit is the reward.",
        note,
        "## Training",
        f"- loss: {loss['name']}{terms}; the penalty weighs {weights['squared_mean']:g} on the "
        f"squared mean reward and {weights['pair_variance']:g} on the variance of pair means",
        f"- data: {settings['data']['train']}, {data['pairs_trained']} pairs of {data['rows']} "
        f"rows (faulty {_counts(data['faulty_rows'])}; lost {_counts(data['lost_pairs'])}; with a "
        f"cut prompt {data['pairs_with_cut_prompt']})",
        f"- {training['steps']} steps of {optimiser['batch_pairs']} pairs, learning rate "
        f"{optimiser['lr']:g}, seed {settings['seed']}, {settings['compute']['precision']}",
        f"- ‖W_p‖ after training {training['head_norm']:.4f}",
        "## Measured at the last step",
        _table(report["measured"]),
        "Accuracy counts ties as wrong; tau is the mean Kendall τ-b over prompts; `probe` is a "
        "fixed sample of the train pairs.",
        _statistics(report["contract"]),
    ]
    return "\n\n".join(part for part in parts if part).replace("\n\n- ", "\n- ") + "\n"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def _table(measured: dict[str, dict[str, float]]) -> str:
    lines = ["| set | " + " | ".join(_COLUMNS) + " |", "|---" * (len(_COLUMNS) + 1) + "|"]
    for name, values in measured.items():
        cells = (f"{values[key]:.4g}" if key in values else "" for key in _COLUMNS)
        lines.append(f"| {name.removeprefix('validation/')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _statistics(contract: dict[str, Any]) -> str:
    stats = contract.get("stats")
    if not stats:
        return ""
    return (
        f"To normalise rewards: mean {stats['mean']:.4g}, standard deviation {stats['std']:.4g} "
        f"over {stats['n']} responses of `{stats['split']}`."
    )
