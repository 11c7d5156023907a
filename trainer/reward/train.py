"""One training run: pairs in, a reward model that can be served out.

    pairs → tokens → PackedBatch → the forward of serving → rewards → loss → step → metrics

Written to ``output_dir``: ``settings.json``, ``metrics.jsonl``, ``tensorboard/``, ``checkpoints/``,
and at the end ``model/``, ``report.html`` and ``report.json``; ``best/``, ``adapter/`` and
``rewards/`` if asked for. A run that was killed goes on from its last checkpoint when the same
command is given again, to the same weights.
"""

import json
import time
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as ProgressBar

from reward_model import atomic
from reward_model.contract import Contract, RewardStats
from reward_model.errors import UsageError
from reward_model.model import RewardModel
from trainer.metrics import MetricsWriter
from trainer.reward import checkpoint
from trainer.reward.card import write_cards
from trainer.reward.checkpoint import Progress
from trainer.reward.config import RewardSettings
from trainer.reward.dataset import Data, load_data
from trainer.reward.examples import Example, batch_order, learning_rate
from trainer.reward.learner import Learner, StepResult, TokenCount, head_norm
from trainer.reward.page import write_page
from trainer.reward.report import headline, run_report, write_report
from trainer.reward.run_directory import ADAPTER, BEST, MODEL, REWARDS, open_run
from trainer.reward.tracker import Tracker
from trainer.reward.validation import (
    Measurement,
    measure_pairs,
    measure_set,
    summary,
)


def train(settings: RewardSettings) -> None:
    """Run, or go on with, the training that ``settings`` describe.

    Raises:
        UsageError: see :mod:`reward_model.errors`; settings, data or run directory.
    """
    if open_run(settings):
        print(f"{settings.output_dir}: already finished; --restart trains it again")
        return
    resumed = checkpoint.latest(settings.output_dir)
    model = _load_model(settings, resumed)
    data = load_data(settings, model)
    progress = Progress()
    if resumed is not None:
        progress = checkpoint.read_progress(resumed, data.examples.fingerprint())
    learner = Learner(model, settings, use_margin=data.use_margin, resumed=resumed)
    Run(settings, learner, data, Schedule(settings, len(data.examples.examples)), progress).go()


