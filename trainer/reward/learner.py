"""The model under training: its optimiser, its devices, and one step."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor

from reward_model.contract import Contract
from reward_model.errors import SumzeroError
from reward_model.model import RewardModel, RewardOutput
from trainer.reward import acceleration, checkpoint, lora, sharding, zero
from trainer.reward.config import RewardSettings
from trainer.reward.examples import Example, cut_by_cost, rank_share
from trainer.reward.native import Native
from trainer.reward.objective import MicroBatch, Outcome, accumulate_gradients
from trainer.reward.parallel import Parallel
from trainer.reward.ranks import largest_over_ranks, sum_over_ranks
from trainer.reward.zero import Zero3


@dataclass(slots=True)
class TokenCount:
    """True sequence lengths that this rank trained on, and the rows that it computed for them."""

    tokens: int = 0
    computed: int = 0


@dataclass(frozen=True, slots=True)
class StepResult:
    """One optimiser step: what the batch gave, and the gradient's norm before clipping."""

    outcome: Outcome
    grad_norm: float


class Learner:
    """A reward model that takes optimiser steps, on one process or several.

    Args:
        model: from a backbone or a checkpoint; its head's bias is kept at 0.
        settings: of the run.
        use_margin: whether the examples' margins enter the loss.
        resumed: checkpoint that the optimiser, and adapters, go on from; ``model`` comes from it.
    """

    def __init__(
        self,
        model: RewardModel,
        settings: RewardSettings,
        *,
        use_margin: bool,
        resumed: Path | None = None,
    ) -> None:
        self.settings = settings
        self.use_margin = use_margin
        self.count = TokenCount()
        sharding.check_launcher()
        if zero.is_asked_for():
            zero.check_launcher()
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        if model.head.bias is not None:
            model.head.bias.requires_grad_(False)
        self.adapters = None
        if settings.lora is not None:
            self.adapters = lora.add_adapters(model, settings.lora, seed=settings.seed)
            if resumed is not None:
                checkpoint.restore_trained(resumed, model)
        acceleration.apply(model, settings.compute)
        self.model = model.train().to(self.accelerator.device)
        self.parallel = self._share()
        if resumed is not None:
            self.parallel.restore_optimiser(checkpoint.read_optimiser(resumed))

    def _share(self) -> Parallel:
        autocast = self.settings.compute.precision == "bfloat16"
        options = self.settings.optimiser
        if zero.is_asked_for():
            return Zero3(self.model, options, autocast=autocast)
        return Native(self.model, options, self.accelerator, autocast=autocast)

    @property
    def main(self) -> bool:
        """Whether this rank writes the files."""
        return bool(self.accelerator.is_main_process)

    def step(self, batch: Sequence[Example], lr: float) -> StepResult:
        """One optimiser step on ``batch``, the pairs of all ranks.

        Raises:
            SumzeroError: the loss or the gradient is not finite; nothing was changed.
        """
        outcome = accumulate_gradients(
            self._micro_batches(batch),
            self._forward,
            self.parallel.backward,
            self.settings.loss,
            self.accelerator.device,
            self.parallel.accumulating,
        )
        norm = self.parallel.step(lr) if math.isfinite(outcome.loss) else math.nan
        if not math.isfinite(norm):
            raise SumzeroError(
                f"loss {outcome.loss:g} and gradient norm {norm:g} are not both finite: "
                "lower optimiser.lr, or train in float32"
            )
        return StepResult(outcome, norm)

    @torch.no_grad()
    def measure(self, sequences: Sequence[Sequence[int]]) -> RewardOutput:
        """Rewards and hidden states as training computes them, without gradients."""
        return self.parallel.forward(self.model.pack(sequences))

    def take_count(self) -> TokenCount:
        """Tokens over all ranks since this was last asked."""
        local = torch.tensor(
            [self.count.tokens, self.count.computed], device=self.accelerator.device
        )
        self.count = TokenCount()
        tokens, computed = sum_over_ranks(local).tolist()
        return TokenCount(tokens, computed)

    def save_checkpoint(
        self,
        run_dir: Path,
        progress: checkpoint.Progress,
        contract: Contract,
        *,
        data_fingerprint: str,
        keep: int,
    ) -> None:
        """Write a checkpoint to go on from. All ranks have to call it together."""
        trained = None if self.adapters is None else lora.trained_tensors(self.model)
        weights = self._whole_weights() if trained is None else None
        optimiser_state = self.parallel.optimiser_tensors()

        def write_weights(directory: Path) -> None:
            if trained is None:
                self.model.save(directory / checkpoint.MODEL, contract, weights=weights)
            else:
                save_file(trained, directory / checkpoint.TRAINED)

        if self.main:
            checkpoint.save(
                run_dir,
                progress,
                write_weights,
                optimiser_state,
                data_fingerprint=data_fingerprint,
                keep=keep,
            )
        self.accelerator.wait_for_everyone()

    def save_model(self, directory: Path, contract: Contract) -> Contract:
        """Write a model that can be served, adapters merged. All ranks have to call it together."""
        weights = self._whole_weights()
        if self.adapters is not None:
            weights = lora.merged_weights(self.model, weights)
        if self.main:
            contract = self.model.save(directory, contract, weights=weights)
        self.accelerator.wait_for_everyone()
        return contract

    def save_adapter(self, directory: Path, contract: Contract) -> None:
        """Write the adapters as PEFT does, if any. All ranks have to call it together."""
        if self.adapters is None:
            return
        trained = lora.trained_tensors(self.model)
        if self.main:
            lora.save_adapter(self.model, trained, self.adapters, directory, contract)

    def _whole_weights(self) -> dict[str, Tensor]:
        """The classifier's state, gathered where it is divided over ranks."""
        state = self.model.classifier.state_dict(keep_vars=True)
        return {name: sharding.whole(tensor).detach().cpu() for name, tensor in state.items()}

    def _micro_batches(self, batch: Sequence[Example]) -> list[MicroBatch]:
        """This rank's share in pieces, padded with idle ones to as many as any rank has."""
        accelerator, compute = self.accelerator, self.settings.compute
        share = rank_share(range(len(batch)), accelerator.process_index, accelerator.num_processes)
        examples = [batch[index] for index in share]
        # Pieces of scope micro are part of the objective: no token budget may cut them further.
        fixed = self.settings.loss.scope == "micro"
        budget = sys.maxsize if fixed else compute.micro_batch_tokens
        costs = [example.cost for example in examples]
        pieces = [
            self._micro_batch([examples[index] for index in run])
            for run in cut_by_cost(costs, budget, compute.micro_batch_pairs)
        ]
        wanted = largest_over_ranks(len(pieces), accelerator.device)
        idle = MicroBatch([batch[0].chosen.tolist()], idle=True)
        return pieces + [idle] * (wanted - len(pieces))

    def _micro_batch(self, examples: Sequence[Example]) -> MicroBatch:
        sequences = [side.tolist() for one in examples for side in (one.chosen, one.rejected)]
        margins = [example.margin for example in examples] if self.use_margin else None
        return MicroBatch(sequences, margins)

    def _forward(self, micro: MicroBatch) -> RewardOutput:
        packed = self.model.pack(micro.sequences)
        if torch.is_grad_enabled() and not micro.idle:
            self.count.tokens += packed.num_tokens
            self.count.computed += packed.computed_tokens
        return self.parallel.forward(packed)


def head_norm(model: RewardModel) -> float:
    """‖W_p‖."""
    return float(sharding.whole(model.head.weight).detach().float().norm())
