"""One arm of ``benchmarks.rloo`` in a process of its own."""

import asyncio
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, disable_progress_bars
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.utils import logging as transformers_logging
from trl import RLOOConfig, RLOOTrainer

from benchmarks.worker import JsonObject, answers, serve
from trainer.data.rows import read_rows
from trainer.metrics import read_metrics
from trainer.rloo.backends import open_generator
from trainer.rloo.config import RlooSettings
from trainer.rloo.interruption import Interruption
from trainer.rloo.reward import Rewards
from trainer.rloo.session import Session, open_session
from trainer.rloo.train import learn, make_rollouts

BETA, RATE = 0.05, 1e-6


@dataclass(frozen=True)
class Task:
    """What both arms are given."""

    policy: str
    workspace: str
    steps: int
    prompts_per_step: int
    k: int
    max_new_tokens: int
    temperature: float

    @property
    def samples_per_step(self) -> int:
        return self.prompts_per_step * self.k

    def prompts(self, round_: int) -> Path:
        return Path(self.workspace) / f"round-{round_}.jsonl"


def vowels(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
    """The reward of both arms: the share of vowels."""
    texts = [one if isinstance(one, str) else one[-1]["content"] for one in completions]
    return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in texts]


class OurArm:
    """The trainer's own loop with the embedded generator and a staleness of one version."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def run(self, request: JsonObject) -> JsonObject:
        task = self.task
        output = Path(task.workspace) / "ours"
        shutil.rmtree(output, ignore_errors=True)
        settings = RlooSettings.model_validate(
            {
                "policy": task.policy,
                "prompts": task.prompts(request["round"]),
                "output_dir": output,
                "reward": {
                    "sources": [{"function": "benchmarks.rloo_worker:vowels"}],
                    "missing_eos_penalty": 0.0,
                },
                "generation": {
                    "backend": "embedded",
                    "samples_per_prompt": task.k,
                    "temperature": task.temperature,
                    "max_new_tokens": task.max_new_tokens,
                    "max_prompt_tokens": 1024,
                },
                "objective": {"beta": BETA},
                "optimizer": {"learning_rate": RATE},
                "batch_size": task.samples_per_step,
                "epochs": 1,
                "checkpoint_steps": 10**6,
                "tensorboard": False,
                "seed": request["round"],
            }
        )
        session = open_session(settings)
        seconds, cpu_seconds = asyncio.run(self._timed(session))
        session.close()
        lines = read_metrics(output)
        assert len(lines) == task.steps, "a prompt was too long"
        length = sum(line["length"] for line in lines) / len(lines)
        return {"seconds": seconds, "cpu_seconds": cpu_seconds, "length": length}

    async def _timed(self, session: Session) -> tuple[float, float]:
        weights = await session.compute(session.write_weights)
        generation = open_generator(
            session.settings.generation,
            session.sampling,
            session.tokenizer,
            weights=weights,
            run_dir=session.run_dir,
            device="cpu",
            threads=session.threads,
        )
        with Interruption() as interruption:
            async with Rewards.open(session.settings.reward) as rewards, generation as generator:
                await generator.publish(weights, 0)
                started, cpu = time.perf_counter(), time.process_time()
                rollouts = make_rollouts(session, generator, rewards)
                async with asyncio.TaskGroup() as tasks:
                    worker = tasks.create_task(rollouts.run())
                    await learn(session, rollouts, generator, rewards, interruption)
                    worker.cancel()
                await generator.publish(await session.compute(session.write_weights), session.step)
                return time.perf_counter() - started, time.process_time() - cpu


class Stopwatch(TrainerCallback):
    """Seconds of the training loop, and of the processor in it."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.started, self.cpu = time.perf_counter(), time.process_time()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.seconds = time.perf_counter() - self.started
        self.cpu_seconds = time.process_time() - self.cpu


class TrlArm:
    """``RLOOTrainer.train``; weights are where the generator is, so nothing is published."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.tokenizer = AutoTokenizer.from_pretrained(task.policy)

    def run(self, request: JsonObject) -> JsonObject:
        task, micro_batch = self.task, request["micro_batch"]
        options = RLOOConfig(
            output_dir=f"{task.workspace}/trl",
            num_generations=task.k,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=task.samples_per_step // micro_batch,
            gradient_checkpointing=False,
            max_completion_length=task.max_new_tokens,
            temperature=task.temperature,
            beta=BETA,
            learning_rate=RATE,
            max_steps=task.steps,
            seed=request["round"],
            bf16=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        rows = [row for row in read_rows(str(task.prompts(request["round"]))) if row is not None]
        prompts = [[{"role": "user", "content": row["prompt"]}] for row in rows]
        watch = Stopwatch()
        trainer = RLOOTrainer(
            model=AutoModelForCausalLM.from_pretrained(task.policy, dtype="float32"),
            reward_funcs=vowels,
            args=options,
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
            processing_class=self.tokenizer,
            callbacks=[watch],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        lengths = [
            line["completions/mean_length"]
            for line in trainer.state.log_history
            if "completions/mean_length" in line
        ]
        assert len(lengths) == task.steps
        return {
            "seconds": watch.seconds,
            "cpu_seconds": watch.cpu_seconds,
            "length": sum(lengths) / len(lengths),
        }


def main(arm: str, task: str) -> None:
    channel = answers()
    disable_progress_bars()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    runner = {"ours": OurArm, "trl": TrlArm}[arm](Task(**json.loads(task)))
    serve(runner.run, channel, {"arm": arm})


if __name__ == "__main__":
    main(*sys.argv[1:])