class Schedule:
    """Which pairs, and which learning rate, at which step. Steps count from 0."""

    def __init__(self, settings: RewardSettings, pairs: int) -> None:
        self._settings = settings
        self._pairs = pairs
        self.steps_per_epoch = -(-pairs // settings.optimiser.batch_pairs)
        steps = self.steps_per_epoch * settings.optimiser.epochs
        self.steps = min(steps, settings.optimiser.max_steps or steps)
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    def batch(self, step: int) -> list[int]:
        """Indices of the pairs of one optimiser batch."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._epoch[0] != epoch:
            size, seed = self._settings.optimiser.batch_pairs, self._settings.seed
            self._epoch = (epoch, batch_order(self._pairs, size, seed, epoch))
        return self._epoch[1][place]

    def pairs_until(self, steps: int) -> int:
        """Pairs of the first ``steps`` optimiser batches."""
        epochs, rest = divmod(steps, self.steps_per_epoch)
        return epochs * self._pairs + min(rest * self._settings.optimiser.batch_pairs, self._pairs)

    def learning_rate(self, step: int) -> float:
        options = self._settings.optimiser
        return learning_rate(step, self.steps, options.warmup_share, options.lr)

    def due(self, every: int | None, done: int) -> bool:
        """Whether something that happens ``every`` steps, or each epoch, is due after ``done``."""
        return done == self.steps or done % (every or self.steps_per_epoch) == 0


class Run:
    """The training loop and what it writes."""

    def __init__(
        self,
        settings: RewardSettings,
        learner: Learner,
        data: Data,
        schedule: Schedule,
        progress: Progress,
    ) -> None:
        self.settings = settings
        self.learner = learner
        self.data = data
        self.schedule = schedule
        self.progress = progress
        self.console = Console(stderr=True)
        self.measured: dict[str, Measurement] = {}
        self.metrics: MetricsWriter | None = None
        if learner.main:
            resume_step = progress.step or None
            tensorboard = settings.run.tensorboard
            self.metrics = MetricsWriter(settings.output_dir, resume_step, tensorboard=tensorboard)
        self.tracker: Tracker | None = None
        if learner.main and settings.run.wandb is not None:
            self.tracker = Tracker(settings.run.wandb, settings)

    def go(self) -> None:
        """Every step from the checkpoint's on, then the finished model and the report."""
        if self.progress.step == 0:
            self.validate()
        with self._bar() as bar:
            task = bar.add_task("reward model", total=self.schedule.steps)
            bar.update(task, completed=self.progress.step)
            while self.progress.step < self.schedule.steps and not self.stopped:
                self.step()
                bar.update(task, completed=self.progress.step)
        self.finish()

    def step(self) -> None:
        started = time.perf_counter()
        step = self.progress.step
        examples = self.data.examples.examples
        batch = [examples[index] for index in self.schedule.batch(step)]
        lr = self.schedule.learning_rate(step)
        result = self.learner.step(batch, lr)
        count = self.learner.take_count()
        seconds = time.perf_counter() - started
        self.progress = replace(
            self.progress,
            step=step + 1,
            tokens=self.progress.tokens + count.tokens,
            seconds=self.progress.seconds + seconds,
        )
        if self.schedule.due(self.settings.run.log_every, step + 1):
            self._log(step_values(result, count, seconds) | self._run_values(lr))
        if self.schedule.due(self.settings.run.validate_every, step + 1):
            self.validate()
        if self.schedule.due(self.settings.run.checkpoint_every, step + 1):
            self.save_checkpoint()

    def validate(self) -> None:
        """Measure the validation sets and the probe of train pairs; log both; keep the best."""
        self.measured = self.measure()
        values = {
            f"{name}/{key}": value
            for name, measurement in self.measured.items()
            for key, value in measurement.values.items()
        }
        self._log(values)
        step = self.progress.step
        if self.settings.run.keep_rewards and self.learner.main:
            rewards = {name: one.rewards_N.tolist() for name, one in self.measured.items()}
            path = self.settings.output_dir / REWARDS / f"step-{step}.json"
            atomic.write_text(path, json.dumps(rewards))
        best = self.progress.best.after(step, values, self.settings.run)
        if best.step == step and best.value is not None:
            self.learner.save_model(
                self.settings.output_dir / BEST, self._contract(reward_stats(self.measured))
            )
        self.progress = replace(self.progress, best=best)

    @property
    def stopped(self) -> bool:
        """Whether no better validation was seen for too long."""
        return self.progress.best.is_given_up(self.settings.run)

    def measure(self) -> dict[str, Measurement]:
        """The probe first, then every validation set under ``validation/<name>``."""
        tokens = self.settings.compute.micro_batch_tokens
        gap = self.settings.data.min_gold_gap
        found = {"probe": measure_pairs(self.probe, self.learner.measure, max_tokens=tokens)}
        for one in self.data.validation:
            found[f"validation/{one.name}"] = measure_set(
                one, self.learner.measure, min_gold_gap=gap, max_tokens=tokens
            )
        return found

    @cached_property
    def probe(self) -> list[Example]:
        """The same train pairs at every measurement: the first of a seeded order."""
        count = len(self.data.examples.examples)
        order = batch_order(count, self.settings.run.probe_pairs, self.settings.seed, epoch=-1)
        return [self.data.examples.examples[index] for index in order[0]]

    def save_checkpoint(self) -> None:
        self.learner.save_checkpoint(
            self.settings.output_dir,
            self.progress,
            self._contract(None),
            data_fingerprint=self.data.examples.fingerprint(),
            keep=self.settings.run.keep_checkpoints,
        )

    def finish(self) -> None:
        """Write ``model/`` with the statistics of its rewards and its card, and ``report.json``."""
        self.measured = self.measured or self.measure()
        settings, learner = self.settings, self.learner
        contract = self._contract(reward_stats(self.measured))
        learner.save_adapter(settings.output_dir / ADAPTER, contract)
        if settings.lora is None or settings.lora.save == "merged":
            contract = learner.save_model(settings.output_dir / MODEL, contract)
        values = {name: one.values for name, one in self.measured.items()}
        norm = head_norm(learner.model)
        if learner.main:
            report = run_report(
                settings, self.data, self.schedule.steps, self.progress, values, contract, norm
            )
            write_cards(settings.output_dir, report)
            write_page(settings.output_dir, report)
            write_report(settings.output_dir, report)
            print(f"{settings.output_dir}: {headline(report)}")
        if self.metrics is not None:
            self.metrics.close()
        if self.tracker is not None:
            self.tracker.close()
        learner.accelerator.wait_for_everyone()

    def _contract(self, stats: RewardStats | None) -> Contract:
        return self.learner.model.contract.model_copy(
            update={
                "loss": self.settings.loss.spec(),
                "stats": stats,
                "created_with": f"sumzero {version('sumzero')}",
                "model_version": None,
            }
        )

    def _run_values(self, lr: float) -> dict[str, float]:
        loss = self.settings.loss
        values = {
            "lr": lr,
            "head_norm": head_norm(self.learner.model),
            "epoch": self.progress.step / self.schedule.steps_per_epoch,
            "pairs_seen": float(self.schedule.pairs_until(self.progress.step)),
        }
        return values if loss.lambda_ is None else values | {"loss/lambda": loss.lambda_}

    def _log(self, values: dict[str, float]) -> None:
        if self.metrics is not None:
            self.metrics.log(self.progress.step, values)
        if self.tracker is not None:
            self.tracker.log(self.progress.step, values)

    def _bar(self) -> ProgressBar:
        shown = self.learner.main and self.console.is_terminal
        return ProgressBar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not shown,
        )


