"""The run: generation, scoring and learning side by side, one optimiser step after another."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from trainer.rloo.backends import open_generator
from trainer.rloo.checkpoint import save_checkpoint
from trainer.rloo.config import RlooSettings
from trainer.rloo.evaluation import HeldOutEvaluation, describe
from trainer.rloo.failures import first_cause
from trainer.rloo.generation import Generator
from trainer.rloo.insight import BusyClock, describe_groups
from trainer.rloo.interruption import Interruption
from trainer.rloo.probe import check_logprobs, long_prompt
from trainer.rloo.progress import StepProgress
from trainer.rloo.report import write_report
from trainer.rloo.reward import Rewards
from trainer.rloo.rollout import Rollouts
from trainer.rloo.run_directory import SAMPLES
from trainer.rloo.sample_table import write_table
from trainer.rloo.samples import Group
from trainer.rloo.session import Session, open_session
from trainer.rloo.team import Team

FLOAT32_TOLERANCE, HALF_TOLERANCE = 1e-3, 5e-2


def train(settings: RlooSettings) -> Path | None:
    """Train as ``settings`` say; return the directory that holds the policy.

    None on a rank that did not lead.

    Raises:
        KeyboardInterrupt: a signal ended the run early, after a checkpoint.
    """
    team = Team.join(settings.device, lora=settings.lora is not None)
    session = open_session(settings, team)
    path = None if session is None else _lead(session)
    team.leave()
    return path


def _lead(session: Session) -> Path:
    """The run, on the rank that has the session.

    The others are dismissed when all went well. After a failure they may be waiting for this rank
    in the middle of a step; they notice when its process ends.
    """
    path = None
    try:
        if asyncio.run(_interruptible(session)):
            path = session.write_policy()
        session.learner.team.dismiss()
    except BaseExceptionGroup as group:
        raise first_cause(group) from group
    finally:
        session.close()
    if path is None:
        raise KeyboardInterrupt
    write_report(session.run_dir)
    return path


async def _interruptible(session: Session) -> bool:
    with Interruption() as interruption:
        try:
            return await _run(session, interruption)
        except asyncio.CancelledError:
            if interruption.wanted.is_set():
                return False
            raise


async def _run(session: Session, interruption: Interruption) -> bool:
    """The whole run; whether it came to its end."""
    settings = session.settings
    weights = await session.compute(session.write_weights)
    async with (
        Rewards.open(settings.reward, session.tokenizer) as rewards,
        open_generator(
            settings.generation,
            session.sampling,
            session.tokenizer,
            weights=weights,
            run_dir=session.run_dir,
            device=str(session.learner.team.device),
            snapshot=session.snapshot,
            threads=session.threads,
        ) as generator,
    ):
        await generator.publish(weights, session.step)
        await _probe(session, generator)
        if session.step == 0:
            await _evaluate(session, generator, rewards)
        if session.total_steps == 0:
            return True
        rollouts = make_rollouts(session, generator, rewards)
        interruption.finishing = True
        async with asyncio.TaskGroup() as tasks:
            worker = tasks.create_task(rollouts.run())
            await learn(session, rollouts, generator, rewards, interruption)
            worker.cancel()
        interruption.finishing = False
        save_checkpoint(
            session.run_dir,
            session.learner,
            session.tokenizer,
            session.step,
            settings.keep_checkpoints,
        )
        if interruption.wanted.is_set():
            return False
        await _evaluate(session, generator, rewards)
        return True


async def learn(
    session: Session,
    rollouts: Rollouts,
    generator: Generator,
    rewards: Rewards,
    interruption: Interruption,
) -> None:
    """Optimiser steps until there is nothing left to train on, or the run is to end."""
    learning = BusyClock()
    with StepProgress(session.total_steps, session.step) as progress:
        while session.step < session.total_steps:
            started = time.monotonic()
            groups = await interruption.or_result(rollouts.take(session.step))
            if groups is None:
                return
            values = describe_groups(groups, session.step)
            with learning.busy():
                values |= await session.compute(session.learner.step, groups, session.step)
            session.step += 1
            session.ledger.train(session.step, [group.position for group in groups])
            publishing = time.monotonic()
            if session.step < session.total_steps and not interruption.wanted.is_set():
                await _publish(session, generator, rollouts)
            values["seconds/publish"] = time.monotonic() - publishing
            values |= _flow(rollouts, learning, values["response_tokens"], started)
            session.metrics.log(session.step, values)
            progress.show(session.step, values)
            _keep_samples(session, groups)
            await _now_and_then(session, generator, rewards)


def _keep_samples(session: Session, groups: Sequence[Group]) -> None:
    """A table of some of the samples that this step trained on, where it is due."""
    table = session.settings.samples
    if table.every and (session.step == 1 or session.step % table.every == 0):
        shown = groups[: table.prompts]
        write_table(session.run_dir / SAMPLES / f"step-{session.step}.jsonl", shown)
        session.metrics.log_samples(session.step, shown)


async def _publish(session: Session, generator: Generator, rollouts: Rollouts) -> None:
    path = await session.compute(session.write_weights)
    await generator.publish(path, session.step)
    await rollouts.publish(session.step)


async def _now_and_then(session: Session, generator: Generator, rewards: Rewards) -> None:
    """Checkpoint and evaluate where this step is due; the last step is left to the end."""
    settings, step = session.settings, session.step
    if step == session.total_steps:
        return
    if step % settings.checkpoint_steps == 0:
        await session.compute(
            save_checkpoint,
            session.run_dir,
            session.learner,
            session.tokenizer,
            step,
            settings.keep_checkpoints,
        )
    if settings.heldout.every and step % settings.heldout.every == 0:
        await _evaluate(session, generator, rewards)


async def _evaluate(session: Session, generator: Generator, rewards: Rewards) -> None:
    """Measure the current policy on the held-out prompts, if there are any."""
    if session.heldout is None:
        return
    if generator.version != session.step:
        await generator.publish(await session.compute(session.write_weights), session.step)
    evaluation = HeldOutEvaluation(
        session.heldout.prompts,
        session.settings.heldout.samples_per_prompt,
        session.settings.seed,
    )
    groups = await evaluation.run(generator, rewards)
    session.metrics.log(session.step, await session.compute(describe, groups, session.learner))
    write_table(session.run_dir / f"heldout-{session.step}.jsonl", groups)


async def _probe(session: Session, generator: Generator) -> None:
    """Refuse a generator whose log-probabilities are not the learner's."""
    generation = session.settings.generation
    tolerance = generation.probe_tolerance
    if tolerance is None:
        exact = generation.dtype == session.settings.precision == "float32"
        tolerance = FLOAT32_TOLERANCE if exact else HALF_TOLERANCE
    prompt = long_prompt(
        [prompt.token_ids for prompt in session.prompts.prompts], generation.max_prompt_tokens
    )
    difference = await check_logprobs(
        generator, session.learner.logprobs, prompt, tolerance, session.thread
    )
    session.metrics.log(session.step, {"probe/sampler_difference": difference})


def make_rollouts(session: Session, generator: Generator, rewards: Rewards) -> Rollouts:
    """The prompts that are still to be trained, on their way to groups."""
    settings = session.settings
    return Rollouts(
        generator,
        rewards,
        session.pending(),
        session.prompt_of,
        lambda position, reason: session.ledger.skip(session.step, position, reason),
        samples_per_prompt=settings.generation.samples_per_prompt,
        per_step=settings.prompts_per_step,
        staleness=settings.staleness,
        batches=session.step,
        total_batches=session.total_steps,
        attempts=settings.reward.attempts,
        seed=settings.seed,
    )


def _flow(
    rollouts: Rollouts, learning: BusyClock, tokens: float, started: float
) -> dict[str, float]:
    """How the stages kept up, for the step that began at ``started``."""
    seconds = time.monotonic() - started
    return {
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "idle/generate": rollouts.generating.idle_share(),
        "idle/score": rollouts.scoring.idle_share(),
        "idle/learn": learning.idle_share(),
        "dropped_stale": float(rollouts.dropped_stale),
        "retried": float(rollouts.retried),
    }
