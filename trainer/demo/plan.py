"""What each command of the demo is told: the configurations, from one scale."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.demo.cells import CELLS, cell_path
from trainer.demo.config import Scale

MAX_LENGTH = 256
HEAD_SIZE = 32  # the smallest that vLLM's CPU build computes
MAX_NEW_TOKENS = 112
VOCABULARY = 420
SFT_BATCH, REWARD_BATCH = 16, 32

Losses = Mapping[str, Mapping[str, Any]]

LOSSES: Losses = {
    "bt": {"name": "bt"},
    "bsr": {"name": "bt_bsr", "lambda": 1e-3, "scale": "reference"},
}
"""Reward models of the demo by name, with the loss that each is trained with."""


def sft_config(scale: Scale, seed: int, data: Path, output: Path) -> dict[str, Any]:
    return {
        "train": str(cell_path(data, "conversations")),
        "output_dir": str(output),
        "from_scratch": {
            "hidden_size": scale.hidden_size,
            "intermediate_size": 3 * scale.hidden_size,
            "layers": scale.layers,
            "heads": scale.hidden_size // HEAD_SIZE,
            "kv_heads": scale.hidden_size // HEAD_SIZE,
            "max_positions": 2 * MAX_LENGTH,
            "vocabulary": VOCABULARY,
        },
        "epochs": scale.sft_epochs,
        "batch_size": SFT_BATCH,
        "micro_batch_size": SFT_BATCH,
        "learning_rate": 4e-3,
        "max_length": MAX_LENGTH,
        "log_steps": 5,
        "save_steps": 100,
        "seed": seed,
        "tensorboard": False,
    }


def sft_steps(scale: Scale) -> int:
    return -(-scale.sizes.conversations // SFT_BATCH) * scale.sft_epochs


def reward_config(
    scale: Scale, seed: int, loss: Mapping[str, Any], data: Path, backbone: Path, output: Path
) -> dict[str, Any]:
    return {
        "backbone": str(backbone),
        "output_dir": str(output),
        "loss": dict(loss),
        "data": {
            "train": str(cell_path(data, "train_pairs")),
            "validation": {cell: str(cell_path(data, cell)) for cell in CELLS},
            "validation_limit": scale.sizes.unseen,
            "min_gold_gap": 0.0,
            "max_length": MAX_LENGTH,
        },
        "optimiser": {
            "lr": 5e-4,
            "batch_pairs": REWARD_BATCH,
            "epochs": scale.reward_epochs,
        },
        "run": {"tensorboard": False},
        "seed": seed,
    }


def reward_steps(scale: Scale, pairs: int) -> int:
    return -(-pairs // REWARD_BATCH) * scale.reward_epochs


def evaluation_config(name: str, data: Path, model: Path, output: Path) -> dict[str, Any]:
    return {
        "checkpoint": str(model),
        "sets": {cell: str(cell_path(data, cell)) for cell in CELLS},
        "output_dir": str(output),
        "title": f"Reward model {name.upper()}",
    }


def rloo_config(
    scale: Scale,
    seed: int,
    model: str,
    *,
    policy: Path,
    prompts: Path,
    heldout: Path,
    output: Path,
    backend: str,
    url: str,
    gold_url: str,
    mean: float,
    std: float,
) -> dict[str, Any]:
    """Rewards are standardised by the reward model's own statistics, so that β means the same."""
    return {
        "policy": str(policy),
        "prompts": str(prompts),
        "output_dir": str(output),
        "reward": {"url": url, "model": model, "gold_url": gold_url, "mean": mean, "scale": std},
        "generation": {
            "backend": backend,
            "samples_per_prompt": scale.samples_per_prompt,
            "temperature": 1.0,
            "max_new_tokens": MAX_NEW_TOKENS,
            "max_prompt_tokens": MAX_LENGTH - MAX_NEW_TOKENS,
        },
        "objective": {"beta": 0.03},
        "optimizer": {"learning_rate": 2e-4, "warmup": 0.05, "schedule": "constant"},
        "heldout": {
            "prompts": str(heldout),
            "samples_per_prompt": 4,
            "every": scale.heldout_every,
        },
        "batch_size": scale.rloo_batch,
        "epochs": 1000,
        "max_steps": scale.rloo_steps,
        "checkpoint_steps": 25,
        "seed": seed,
        "tensorboard": False,
    }