def step_values(result: StepResult, count: TokenCount, seconds: float) -> dict[str, float]:
    """What one optimiser step logs. M and v are of the whole optimiser batch, whatever the scope.

    ``loss/weight`` is the λ or c as applied; ``train/pair_variance`` is v, the variance of pair
    means; ``shared_token_share`` the part of the tokens that needed no computing.
    """
    outcome = result.outcome
    pair_means_B = outcome.rows_B5[:, :2].double().mean(dim=1)
    return {
        "loss/total": outcome.loss,
        "loss/preference": outcome.preference,
        "loss/penalty": outcome.penalty,
        "loss/weighted_penalty": outcome.weighted_penalty,
        "loss/weight": outcome.applied_weight,
        **{f"train/{key}": value for key, value in summary(outcome.rows_B5).items()},
        "train/batch_mean": float(pair_means_B.mean()),
        "train/pair_variance": float(pair_means_B.var()) if outcome.pairs > 1 else 0.0,
        "grad_norm": result.grad_norm,
        "tokens_per_second": count.tokens / seconds,
        "shared_token_share": 1 - count.computed / count.tokens,
    }


def reward_stats(measured: dict[str, Measurement]) -> RewardStats | None:
    """Statistics of the raw rewards on the first validation set, or else on the train probe."""
    name = next((key for key in measured if key != "probe"), "probe")
    rewards_N = measured[name].rewards_N.double()
    if len(rewards_N) < 2 or float(rewards_N.std()) == 0:
        return None
    split = "train" if name == "probe" else name.removeprefix("validation/")
    return RewardStats(
        mean=float(rewards_N.mean()), std=float(rewards_N.std()), n=len(rewards_N), split=split
    )


def _load_model(settings: RewardSettings, resumed: Path | None) -> RewardModel:
    if resumed is not None and settings.lora is None:
        return RewardModel.load(resumed / checkpoint.MODEL)
    template = settings.chat_template
    if template is not None and not template.is_file():
        raise UsageError(f"chat_template: {template}: no such file")
    return RewardModel.from_backbone(
        settings.backbone,
        seed=settings.seed,
        chat_template=None if template is None else template.read_text(),
        max_length=settings.data.max_length,
    )
