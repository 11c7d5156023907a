"""The demo from end to end.

world → SFT policy → reward models → evaluation → served → RLOO against each → table, report
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from reward_model.contract import Contract
from reward_model.errors import SumzeroError
from trainer.demo.cells import build_cells, cell_path, write_cells
from trainer.demo.config import SCALES, DemoSettings, Scale
from trainer.demo.gold_server import GoldServer
from trainer.demo.outcome import Arm, read_arm
from trainer.demo.plan import (
    LOSSES,
    Losses,
    evaluation_config,
    reward_config,
    reward_steps,
    rloo_config,
    sft_config,
    sft_steps,
)
from trainer.demo.processes import Job, service
from trainer.demo.report import build_report, terminal_table
from trainer.demo.runner import StageRunner
from trainer.demo.stages import Stage
from trainer.metrics import read_metrics
from trainer.report import Report

REPORT = "report.html"


class Demo(StageRunner):
    """One run of the demo in one directory.

    Args:
        losses: name → loss of every reward model.
    """

    def __init__(self, settings: DemoSettings, losses: Losses = LOSSES) -> None:
        super().__init__(settings.directory, restart=settings.restart)
        self.settings = settings
        self.losses = losses
        self.scale: Scale = SCALES[settings.scale]

    def run(self) -> Path:
        """Every stage that is not done yet, then the table and the report; returns its path."""
        with self.hold():
            world = self.world()
            sft = self.sft(world)
            rewards = self.rewards(world, sft)
            evaluation = self.evaluation(world, rewards)
            rloo = self.rloo(world, sft, rewards)
            return self.finish(sft, rewards, evaluation, rloo)

    def world(self) -> Stage:
        sizes = asdict(self.scale.sizes)
        stage = Stage(self.root, "world", {"seed": self.settings.seed, "sizes": sizes})
        with self.stage(stage) as wanted:
            if wanted:
                cells = build_cells(self.settings.seed, self.scale.sizes)
                prompts = cells.pop("policy_prompts")
                cut = self.scale.heldout_prompts
                cells |= {"heldout_prompts": prompts[:cut], "policy_prompts": prompts[cut:]}
                write_cells(stage.directory, cells)
        return stage

    def sft(self, world: Stage) -> Stage:
        output = self.root / "sft"
        config = sft_config(self.scale, self.settings.seed, world.directory, output)
        stage = Stage(self.root, "sft", config, (world,))
        job = Job("sft", "trainer.sft", config, output, sft_steps(self.scale))
        self.run_stage(stage, [job])
        return stage

    def rewards(self, world: Stage, sft: Stage) -> Stage:
        output = self.root / "reward"
        backbone = sft.directory / "model"
        pairs = len(cell_path(world.directory, "train_pairs").read_text().splitlines())
        jobs = [
            Job(
                f"reward-{name}",
                "trainer.reward",
                reward_config(
                    self.scale, self.settings.seed, loss, world.directory, backbone, output / name
                ),
                output / name,
                reward_steps(self.scale, pairs),
            )
            for name, loss in self.losses.items()
        ]
        stage = Stage(self.root, "reward", {job.name: job.config for job in jobs}, (world, sft))
        self.run_stage(stage, jobs)
        return stage

    def evaluation(self, world: Stage, rewards: Stage) -> Stage:
        output = self.root / "evaluation"
        jobs = []
        for name in self.losses:
            model = rewards.directory / name / "model"
            config = evaluation_config(name, world.directory, model, output / name)
            jobs.append(Job(f"evaluation-{name}", "trainer.evaluation", config, output / name, 1))
        settings = {job.name: job.config for job in jobs}
        stage = Stage(self.root, "evaluation", settings, (world, rewards))
        self.run_stage(stage, jobs)
        return stage

    def rloo(self, world: Stage, sft: Stage, rewards: Stage) -> Stage:
        # Ports differ from run to run and are no part of what the stage computes.
        settings = {
            job.name: job.config for job in self._rloo_jobs(world, sft, rewards, "url", "gold")
        }
        stage = Stage(self.root, "rloo", settings, (world, sft, rewards))
        if stage.done:
            self.run_stage(stage, [])
            return stage
        models = self.models(rewards)
        with GoldServer() as gold, service(models, self.logs) as url:
            self.console.print(f"serving {', '.join(models)} at {url}, gold at {gold.url}")
            self.run_stage(stage, self._rloo_jobs(world, sft, rewards, url, gold.url))
        return stage

    def finish(self, sft: Stage, rewards: Stage, evaluation: Stage, rloo: Stage) -> Path:
        arms = [
            read_arm(
                name,
                evaluation.directory / name,
                rewards.directory / name,
                rloo.directory / name,
            )
            for name in self.losses
        ]
        path = self.root / REPORT
        _report(arms, sft, rloo, self.seconds).write(path)
        self.console.print(terminal_table(arms))
        self.console.print(f"report: {path}", soft_wrap=True)
        return path

    def models(self, rewards: Stage) -> dict[str, Path]:
        """The trained reward models by name."""
        return {name: rewards.directory / name / "model" for name in self.losses}

    def _rloo_jobs(
        self, world: Stage, sft: Stage, rewards: Stage, url: str, gold_url: str
    ) -> list[Job]:
        jobs = []
        for name in self.losses:
            output = self.root / "rloo" / name
            stats = Contract.read(rewards.directory / name / "model").stats
            if stats is None:
                raise SumzeroError(f"{rewards.directory / name}: its rewards do not vary at all")
            config = rloo_config(
                self.scale,
                self.settings.seed,
                name,
                policy=sft.directory / "model",
                prompts=cell_path(world.directory, "policy_prompts"),
                heldout=cell_path(world.directory, "heldout_prompts"),
                output=output,
                backend=self.settings.backend,
                url=url,
                gold_url=gold_url,
                mean=stats.mean,
                std=stats.std,
            )
            jobs.append(Job(f"rloo-{name}", "trainer.rloo", config, output, self.scale.rloo_steps))
        return jobs


def _report(arms: Sequence[Arm], sft: Stage, rloo: Stage, seconds: dict[str, float]) -> Report:
    lines = [line for line in read_metrics(sft.directory) if line.get("loss") is not None]
    curve = {name: [line[name] for line in lines] for name in ("step", "loss")}
    return build_report(arms, curve, {arm.name: rloo.directory / arm.name for arm in arms}, seconds)
