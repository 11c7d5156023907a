"""PyTorch's own ways to share a model between ranks: one process, DDP, FSDP2."""

import math
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from reward_model.errors import UsageError
from reward_model.model import RewardModel, RewardOutput
from reward_model.packing import PackedBatch
from trainer.reward import sharding
from trainer.reward.config import OptimiserSettings
from trainer.reward.parallel import adamw


class Native:
    """See :class:`trainer.reward.parallel.Parallel`. ``model`` is divided in place under FSDP2."""

    def __init__(
        self,
        model: RewardModel,
        options: OptimiserSettings,
        accelerator: Accelerator,
        *,
        autocast: bool,
    ) -> None:
        self._model = model
        self._max_grad_norm = options.max_grad_norm
        self._accelerator = accelerator
        self._autocast = autocast
        self._sharded = sharding.is_asked_for()
        if self._sharded:
            sharding.shard(model)
        self._wrapped = model if self._sharded else accelerator.prepare(model)
        self._optimiser = adamw(model, options)

    def forward(self, packed: PackedBatch) -> RewardOutput:
        device = self._accelerator.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self._autocast):
            output: RewardOutput = self._wrapped(packed)
        return output

    def accumulating(self) -> AbstractContextManager[Any]:
        if self._sharded:
            return sharding.gradients_kept_local(self._model)
        context: AbstractContextManager[Any] = self._accelerator.no_sync(self._wrapped)
        return context

    def backward(self, loss: Tensor) -> None:
        self._accelerator.backward(loss)

    def step(self, lr: float) -> float:
        parameters = self._wrapped.parameters()
        clipped = torch.nn.utils.clip_grad_norm_(parameters, self._max_grad_norm)
        norm = float(sharding.whole(clipped))
        if math.isfinite(norm):
            for group in self._optimiser.param_groups:
                group["lr"] = lr
            self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        return norm

    def optimiser_tensors(self) -> dict[str, Tensor]:
        tensors = {}
        for name, parameter in self._model.named_parameters():
            for key, value in self._optimiser.state.get(parameter, {}).items():
                tensors[f"{name}/{key}"] = sharding.whole(torch.as_tensor(value)).contiguous().cpu()
        return tensors

    def restore_optimiser(self, stored: dict[str, Tensor]) -> None:
        parameters = dict(self._model.named_parameters())
        for name, value in stored.items():
            parameter_name, key = name.rsplit("/", 1)
            if parameter_name not in parameters:
                raise UsageError(f"optimiser state: {parameter_name} is not in the model")
            parameter = parameters[parameter_name]
            # The fused AdamW keeps its step counter, a float32 scalar, where the parameter is.
            self._optimiser.state[parameter][key] = (
                value.to(parameter.device)
                if key == "step"
                else sharding.divided_like(value, parameter)
            )
