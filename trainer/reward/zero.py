"""DeepSpeed ZeRO-3: parameters, gradients and optimiser states divided over the ranks.

Asked for by accelerate's configuration (``zero_stage: 3``, see ``deploy/accelerate/``). The engine
is made here and not by ``Accelerator.prepare``, which would want to know the batch size: here the
trainer itself says which backward is the last of an optimiser batch.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from reward_model.errors import UsageError
from reward_model.model import RewardModel, RewardOutput
from reward_model.packing import PackedBatch
from trainer.reward.config import OptimiserSettings
from trainer.reward.parallel import adamw

MOMENTS = ("exp_avg", "exp_avg_sq")
_OFFLOADING = ("OFFLOAD_OPTIMIZER_DEVICE", "OFFLOAD_PARAM_DEVICE")


def is_asked_for() -> bool:
    """Whether ``accelerate launch`` was told to use DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in ("true", "1")


def check_launcher() -> None:
    """Refuse what ``accelerate launch`` can be told of DeepSpeed and this trainer does not do.

    Raises:
        UsageError: another stage than 3, a configuration file, offloading; no DeepSpeed.
    """
    if _asked("CONFIG_FILE") is not None:
        raise UsageError(
            "accelerate: deepspeed_config_file is not read; say zero_stage: 3, as "
            "deploy/accelerate/zero3.yaml does"
        )
    if (stage := _asked("ZERO_STAGE")) != "3":
        raise UsageError(
            f"accelerate: zero_stage {stage} is not supported: set it to 3, or use ddp.yaml"
        )
    for name in _OFFLOADING:
        if _asked(name) not in (None, "none"):
            raise UsageError(f"accelerate: {name.lower()} is not supported: set it to none")
    try:
        import deepspeed  # noqa: F401
    except ImportError:
        raise UsageError("accelerate: ZeRO-3 needs DeepSpeed: pip install deepspeed") from None


def _asked(name: str) -> str | None:
    return os.environ.get(f"ACCELERATE_DEEPSPEED_{name}")


class Zero3:
    """See :class:`trainer.reward.parallel.Parallel`. ``model`` is divided in place."""

    def __init__(self, model: RewardModel, options: OptimiserSettings, *, autocast: bool) -> None:
        import deepspeed

        self._model = model
        self._inner = adamw(model, options)  # the engine gives it pieces of its own
        self._engine, self._optimiser, _, _ = deepspeed.initialize(
            model=_Forward(model, autocast),
            optimizer=self._inner,
            config=_config(model.classifier.config.hidden_size, options.max_grad_norm),
        )

    def forward(self, packed: PackedBatch) -> RewardOutput:
        return RewardOutput(*self._engine(packed))

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss)

    @contextmanager
    def accumulating(self) -> Iterator[None]:
        self._engine.set_gradient_accumulation_boundary(False)
        try:
            yield
        finally:
            self._engine.set_gradient_accumulation_boundary(True)

    def step(self, lr: float) -> float:
        for group in self._optimiser.param_groups:
            group["lr"] = lr
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def optimiser_tensors(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_optimizer_state

        tensors = {}
        for name, parameter in self._trained():
            for moment in MOMENTS:
                value = safe_get_full_optimizer_state(parameter, moment)
                tensors[f"{name}/{moment}"] = value.detach().cpu().contiguous()
            tensors[f"{name}/step"] = torch.tensor(float(self._steps()))
        return tensors

    def restore_optimiser(self, stored: dict[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        wanted = {f"{name}/{key}" for name, _ in self._trained() for key in (*MOMENTS, "step")}
        if missing := wanted.symmetric_difference(stored):
            raise UsageError(f"optimiser state: {min(missing)} is not in both model and checkpoint")
        # The state that the first step would make, so that there is something to fill.
        steps = next(value for name, value in stored.items() if name.endswith("/step"))
        for piece in self._optimiser.fp32_partitioned_groups_flat:
            zeros = {moment: torch.zeros_like(piece) for moment in MOMENTS}
            self._inner.state[piece] = {"step": steps.to(piece.device, copy=True)} | zeros
        for name, parameter in self._trained():
            for moment in MOMENTS:
                value = stored[f"{name}/{moment}"].to(parameter.device)
                safe_set_full_optimizer_state(parameter, value, moment)

    def _steps(self) -> float:
        return max(float(state["step"]) for state in self._inner.state.values())

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        named = self._model.named_parameters()
        return [(name, parameter) for name, parameter in named if parameter.requires_grad]


class _Forward(nn.Module):
    """The model's forward as the engine can follow it.

    It gives back plain tensors, on whose way back the engine gathers weights again; autocast
    begins within it, since the engine ends one that stands around it.
    """

    def __init__(self, model: RewardModel, autocast: bool) -> None:
        import deepspeed

        super().__init__()
        self.model = model
        self.autocast = autocast
        for parameter in model.head.parameters():  # read, but not by a forward of the head's own
            deepspeed.zero.register_external_parameter(self, parameter)

    def forward(self, packed: PackedBatch) -> tuple[Tensor, Tensor]:
        device = packed.token_ids_T.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.autocast):
            output = self.model.forward(packed)
        return output.rewards_N, output.hidden_NH


def _config(hidden_size: int, max_grad_norm: float) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,  # wanted, and of no effect: batches are cut here
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm,
        "zero_optimization": {
            "stage": 3,
            # Vectors stay whole: gathering them costs more than they take.
            "stage3_param_persistence_threshold": 10 * hidden_size,
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": sys.maxsize,
    }


def is_divided(tensor: Tensor) -> bool:
    """Whether DeepSpeed holds a part of this parameter on each rank."""
    return hasattr(tensor, "ds_id")


def gathered(parameter: Tensor) -> Tensor:
    """All of a divided parameter; a copy. All ranks have to ask together."""
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()
