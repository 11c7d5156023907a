"""How well generation, scoring and learning overlap, with stages that take a set time.

    python -m benchmarks.rloo_overlap [--learn 2.0] [--steps 12]

Prints one JSON object. The trainer's own loop, client and publish sequence run against real HTTP
servers that sleep: a generation takes g, a scoring s, a publish w, and the learner's step l. The
time of a step is held against max(g + s, l) + w, and against the same loop with staleness 0.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import track

from tests.checkpoints import tiny_checkpoint
from tests.trainer.rloo.http_servers import ScoreDouble, VllmDouble, serving
from trainer.metrics import read_metrics
from trainer.rloo.config import RlooSettings
from trainer.rloo.interruption import Interruption
from trainer.rloo.reward import Rewards
from trainer.rloo.samples import Group
from trainer.rloo.session import open_session
from trainer.rloo.train import learn, make_rollouts
from trainer.rloo.vllm_client import VllmConnection, VllmGenerator

WARM_UP = 2
PROMPTS_PER_STEP, SAMPLES = 4, 4


@dataclass(frozen=True, slots=True)
class Stages:
    """Seconds of each stage."""

    generate: float
    score: float
    learn: float
    publish: float

    @property
    def overlapped(self) -> float:
        return max(self.generate + self.score, self.learn) + self.publish


async def run(settings: RlooSettings, stages: Stages, server: str) -> None:
    session = open_session(settings)

    def sleep(groups: Sequence[Group], version: int) -> dict[str, float]:
        time.sleep(stages.learn)
        return {"response_tokens": float(len(groups)), "kl": 0.0}

    session.learner.step = sleep  # type: ignore[method-assign]
    connection = VllmConnection(
        server,
        session.sampling,
        session.tokenizer,
        process=None,
        request_timeout=60,
        restart_timeout=60,
        max_in_flight=64,
        weights_dir=None,
    )
    generator = VllmGenerator([connection])
    with Interruption() as interruption:
        async with Rewards.open(settings.reward) as rewards:
            await connection.open()
            await generator.publish(session.write_weights(), 0)
            rollouts = make_rollouts(session, generator, rewards)
            async with asyncio.TaskGroup() as tasks:
                worker = tasks.create_task(rollouts.run())
                await learn(session, rollouts, generator, rewards, interruption)
                worker.cancel()
    await generator.aclose()
    session.close()


def measure(stages: Stages, staleness: int, steps: int) -> dict[str, float]:
    """Median seconds of a step after the first ones, and what the stages were idle."""
    vllm, scores = VllmDouble(stages.generate), ScoreDouble(stages.score)
    vllm.publish_seconds = stages.publish
    with tempfile.TemporaryDirectory() as name, serving(vllm.app()) as server:
        directory = Path(name)
        tiny_checkpoint(directory / "policy", "qwen2", "causal")
        rows = [json.dumps({"prompt": f"{n}?"}) + "\n" for n in range(PROMPTS_PER_STEP * steps)]
        (directory / "prompts.jsonl").write_text("".join(rows))
        with serving(scores.app()) as reward:
            settings = RlooSettings(
                policy=str(directory / "policy"),
                prompts=directory / "prompts.jsonl",
                output_dir=directory / "run",
                reward={"url": reward},
                generation={"samples_per_prompt": SAMPLES, "max_new_tokens": 8},
                batch_size=PROMPTS_PER_STEP * SAMPLES,
                epochs=1,
                staleness=staleness,
                checkpoint_steps=10**6,
                tensorboard=False,
            )
            asyncio.run(run(settings, stages, server))
        lines = [line for line in read_metrics(directory / "run") if "seconds" in line]
    # The last step publishes nothing.
    counted = lines[WARM_UP:-1]
    return {
        "step": statistics.median(line["seconds"] for line in counted),
        "staleness": max(line["staleness_max"] for line in counted),
        "idle_learn": statistics.median(line["idle/learn"] for line in counted),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Overlap of the stages of an RLOO step.")
    parser.add_argument("--learn", type=float, default=2.0, help="seconds of the learner's step")
    parser.add_argument("--steps", type=int, default=12)
    arguments = parser.parse_args()
    seconds = arguments.learn
    results = []
    for factor in track((0.5, 1.0, 2.0), description="g / l", transient=True):
        stages = Stages(factor * seconds, 0.1 * seconds, seconds, 0.05 * seconds)
        ours = measure(stages, 1, arguments.steps)
        synchronous = measure(stages, 0, arguments.steps)
        results.append(
            {
                "g_over_l": factor,
                "overlapped": ours,
                "synchronous": synchronous,
                "step_over_bound": ours["step"] / stages.overlapped,
                "times_as_fast_as_synchronous": synchronous["step"] / ours["step"],
            }
        )
    print(json.dumps({"benchmark": "rloo_overlap", "learn_seconds": seconds, "results": results}))


if __name__ == "__main__":
    main()
