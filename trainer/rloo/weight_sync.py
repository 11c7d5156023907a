"""Policy weights on their way from the learner to the generators: one directory per version.

``<run_dir>/weights/v<version>`` is a plain Hugging Face checkpoint with an output matrix of its
own; the file ``READY``, written last, says that it is whole.
"""

import shutil
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reward_model import atomic
from reward_model.errors import CheckpointError
from trainer.rloo.policy import untie

READY = "READY"


class WeightStore:
    """Writes versions and removes old ones.

    Args:
        directory: where versions lie; on a file system that the generators see too.
        keep: how many versions stay, the newest ones.
    """

    def __init__(self, directory: Path, keep: int = 2) -> None:
        self.directory = directory
        self._keep = keep

    def path(self, version: int) -> Path:
        return self.directory / f"v{version}"

    def write(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        version: int,
        weights: dict[str, Tensor] | None = None,
    ) -> Path:
        """Write ``model`` as ``version``, whole or not at all; return its directory."""
        path = self.path(version)
        with atomic.directory(path) as temporary:
            write_policy(model, tokenizer, temporary, weights)
            atomic.write_text(temporary / READY, f"{version}\n")
        self._remove_old(version)
        return path

    def _remove_old(self, newest: int) -> None:
        for path in self.directory.glob("v*"):
            if path.name[1:].isdigit() and not newest - self._keep < int(path.name[1:]) <= newest:
                shutil.rmtree(path, ignore_errors=True)


def write_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    weights: dict[str, Tensor] | None = None,
) -> None:
    """A plain Hugging Face checkpoint, embeddings and output matrix apart.

    ``weights``: where they are not simply the model's own: merged, or gathered from ranks.
    """
    untie(model).save_pretrained(directory, state_dict=weights)
    tokenizer.save_pretrained(directory)


def check_ready(path: Path, version: int) -> None:
    """Raise CheckpointError unless ``path`` holds the whole of ``version``."""
    try:
        written = int((path / READY).read_text())
    except (OSError, ValueError):
        raise CheckpointError(f"{path}: no {READY} marker; the weights are not whole") from None
    if written != version:
        raise CheckpointError(f"{path}: holds version {written}, not {version}")
