"""A checkpoint of a run: policy, optimiser, position in the schedule, version and random state.

``<run_dir>/checkpoints/step-<n>`` holds ``policy/`` (a plain Hugging Face checkpoint),
``learner.safetensors`` (AdamW's moments, and adapters as they are) and ``state.json``; it is there
whole or not at all. The prompts trained so far are in the ledger. The version equals the number of
steps.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from reward_model import atomic
from reward_model.errors import CheckpointError
from trainer.rloo.learner import Learner
from trainer.rloo.weight_sync import write_policy

FORMAT_VERSION = 1
DIRECTORY = "checkpoints"


def save_checkpoint(
    run_dir: Path, learner: Learner, tokenizer: PreTrainedTokenizerBase, step: int, keep: int
) -> Path:
    """Write the state after ``step`` steps; remove all but the ``keep`` newest checkpoints."""
    path = run_dir / DIRECTORY / f"step-{step}"
    with atomic.directory(path) as temporary:
        weights = learner.weights()
        write_policy(learner.policy.model, tokenizer, temporary / "policy", weights)
        tensors = learner.state() | {"random_state": torch.get_rng_state()}
        save_file(tensors, temporary / "learner.safetensors")
        state = {"format_version": FORMAT_VERSION, "step": step, "version": step}
        atomic.write_text(temporary / "state.json", json.dumps(state))
    for old in list_checkpoints(run_dir)[:-keep]:
        shutil.rmtree(old)
    return path


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    found = (run_dir / DIRECTORY).glob("step-*/state.json")
    return sorted((path.parent for path in found), key=lambda path: int(path.name[5:]))


def read_step(path: Path) -> int:
    """The number of steps made when the checkpoint was written."""
    state = json.loads((path / "state.json").read_text())
    if state["format_version"] != FORMAT_VERSION:
        raise CheckpointError(f"{path}: format {state['format_version']} is not understood")
    return int(state["step"])


def load_learner(path: Path, learner: Learner) -> None:
    """Put optimiser, adapters and random state back.

    A policy without adapters was loaded from ``path/policy`` before.
    """
    tensors = load_file(path / "learner.safetensors")
    torch.set_rng_state(tensors.pop("random_state"))
    learner.load_state(tensors)
