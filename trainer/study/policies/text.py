"""Real prompts as the world of a study: a given policy's own responses, labelled by a gold model.

As in the work on over-optimisation that the paper follows, proxies learn from what the policy says
before RLOO, and gold is a reward model that is stronger than they are.
"""

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward_model.errors import UsageError
from trainer.data.rows import Row, write_rows
from trainer.demo.processes import Job, service
from trainer.demo.runner import StageRunner
from trainer.demo.stages import Stage
from trainer.rloo.sample_table import read_table
from trainer.study.cells import read_source
from trainer.study.policies.config import PolicyStudySettings, TextSettings
from trainer.study.policies.ground import Ground

RESPONSES = 6
"""Of each labelled prompt: two pairs to train on, and a pair for the in-domain cell."""
MARGIN = 64
"""Tokens that a template may need around prompt and response."""


@dataclass(frozen=True)
class Prompts:
    """Disjoint sets, drawn anew for every seed."""

    labelled: list[Row]
    unseen: list[Row]
    policy: list[Row]
    heldout: list[Row]


def draw_prompts(text: TextSettings, seed: int) -> Prompts:
    """From the source's train and valid prompts.

    Raises:
        UsageError: a file is missing, or there are fewer prompts than are asked for.
    """
    source = read_source(text.source)
    rows = {row["prompt_id"]: row for row in source.prompts}
    rng = random.Random(f"prompts {seed}")

    def draw(split: str, counts: dict[str, int]) -> Iterator[list[Row]]:
        names = sorted(source.splits[split])
        if len(names) < sum(counts.values()):
            raise UsageError(
                f"text: {' + '.join(counts)} are {sum(counts.values())}, but {text.source} has "
                f"{len(names)} {split}"
            )
        rng.shuffle(names)
        for count in counts.values():
            yield [_prompt(rows[name]) for name in names[:count]]
            names = names[count:]

    labelled, policy = draw(
        "train_prompts",
        {"labelled_prompts": text.labelled_prompts, "policy_prompts": text.policy_prompts},
    )
    unseen, heldout = draw(
        "valid_prompts",
        {"unseen_prompts": text.unseen_prompts, "heldout_prompts": text.heldout_prompts},
    )
    return Prompts(labelled, unseen, policy, heldout)


def label(table: Sequence[dict[str, Any]], labelled: set[str]) -> dict[str, list[Row]]:
    """Train pairs and cells from a table of samples with their gold scores.

    Args:
        table: of ``trainer.rloo``, a row per prompt, its reward being gold.
        labelled: prompts to train on; the others are of the prompt-OOD cell.
    """
    found: dict[str, list[Row]] = {"train_pairs": [], "in_domain": [], "prompt_ood": []}
    for row in table:
        messages = row["prompt"]["messages"]
        text = messages[-1]["content"]
        responses = [
            {"model": "policy", "text": one["text"], "gold": one["raw/reward"]}
            for one in row["samples"]
            if one["raw/reward"] is not None
        ]
        scored = {"prompt_id": text, "prompt": messages}
        if text not in labelled:
            found["prompt_ood"].append(scored | {"responses": responses})
            continue
        for first, second in zip(responses[0:4:2], responses[1:4:2], strict=False):
            if first["gold"] == second["gold"]:
                continue
            better, worse = sorted((first, second), key=lambda one: -one["gold"])
            pair = {"prompt": messages, "chosen": better["text"], "rejected": worse["text"]}
            found["train_pairs"].append(pair)
        found["in_domain"].append(scored | {"responses": responses[4:]})
    for cell in ("in_domain", "prompt_ood"):
        found[cell] = [row for row in found[cell] if len(row["responses"]) > 1]
    return found


