"""A whole RLOO step, samples in and weights out: this trainer against TRL's RLOOTrainer.

    python -m benchmarks.rloo [--rounds 3] [--steps 4] [--policy DIR --prompts FILE]

Prints one JSON object. Both start from the same weights and generate with transformers; prompts,
reward, samples per step, temperature, KL weight and optimiser are the same. Each arm is a process
of its own on the same cores, and rounds are interleaved with fresh prompts. Timed is the training
loop, from nothing to the last step's weights in the generator: our overlap pays for its start too.

TRL's arm gets the micro-batch that was fastest in a first round.

Without ``--policy`` the model is random, its end-of-turn token made likely enough for responses to
end by chance somewhere between one token and the limit; ``mean_length`` says where.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.interleaved import ratio
from benchmarks.worker import Worker
from trainer.data.rows import read_rows, write_rows
from trainer.sft.config import FromScratch
from trainer.sft.scratch import new_model, train_tokenizer

TEMPERATURE = 0.7
PROGRESS = Console(stderr=True)
PROMPT_WORDS, SIGMA = 60, 0.7
"""Median and spread of the drawn prompts' lengths, like those of AlpacaEval."""


def scratch_policy(directory: Path, rng: random.Random, length: int) -> Path:
    """A random decoder of 8M parameters that ends a response after some ``length`` tokens."""
    tokenizer = train_tokenizer((sentence(rng, 200) for _ in range(400)), 8192)
    shape = FromScratch(hidden_size=256, intermediate_size=704, layers=6, heads=4, kv_heads=2,
                        max_positions=2048)  # fmt: skip
    model = new_model(shape, tokenizer, seed=0)
    make_ends_likely(model, tokenizer, 1 / length)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@torch.no_grad()
def make_ends_likely(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, share: float
) -> None:
    """One feature is the same for every token, and only the end-of-turn token reads it."""
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    embeddings[:, 0] = 0.3
    head[:, 0] = 0.0
    ids = torch.randint(3, len(tokenizer), (4, 128), generator=torch.Generator().manual_seed(0))
    output = model(ids, output_hidden_states=True)
    others = torch.logsumexp(output.logits[:, 64:] / TEMPERATURE, -1).mean()
    feature = output.hidden_states[-1][:, 64:, 0].mean()
    wanted = torch.log(torch.tensor(share / (1 - share))) + others
    head[tokenizer.eos_token_id] = 0.0
    head[tokenizer.eos_token_id, 0] = TEMPERATURE * wanted / feature


def sentence(rng: random.Random, words: int) -> str:
    letters = "etaoinshrdlu"
    return " ".join("".join(rng.choices(letters, k=rng.randint(2, 8))) for _ in range(words))


def drawn_prompt(rng: random.Random) -> str:
    words = min(300, max(5, round(PROMPT_WORDS * rng.lognormvariate(0, SIGMA) / 2)))
    return sentence(rng, words)


def write_prompts(directory: Path, source: str | None, rounds: int, count: int) -> None:
    """``count`` prompts for every round, in ``round-<n>.jsonl``."""
    rng = random.Random(0)
    given = None if source is None else [row for row in read_rows(source) if row is not None]
    for index in range(rounds + 1):
        if given is None:
            rows = [{"prompt": drawn_prompt(rng)} for _ in range(count)]
        else:
            rows = [{"prompt": row["prompt"]} for row in rng.sample(given, count)]
        write_rows(directory / f"round-{index}.jsonl", rows)


def compare(
    directory: Path, policy: Path, arguments: argparse.Namespace
) -> tuple[dict[str, list[dict[str, float]]], dict[str, float]]:
    """What each arm answered in every round, and seconds of TRL's micro-batches in the first."""
    cores = len(os.sched_getaffinity(0))
    environment = {"OMP_NUM_THREADS": str(cores), "TOKENIZERS_PARALLELISM": "false"}
    common = {
        "policy": str(policy), "workspace": str(directory), "steps": arguments.steps,
        "prompts_per_step": arguments.prompts_per_step, "k": arguments.k,
        "max_new_tokens": arguments.max_new_tokens, "temperature": TEMPERATURE,
    }  # fmt: skip
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(
                Worker(
                    [sys.executable, "-m", "benchmarks.rloo_worker", name, json.dumps(common)],
                    environment,
                )
            )
            for name in ("ours", "trl")
        }
        samples = arguments.prompts_per_step * arguments.k
        sizes = [size for size in (samples, samples // 2, samples // 4) if size >= 1]
        workers["ours"].ask({"round": 0})
        workers["trl"].ask({"round": 0, "micro_batch": samples})  # the first pass is slow
        screened = {
            str(size): workers["trl"].ask({"round": 0, "micro_batch": size})["seconds"]
            for size in sizes
        }
        fastest = int(min(screened, key=screened.__getitem__))
        requests: Mapping[str, dict[str, int]] = {"ours": {}, "trl": {"micro_batch": fastest}}
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
        rng = random.Random(0)
        for index in track(range(1, arguments.rounds + 1), transient=True, console=PROGRESS):
            for name in rng.sample(list(workers), len(workers)):
                rounds[name].append(workers[name].ask({"round": index, **requests[name]}))
    return rounds, screened


def main() -> None:
    parser = argparse.ArgumentParser(description="RLOO against TRL's RLOOTrainer.")
    parser.add_argument("--policy", type=Path, help="a chat model; a random one otherwise")
    parser.add_argument("--prompts", help="its prompts, JSON lines")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="optimiser steps of a round")
    parser.add_argument("--prompts_per_step", type=int, default=4)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--max_new_tokens", type=int, default=96)
    parser.add_argument("--length", type=int, default=48, help="of the random policy, roughly")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        policy = arguments.policy or scratch_policy(
            directory / "policy", random.Random(0), arguments.length
        )
        count = arguments.steps * arguments.prompts_per_step
        write_prompts(directory, arguments.prompts, arguments.rounds, count)
        rounds, screened = compare(directory, policy, arguments)
    samples = count * arguments.k
    seconds, cpu_seconds, lengths = (
        {name: [one[key] for one in answers] for name, answers in rounds.items()}
        for key in ("seconds", "cpu_seconds", "length")
    )
    report = {
        "benchmark": "rloo",
        "cores": len(os.sched_getaffinity(0)),
        "policy": str(arguments.policy or "random"),
        "samples_per_second": {
            name: samples / statistics.median(values) for name, values in seconds.items()
        },
        "over_trl": ratio(seconds, "trl", "ours"),
        "over_trl_in_processor_time": ratio(cpu_seconds, "trl", "ours"),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "mean_length": {name: statistics.fmean(values) for name, values in lengths.items()},
        "trl_micro_batch_seconds": screened,
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
