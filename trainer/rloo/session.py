"""What a run works with: loaded once, before anything is started."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from reward_model import atomic
from reward_model.errors import UsageError
from reward_model.threads import ComputeThreads, without_helpers
from trainer.rloo.checkpoint import list_checkpoints, load_learner, read_step
from trainer.rloo.config import RlooSettings
from trainer.rloo.generation import Sampling
from trainer.rloo.learner import Learner, Reference
from trainer.rloo.ledger import Ledger
from trainer.rloo.lora import BasePolicy, add_adapters, save_adapter
from trainer.rloo.policy import Policy, load_policy, stop_token_ids
from trainer.rloo.prompts import PromptEncoder, PromptSet, order, read_prompts
from trainer.rloo.run_directory import ADAPTER, POLICY, WEIGHTS, open_run
from trainer.rloo.run_metrics import RunMetrics
from trainer.rloo.samples import Prompt
from trainer.rloo.team import Team, divide
from trainer.rloo.weight_sync import WeightStore, write_policy
from trainer.rloo.weight_transfer import Snapshot

T = TypeVar("T")


@dataclass(eq=False)
class Session:
    """The parts of a run. ``step`` counts optimiser steps and is the learner's policy version."""

    settings: RlooSettings
    tokenizer: PreTrainedTokenizerBase
    sampling: Sampling
    prompts: PromptSet
    heldout: PromptSet | None
    learner: Learner
    adapters: Any
    ledger: Ledger
    metrics: RunMetrics
    weights: WeightStore
    step: int
    snapshot: Snapshot | None = None
    """Of the published version, where weights go to vLLM past the file system."""
    threads: ComputeThreads = field(default_factory=ComputeThreads)
    _first: Path | None = None

    def __post_init__(self) -> None:
        self.thread = self.threads.take("learner", self.learner.team.device)

    async def compute(self, function: Callable[..., T], *arguments: object) -> T:
        """Call ``function`` where the learner computes: off the event loop, one at a time."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.thread, function, *arguments)

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
        """The learner's weights as a version for the generators; the directory it is in.

        With a snapshot only the first version is written, for a server to start with.
        """
        model, weights = self.learner.policy.model, self.learner.weights()
        if self.snapshot is not None:
            self.snapshot.take(weights)
        if self.snapshot is None or self._first is None:
            self._first = self.weights.write(model, self.tokenizer, self.step, weights)
        return self._first

    def write_policy(self) -> Path:
        """The trained policy, and its adapters where it has any; return its directory."""
        model, weights = self.learner.policy.model, self.learner.weights()
        path = self.run_dir / POLICY
        with atomic.directory(path) as temporary:
            write_policy(model, self.tokenizer, temporary, weights)
        if self.adapters is not None:
            save_adapter(model, self.adapters, self.run_dir / ADAPTER)
        return path

    def close(self) -> None:
        self.metrics.close()
        self.threads.give_back(self.thread)
        self.threads.close()


def open_session(settings: RlooSettings, team: Team | None = None) -> Session | None:
    """Read everything that ``settings`` name; go on from the last checkpoint, if there is one.

    A rank that does not lead has no session: it returns None when the run is over.
    """
    team = team or Team(settings.device)
    transformers_logging.disable_progress_bar()  # a bar for every version written says nothing
    with without_helpers():
        base, tokenizer = _load(settings, settings.policy)
    _check_length(settings, base)
    encoder = _encoder(settings, tokenizer)
    prompts = read_prompts(settings.prompts, encoder)
    heldout = _heldout(settings, encoder)
    generation = settings.generation
    sampling = Sampling(
        generation.temperature, generation.max_new_tokens, stop_token_ids(base, tokenizer)
    )
    if team.leads:
        open_run(settings)
    team.wait()  # --restart throws away what the others would go on from
    checkpoints = list_checkpoints(settings.output_dir)
    steps = _total_steps(settings, len(prompts))
    with without_helpers():
        learner, adapters = open_learner(settings, base, checkpoints, team, total_steps=steps)
    if not team.leads:
        team.follow(learner)
        return None
    step = read_step(checkpoints[-1]) if checkpoints else 0
    resume = step if checkpoints else None
    return Session(
        settings,
        tokenizer,
        sampling,
        prompts,
        heldout,
        learner,
        adapters,
        Ledger(settings.output_dir, resume),
        RunMetrics(settings, resume),
        WeightStore(settings.output_dir / WEIGHTS),
        step,
        None if generation.transfer == "directory" else Snapshot(generation.dtype),
    )


def open_learner(
    settings: RlooSettings,
    base: PreTrainedModel,
    checkpoints: Sequence[Path],
    team: Team,
    *,
    total_steps: int,
) -> tuple[Learner, Any]:
    """The learner as the last checkpoint left it, and PEFT's configuration if it has adapters.

    Args:
        base: the policy that the run started from.
    """
    temperature = settings.generation.temperature
    adapters: Any = None
    if settings.lora is not None:
        adapters = add_adapters(base, settings.lora, base=settings.policy, seed=settings.seed)
        policy = Policy(base.to(team.device), temperature)
        reference: Reference = BasePolicy(policy)
    else:
        start = str(checkpoints[-1] / "policy") if checkpoints else settings.policy
        policy = Policy(_load(settings, start)[0].to(team.device), temperature)
        reference = Policy(base.to(team.device), temperature).requires_grad_(False)
        if team.sharded:
            divide(policy)
            divide(reference)
    learner = Learner(
        policy,
        reference,
        settings.objective,
        settings.optimizer,
        total_steps=total_steps,
        max_batch_tokens=settings.max_batch_tokens,
        precision=settings.precision,
        team=team,
    )
    if checkpoints:
        load_learner(checkpoints[-1], learner)
    return learner, adapters


def _load(settings: RlooSettings, name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return load_policy(name, device="cpu", trust_remote_code=settings.trust_remote_code)


def _encoder(settings: RlooSettings, tokenizer: PreTrainedTokenizerBase) -> PromptEncoder:
    generation = settings.generation
    return PromptEncoder(tokenizer, generation.max_prompt_tokens, generation.long_prompts)


def _heldout(settings: RlooSettings, encoder: PromptEncoder) -> PromptSet | None:
    if settings.heldout.prompts is None:
        return None
    return read_prompts(
        settings.heldout.prompts, encoder, name="heldout.prompts", limit=settings.heldout.limit
    )


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
