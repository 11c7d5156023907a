"""Training checkpoints: atomic, and enough to go on to the same weights.

``<run>/checkpoints/step-00000120/`` holds ``model/`` (a complete checkpoint that can be served;
with LoRA ``trained.safetensors`` instead, the adapters and the head), ``optimiser.safetensors``
(AdamW's moments) and ``state.json``. The order of data and the learning rate are functions of the
step, so nothing else has to be kept.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reward_model import atomic
from reward_model.errors import UsageError
from trainer.reward.best import Best

MODEL, TRAINED = "model", "trained.safetensors"
OPTIMISER, STATE = "optimiser.safetensors", "state.json"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, and its best so far; ``tokens`` and ``seconds`` of training steps."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: Best = field(default_factory=Best)


def save(
    run_dir: Path,
    progress: Progress,
    write_weights: Callable[[Path], object],
    optimiser_state: Mapping[str, Tensor],
    *,
    data_fingerprint: str,
    keep: int,
) -> None:
    """Write the checkpoint of ``progress.step``, whole or not at all, and drop old ones.

    ``write_weights`` writes what is trained into the directory that it is given.
    """
    path = _directory(run_dir, progress.step)
    with atomic.directory(path) as temporary:
        write_weights(temporary)
        save_file(dict(optimiser_state), temporary / OPTIMISER)
        state = {"progress": asdict(progress), "data": data_fingerprint}
        atomic.write_text(temporary / STATE, json.dumps(state) + "\n")
    for old in _complete(run_dir)[:-keep]:
        shutil.rmtree(old)


def latest(run_dir: Path) -> Path | None:
    """The checkpoint with the highest step, if there is any."""
    return next(reversed(_complete(run_dir)), None)


def read_progress(checkpoint: Path, data_fingerprint: str) -> Progress:
    """How far the run was.

    Raises:
        UsageError: it was trained on other data.
    """
    state = json.loads((checkpoint / STATE).read_text())
    if state["data"] != data_fingerprint:
        raise UsageError(
            f"{checkpoint}: data.train has changed since; put it back, choose another output_dir, "
            "or --restart"
        )
    stored = state["progress"]
    return Progress(**stored | {"best": Best(**stored.get("best", {}))})


def read_optimiser(checkpoint: Path) -> dict[str, Tensor]:
    """The optimiser's state as ``<parameter>/<moment>``: tensors."""
    tensors: dict[str, Tensor] = load_file(checkpoint / OPTIMISER)
    return tensors


def restore_trained(checkpoint: Path, model: nn.Module) -> None:
    """Put stored adapters and the head back.

    Raises:
        UsageError: they belong to other parameters.
    """
    parameters = dict(model.named_parameters())
    stored = load_file(checkpoint / TRAINED)
    if stored.keys() != {name for name, one in parameters.items() if one.requires_grad}:
        raise UsageError(f"{checkpoint / TRAINED}: holds other parameters than are trained")
    with torch.no_grad():
        for name, value in stored.items():
            parameters[name].copy_(value)


def _directory(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:08d}"


def _complete(run_dir: Path) -> list[Path]:
    found = (run_dir / "checkpoints").glob("step-*")
    return sorted(path for path in found if (path / STATE).is_file())