class Text:
    """The stages of one seed: prompts, responses, pairs, proxies, and what these are worth."""

    def __init__(self, settings: PolicyStudySettings, seed: int) -> None:
        assert settings.text is not None
        self.settings = settings
        self.text: TextSettings = settings.text
        self.seed = seed
        self.runner = StageRunner(settings.output_dir / f"seed-{seed}")

    @contextmanager
    def gold(self) -> Iterator[str]:
        device = self.settings.device
        with service({"gold": self.text.gold}, self.runner.logs, name="gold", device=device) as url:
            yield url

    def ground(self, gold_url: str) -> Ground:
        prompts = self._prompts()
        pairs = self._pairs(prompts, gold_url)
        rewards = self._rewards(pairs)
        evaluation = self._evaluation(pairs, rewards)
        return Ground(
            rewards.directory,
            evaluation.directory,
            self._rloo(prompts.directory),
            (prompts, rewards),
        )

    def _prompts(self) -> Stage:
        names = ("labelled_prompts", "unseen_prompts", "policy_prompts", "heldout_prompts")
        counts = {name: getattr(self.text, name) for name in names}
        source = str(self.text.source)
        stage = Stage(self.runner.root, "prompts", {"seed": self.seed, "source": source, **counts})
        with self.runner.stage(stage) as wanted:
            if wanted:
                drawn = draw_prompts(self.text, self.seed)
                for name in ("policy", "heldout", "labelled"):
                    write_rows(stage.directory / f"{name}.jsonl", getattr(drawn, name))
                write_rows(stage.directory / "sampled.jsonl", drawn.labelled + drawn.unseen)
        return stage

    def _pairs(self, prompts: Stage, gold_url: str) -> Stage:
        output = self.runner.root / "responses"
        config = self._rloo(prompts.directory) | {"output_dir": str(output), "max_steps": 0}
        config["heldout"] = {
            "prompts": str(prompts.directory / "sampled.jsonl"),
            "samples_per_prompt": RESPONSES,
        }
        # Ports differ from run to run and are no part of what the stage computes.
        stage = Stage(self.runner.root, "responses", config, (prompts,))
        config = config | {"reward": {"url": gold_url}}
        self.runner.run_stage(stage, [Job("responses", "trainer.rloo", config, output, 1)])
        pairs = Stage(self.runner.root, "pairs", {}, (stage,))
        with self.runner.stage(pairs) as wanted:
            if wanted:
                known = {
                    row["prompt"][-1]["content"]
                    for row in _rows(prompts.directory / "labelled.jsonl")
                }
                for name, rows in label(read_table(output / "heldout-0.jsonl"), known).items():
                    write_rows(pairs.directory / f"{name}.jsonl", rows)
        return pairs

    def _rewards(self, pairs: Stage) -> Stage:
        text, output = self.text, self.runner.root / "reward"
        count = len(_rows(pairs.directory / "train_pairs.jsonl"))
        steps = -(-count // text.batch_pairs) * text.reward_epochs
        jobs = []
        for arm, loss in self.settings.arms.items():
            config = {
                "backbone": str(text.backbone or text.policy),
                "output_dir": str(output / arm),
                "loss": loss.model_dump(by_alias=True, exclude_none=True),
                "data": {
                    "train": str(pairs.directory / "train_pairs.jsonl"),
                    "validation": _cells(pairs),
                    "validation_limit": text.unseen_prompts,
                    "min_gold_gap": 0.0,
                    "max_length": text.max_prompt_tokens + text.max_new_tokens + MARGIN,
                },
                "optimiser": {
                    "lr": text.reward_lr,
                    "batch_pairs": text.batch_pairs,
                    "epochs": text.reward_epochs,
                },
                "run": {"tensorboard": False},
                "seed": self.seed,
            }
            jobs.append(Job(f"reward-{arm}", "trainer.reward", config, output / arm, steps))
        stage = Stage(self.runner.root, "reward", {job.name: job.config for job in jobs}, (pairs,))
        self.runner.run_stage(stage, jobs, side_by_side=self.settings.side_by_side)
        return stage

    def _evaluation(self, pairs: Stage, rewards: Stage) -> Stage:
        output = self.runner.root / "evaluation"
        jobs = []
        for arm in self.settings.arms:
            config = {
                "checkpoint": str(rewards.directory / arm / "model"),
                "sets": _cells(pairs),
                "output_dir": str(output / arm),
                "title": f"Proxy {arm}",
            }
            jobs.append(Job(f"evaluation-{arm}", "trainer.evaluation", config, output / arm, 1))
        settings = {job.name: job.config for job in jobs}
        stage = Stage(self.runner.root, "evaluation", settings, (pairs, rewards))
        self.runner.run_stage(stage, jobs, side_by_side=self.settings.side_by_side)
        return stage

    def _rloo(self, prompts: Path) -> dict[str, Any]:
        text = self.text
        return {
            "policy": str(text.policy),
            "prompts": str(prompts / "policy.jsonl"),
            "generation": {
                "backend": self.settings.backend,
                "samples_per_prompt": 4,
                "temperature": text.temperature,
                "max_new_tokens": text.max_new_tokens,
                "max_prompt_tokens": text.max_prompt_tokens,
            },
            "optimizer": {
                "learning_rate": text.rloo_lr,
                "warmup": 0.05,
                "schedule": "constant",
            },
            "heldout": {"prompts": str(prompts / "heldout.jsonl"), "samples_per_prompt": 4},
            "batch_size": text.batch_size,
            "epochs": 1000,
            "checkpoint_steps": 25,
            "device": self.settings.device,
            "seed": self.seed,
            "tensorboard": False,
        }


def _cells(pairs: Stage) -> dict[str, str]:
    return {name: str(pairs.directory / f"{name}.jsonl") for name in ("in_domain", "prompt_ood")}


def _prompt(row: Row) -> Row:
    return {"prompt": [{"role": "user", "content": row["instruction"]}]}


def _rows(path: Path) -> list[Row]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
