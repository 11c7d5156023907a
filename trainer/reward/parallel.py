"""What a step needs of the ranks that share a model, and of one process alone."""

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from reward_model.model import RewardOutput
from reward_model.packing import PackedBatch
from trainer.reward.config import OptimiserSettings


class Parallel(Protocol):
    """A model and its optimiser, on one process or divided or copied over several.

    Where several ranks share a model, all of them call every method together.
    """

    def forward(self, packed: PackedBatch) -> RewardOutput:
        """Rewards and hidden states, in the precision of the run."""

    def accumulating(self) -> AbstractContextManager[Any]:
        """Surrounds a micro-batch that is not the last of its optimiser batch."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar to what is averaged over ranks."""

    def step(self, lr: float) -> float:
        """Clip the gradient and step; its norm before clipping, which may be not finite.

        Where it can be known beforehand, a gradient that is not finite changes nothing.
        """

    def optimiser_tensors(self) -> dict[str, Tensor]:
        """The optimiser's state as ``<parameter>/<moment>``: whole tensors on the CPU."""

    def restore_optimiser(self, stored: dict[str, Tensor]) -> None:
        """Put back what :meth:`optimiser_tensors` gave, whoever gave it.

        Raises:
            UsageError: it belongs to other parameters.
        """


def adamw(model: nn.Module, options: OptimiserSettings) -> torch.optim.AdamW:
    """AdamW on the parameters of ``model`` that are trained."""
    return torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=options.lr,
        betas=(options.beta1, options.beta2),
        weight_decay=options.weight_decay,
        fused=True,
    )
