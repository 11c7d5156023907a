"""Packed scoring beside vLLM's engine, and beside itself without what exactness costs.

    python -m benchmarks.engines [--rounds 5] [--texts 256] [--dtype float32] [--shape qwen2]

Prints one JSON object. Every arm is a process of its own on the same checkpoint with all cores;
arms take turns, texts are fresh in every round, so no cache of an earlier round helps anybody. vLLM
computes as many tokens at once as it does by default, and has a further arm for every number that
is given (``--vllm_batch_tokens 2048``).
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.scoring import LONGEST, SHAPES, TEXTS, checkpoint, groups, texts
from benchmarks.servers import VLLM_PYTHON
from benchmarks.worker import Worker

WORKLOADS = ("texts", "groups")


def commands(path: Path, dtype: str, vllm_batch_tokens: Sequence[int]) -> dict[str, list[str]]:
    ours = [sys.executable, "-m", "benchmarks.packed_worker", str(path), dtype]
    arms = {"packed": ours, "packed_inexact": [*ours, "--inexact"]}
    if VLLM_PYTHON.is_file():
        theirs = [str(VLLM_PYTHON), "-m", "benchmarks.vllm_worker", str(path), dtype]
        arms["vllm"] = theirs
        arms |= {f"vllm_{tokens}": [*theirs, str(tokens)] for tokens in vllm_batch_tokens}
    return arms


def run(
    shape: str, dtype: str, rounds: int, count: int, vllm_batch_tokens: Sequence[int]
) -> dict[str, object]:
    """All arms on one shape and dtype; round 0 warms up."""
    vocabulary = int(str(SHAPES[shape]["vocab_size"]))
    longest = min(LONGEST, int(str(SHAPES[shape]["max_position_embeddings"])))
    workloads = WORKLOADS if longest == LONGEST else WORKLOADS[:1]
    seconds: dict[tuple[str, str], list[float]] = {}
    differences: dict[str, float] = {}
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        path = checkpoint(Path(directory), shape)
        workers = {
            name: stack.enter_context(Worker(command))
            for name, command in commands(path, dtype, vllm_batch_tokens).items()
        }
        threads = {name: worker.ready["threads"] for name, worker in workers.items()}
        for index in range(rounds + 1):
            for load in workloads:
                sequences = (
                    texts(index, count, vocabulary, longest)
                    if load == "texts"
                    else groups(index, vocabulary)
                )
                scores: dict[str, list[float]] = {}
                for name in rng.sample(list(workers), len(workers)):
                    answer = workers[name].ask({"sequences": sequences})
                    scores[name] = answer["scores"]
                    if index:
                        seconds.setdefault((load, name), []).append(answer["seconds"])
                for name, theirs in scores.items():
                    apart = max(abs(a - b) for a, b in zip(scores["packed"], theirs, strict=True))
                    differences[name] = max(differences.get(name, 0.0), apart)
    return {
        "shape": shape,
        "dtype": dtype,
        "threads": threads,
        "seconds": {f"{load} {name}": statistics.median(s) for (load, name), s in seconds.items()},
        "times_as_fast": {
            f"{load} against {name}": ratio(s, seconds[load, "packed"])
            for (load, name), s in seconds.items()
            if name != "packed"
        },
        "largest_difference_of_a_score": differences,
    }


def ratio(theirs: list[float], ours: list[float]) -> float:
    """Median over rounds of their time over ours."""
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description="Packed scoring against vLLM's engine.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=TEXTS)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], nargs="+", default=["float32"])
    parser.add_argument("--shape", choices=sorted(SHAPES), nargs="+", default=["qwen2"])
    parser.add_argument("--vllm_batch_tokens", type=int, nargs="*", default=(), metavar="TOKENS")
    arguments = parser.parse_args()
    results = [
        run(shape, dtype, arguments.rounds, arguments.texts, arguments.vllm_batch_tokens)
        for shape in arguments.shape
        for dtype in arguments.dtype
    ]
    print(json.dumps({"benchmark": "engines", "results": results}, indent=2))


if __name__ == "__main__":
    main()
