"""What a run works with: loaded once, before anything is started."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from reward_model.errors import UsageError
from trainer.metrics import MetricsWriter
from trainer.rloo.checkpoint import list_checkpoints, load_learner, read_step
from trainer.rloo.config import RlooSettings
from trainer.rloo.generation import Sampling
from trainer.rloo.learner import Learner
from trainer.rloo.ledger import Ledger
from trainer.rloo.policy import Policy, load_policy, stop_token_ids
from trainer.rloo.prompts import PromptEncoder, PromptSet, order, read_prompts
from trainer.rloo.run_directory import WEIGHTS, open_run
from trainer.rloo.samples import Prompt
from trainer.rloo.weight_sync import WeightStore


@dataclass(eq=False)
class Session:
    """The parts of a run. ``step`` counts optimiser steps and is the learner's policy version."""

    settings: RlooSettings
    tokenizer: PreTrainedTokenizerBase
    sampling: Sampling
    prompts: PromptSet
    heldout: PromptSet | None
    learner: Learner
    ledger: Ledger
    metrics: MetricsWriter
    weights: WeightStore
    step: int

    @property
    def total_steps(self) -> int:
        return self.learner.total_steps

    @property
    def run_dir(self) -> Path:
        return self.settings.output_dir

    def prompt_of(self, position: int) -> Prompt:
        """The prompt at a place in the sequence of all epochs."""
        epoch, place = divmod(position, len(self.prompts))
        return self.prompts.prompts[order(self.settings.seed, epoch, len(self.prompts))[place]]

    def pending(self) -> list[int]:
        """The positions that are neither trained nor skipped, in order."""
        positions = range(self.settings.epochs * len(self.prompts))
        return [position for position in positions if not self.ledger.is_done(position)]

    def write_weights(self) -> Path:
        """The learner's weights as a version for the generators."""
        return self.weights.write(self.learner.policy.model, self.tokenizer, self.step)

    def close(self) -> None:
        self.metrics.close()


def open_session(settings: RlooSettings) -> Session:
    """Read everything that ``settings`` name; go on from the last checkpoint, if there is one."""
    transformers_logging.disable_progress_bar()  # a bar for every version written says nothing
    reference, tokenizer = _load(settings, settings.policy)
    generation = settings.generation
    encoder = PromptEncoder(tokenizer, generation.max_prompt_tokens, generation.long_prompts)
    prompts = read_prompts(settings.prompts, encoder)
    heldout = None
    if settings.heldout.prompts is not None:
        heldout = read_prompts(
            settings.heldout.prompts,
            encoder,
            name="heldout.prompts",
            limit=settings.heldout.limit,
        )
    sampling = Sampling(
        generation.temperature, generation.max_new_tokens, stop_token_ids(reference, tokenizer)
    )
    _check_length(settings, reference)
    open_run(settings)
    checkpoints = list_checkpoints(settings.output_dir)
    learner = _learner(settings, reference, len(prompts), checkpoints)
    step = read_step(checkpoints[-1]) if checkpoints else 0
    resume = step if checkpoints else None
    return Session(
        settings,
        tokenizer,
        sampling,
        prompts,
        heldout,
        learner,
        Ledger(settings.output_dir, resume),
        MetricsWriter(settings.output_dir, resume, tensorboard=settings.tensorboard),
        WeightStore(settings.output_dir / WEIGHTS),
        step,
    )


def _load(settings: RlooSettings, name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return load_policy(name, device=settings.device, trust_remote_code=settings.trust_remote_code)


def _learner(
    settings: RlooSettings, reference: PreTrainedModel, prompts: int, checkpoints: list[Path]
) -> Learner:
    start = str(checkpoints[-1] / "policy") if checkpoints else settings.policy
    temperature = settings.generation.temperature
    learner = Learner(
        Policy(_load(settings, start)[0], temperature),
        Policy(reference, temperature),
        settings.objective,
        settings.optimizer,
        total_steps=_total_steps(settings, prompts),
        max_batch_tokens=settings.max_batch_tokens,
    )
    if checkpoints:
        load_learner(checkpoints[-1], learner)
    return learner


def _total_steps(settings: RlooSettings, prompts: int) -> int:
    steps = -(-settings.epochs * prompts // settings.prompts_per_step)
    return steps if settings.max_steps is None else min(steps, settings.max_steps)


def _check_length(settings: RlooSettings, model: PreTrainedModel) -> None:
    generation = settings.generation
    longest = generation.max_prompt_tokens + generation.max_new_tokens
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and longest > limit:
        raise UsageError(
            f"generation: max_prompt_tokens + max_new_tokens is {longest}, but {settings.policy} "
            f"reads {limit} tokens"
        )
