"""Every seed of a policy study, stage by stage; a stopped one goes on where it was."""

import itertools
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from reward_model.errors import SumzeroError
from service.client import RewardClient
from trainer.demo.cells import cell_path
from trainer.demo.config import DemoSettings
from trainer.demo.demo import Demo
from trainer.demo.gold_server import GoldServer
from trainer.demo.outcome import read_arm
from trainer.demo.plan import rloo_config
from trainer.demo.processes import Job, service
from trainer.demo.stages import Stage
from trainer.rloo.sample_table import read_table
from trainer.study.policies.config import PolicyStudySettings
from trainer.study.policies.record import Course, SeedRecord, identity_of, record_path
from trainer.study.records import processor

Standards = dict[str, tuple[float, float]]


def run_all(settings: PolicyStudySettings) -> Iterator[SeedRecord]:
    """The record of one seed after another, trained where there is none yet.

    Raises:
        UsageError: a record is of other settings.
    """
    for seed in settings.seeds:
        path = record_path(settings, seed)
        if not path.is_file():
            SeedRun(settings, seed).record().write(path)
        yield SeedRecord.read(path, identity_of(settings, seed))


@dataclass(frozen=True)
class Ground:
    """What the policies of a seed stand on; ``url`` serves every arm by name."""

    world: Stage
    sft: Stage
    rewards: Stage
    url: str
    gold_url: str


class SeedRun:
    """One replicate: the demo's stages with the study's arms, then RLOO for each arm and β."""

    def __init__(self, settings: PolicyStudySettings, seed: int) -> None:
        self.settings = settings
        self.seed = seed
        losses = {
            name: loss.model_dump(by_alias=True, exclude_none=True)
            for name, loss in settings.arms.items()
        }
        directory = settings.output_dir / f"seed-{seed}"
        self.demo = Demo(
            DemoSettings(
                scale=settings.scale, seed=seed, output_dir=directory, backend=settings.backend
            ),
            losses,
        )

    def record(self) -> SeedRecord:
        """Run what is not done yet, and put together what came of it."""
        demo = self.demo
        with demo.hold():
            world = demo.world()
            sft = demo.sft(world)
            rewards = demo.rewards(world, sft)
            evaluation = demo.evaluation(world, rewards)
            with GoldServer() as gold, service(demo.models(rewards), demo.logs) as url:
                ground = Ground(world, sft, rewards, url, gold.url)
                standards = self._standards(self._samples(ground), url)
                policies = self._policies(ground, standards)
        courses, accuracy = [], {}
        for arm, beta in self._each():
            directory = policies.directory / _name(arm, beta)
            found = read_arm(arm, evaluation.directory / arm, rewards.directory / arm, directory)
            courses.append(Course(arm, beta, found.points))
            accuracy[arm] = {cell: found.accuracy(cell) for cell in found.cells}
        ran = {
            "seconds": demo.seconds,
            "torch": torch.__version__,
            "processor": processor(),
        }
        identity = identity_of(self.settings, self.seed)
        return SeedRecord(identity, standards, accuracy, courses, ran)

    def _samples(self, ground: Ground) -> Path:
        """Samples of the SFT policy, which RLOO takes before its first step."""
        output = self.demo.root / "samples"
        config = self._config(ground, "gold", (0.0, 1.0), output)
        config["max_steps"] = 1
        config["heldout"]["samples_per_prompt"] = self.settings.standard_samples
        config["reward"] = {"url": "gold"}
        stage = Stage(self.demo.root, "samples", config, (ground.world, ground.sft))
        config = config | {"reward": {"url": ground.gold_url}}
        self.demo.run_stage(stage, [Job("samples", "trainer.rloo", config, output, 1)])
        return output / "heldout-0.jsonl"

    def _standards(self, samples: Path, url: str) -> Standards:
        """Mean and standard deviation of every arm's scores of the same texts.

        Raises:
            SumzeroError: a proxy gives them all the same score.
        """
        rows = read_table(samples)
        prompts = [row["prompt"]["messages"] for row in rows]
        responses = [[one["text"] for one in row["samples"]] for row in rows]
        standards: Standards = {}
        for arm in self.settings.arms:
            client = RewardClient(url, model=arm)
            groups = client.score_groups_sync(prompts, responses)
            client.close()
            scores = [score for group in groups for score in group if score is not None]
            standards[arm] = statistics.fmean(scores), statistics.stdev(scores)
            if standards[arm][1] == 0:
                raise SumzeroError(f"{arm}: its rewards of the SFT policy do not vary at all")
        return standards

    def _policies(self, ground: Ground, standards: Standards) -> Stage:
        output = self.demo.root / "rloo"

        def jobs(ground: Ground) -> list[Job]:
            found = []
            for arm, beta in self._each():
                name, directory = _name(arm, beta), output / _name(arm, beta)
                config = self._config(ground, arm, standards[arm], directory)
                config["objective"] = {"beta": beta}
                found.append(Job(name, "trainer.rloo", config, directory, self.settings.steps))
            return found

        # Ports differ from run to run and are no part of what the stage computes.
        portless = {
            job.name: job.config for job in jobs(replace(ground, url="url", gold_url="gold"))
        }
        after = (ground.world, ground.sft, ground.rewards)
        stage = Stage(self.demo.root, "rloo", portless, after)
        self.demo.run_stage(stage, jobs(ground), side_by_side=self.settings.side_by_side)
        return stage

    def _config(
        self, ground: Ground, model: str, standard: tuple[float, float], output: Path
    ) -> dict[str, Any]:
        config = rloo_config(
            self.demo.scale,
            self.seed,
            model,
            policy=ground.sft.directory / "model",
            prompts=cell_path(ground.world.directory, "policy_prompts"),
            heldout=cell_path(ground.world.directory, "heldout_prompts"),
            output=output,
            backend=self.settings.backend,
            url=ground.url,
            gold_url=ground.gold_url,
            mean=standard[0],
            std=standard[1],
        )
        config["heldout"]["every"] = self.settings.every
        config["max_steps"] = self.settings.steps
        return config

    def _each(self) -> Iterator[tuple[str, float]]:
        """Arms of one β side by side, so that a stopped study has whole comparisons."""
        for beta, arm in itertools.product(self.settings.betas, self.settings.arms):
            yield arm, beta


def _name(arm: str, beta: float) -> str:
    return f"{arm}-beta-{beta:g}"
