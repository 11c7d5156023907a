"""Every seed of a policy study, stage by stage; a stopped one goes on where it was."""

import copy
import itertools
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from reward_model.errors import SumzeroError
from service.client import RewardClient
from trainer.demo.outcome import read_arm
from trainer.demo.processes import Job, service
from trainer.demo.stages import Stage
from trainer.lock import locked
from trainer.rloo.sample_table import read_table
from trainer.study.policies.config import PolicyStudySettings
from trainer.study.policies.ground import Ground, World
from trainer.study.policies.record import Course, SeedRecord, identity_of, record_path
from trainer.study.policies.text import Text
from trainer.study.policies.town import Town
from trainer.study.records import processor

Standards = dict[str, tuple[float, float]]


def run_all(settings: PolicyStudySettings) -> Iterator[SeedRecord]:
    """The record of one seed after another, trained where there is none yet.

    Several processes share the seeds: each takes the next that none is at, and waits for the others
    at the end.

    Raises:
        UsageError: a record is of other settings.
    """
    left = []
    for seed in settings.seeds:
        if record := _recorded(settings, seed, wait=False):
            yield record
        else:
            left.append(seed)
    for seed in left:
        if record := _recorded(settings, seed, wait=True):
            yield record


def _recorded(settings: PolicyStudySettings, seed: int, *, wait: bool) -> SeedRecord | None:
    """A seed's record; None if another process is at it and ``wait`` is not set."""
    path = record_path(settings, seed)
    with locked(settings.output_dir / f"seed-{seed}.lock", wait=wait) as ours:
        if not ours:
            return None
        if not path.is_file():
            SeedRun(settings, seed).record().write(path)
        return SeedRecord.read(path, identity_of(settings, seed))


class SeedRun:
    """One replicate: what its world makes of the study's arms, then RLOO for each arm and β."""

    def __init__(self, settings: PolicyStudySettings, seed: int) -> None:
        self.settings = settings
        self.seed = seed
        self.world: World = (Town if settings.text is None else Text)(settings, seed)
        self.runner = self.world.runner

    def record(self) -> SeedRecord:
        """Run what is not done yet, and put together what came of it."""
        runner = self.runner
        with runner.hold(), self.world.gold() as gold_url:
            gold = _version(gold_url)
            ground = self.world.ground(gold_url)
            models = {arm: ground.rewards / arm / "model" for arm in self.settings.arms}
            with service(models, runner.logs, device=self.settings.device) as url:
                standards = self._standards(self._samples(ground, gold_url), url)
                policies = self._policies(ground, standards, url, gold_url)
        courses, accuracy = [], {}
        for arm, beta in self._each():
            directory = policies.directory / _name(arm, beta)
            found = read_arm(arm, ground.evaluation / arm, ground.rewards / arm, directory)
            courses.append(Course(arm, beta, found.points))
            accuracy[arm] = {cell: found.accuracy(cell) for cell in found.cells}
        ran = {
            "gold": gold,
            "seconds": runner.seconds,
            "torch": torch.__version__,
            "processor": processor(),
        }
        identity = identity_of(self.settings, self.seed)
        return SeedRecord(identity, standards, accuracy, courses, ran)

    def _samples(self, ground: Ground, gold_url: str) -> Path:
        """Samples of the policy as it is before RLOO."""
        output = self.runner.root / "samples"
        config = self._config(ground, output, {"url": "gold"}) | {"max_steps": 0}
        config["heldout"]["samples_per_prompt"] = self.settings.standard_samples
        stage = Stage(self.runner.root, "samples", config, ground.after)
        config = config | {"reward": {"url": gold_url}}
        self.runner.run_stage(stage, [Job("samples", "trainer.rloo", config, output, 1)])
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

    def _policies(self, ground: Ground, standards: Standards, url: str, gold_url: str) -> Stage:
        output = self.runner.root / "rloo"

        def jobs(url: str, gold_url: str) -> list[Job]:
            found = []
            for arm, beta in self._each():
                name, directory = _name(arm, beta), output / _name(arm, beta)
                mean, std = standards[arm]
                reward = {
                    "url": url, "model": arm, "gold_url": gold_url, "mean": mean, "scale": std
                }  # fmt: skip
                config = self._config(ground, directory, reward) | {"objective": {"beta": beta}}
                found.append(Job(name, "trainer.rloo", config, directory, self.settings.steps))
            return found

        # Ports differ from run to run and are no part of what the stage computes.
        portless = {job.name: job.config for job in jobs("url", "gold")}
        stage = Stage(self.runner.root, "rloo", portless, ground.after)
        self.runner.run_stage(stage, jobs(url, gold_url), side_by_side=self.settings.side_by_side)
        return stage

    def _config(self, ground: Ground, output: Path, reward: dict[str, Any]) -> dict[str, Any]:
        config = copy.deepcopy(dict(ground.rloo))
        config |= {
            "output_dir": str(output), "reward": reward, "max_steps": self.settings.steps,
            "device": self.settings.device,
        }  # fmt: skip
        config["heldout"]["every"] = self.settings.every
        return config

    def _each(self) -> Iterator[tuple[str, float]]:
        """Arms of one β side by side, so that a stopped study has whole comparisons."""
        for beta, arm in itertools.product(self.settings.betas, self.settings.arms):
            yield arm, beta


def _version(url: str) -> str:
    """Of the model that is served there."""
    client = RewardClient(url)
    [found] = client.score_sync([{"prompt": "Which?", "responses": ["This."]}])
    client.close()
    return found.model_version


def _name(arm: str, beta: float) -> str:
    return f"{arm}-beta-{beta:g}"
