"""Scoring over HTTP: our server beside the in-process rate, a padded server, and vLLM's.

    python -m benchmarks.serving [--dtype float32] [--rounds 3] [--texts 256] [--overload 60]

Prints one JSON object. All servers run on this machine, one after another in every round, with
fresh token ids; the random models are those of ``benchmarks.scoring``. Without ``.venv-vllm`` there
is no vLLM arm. ``--overload`` gives the seconds of load at ten times the capacity; 0 leaves it out.
"""

import argparse
import contextlib
import json
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import httpx
import torch

from benchmarks.interleaved import Arm, measure, ratio
from benchmarks.overload import overload
from benchmarks.scoring import checkpoint, groups, texts
from benchmarks.servers import (
    VLLM_PYTHON,
    Body,
    Load,
    Sequences,
    our_body,
    our_server,
    padded_body,
    padded_server,
    vllm_body,
    vllm_server,
)
from reward_model.model import RewardModel
from reward_model.scoring import score_token_ids
from service.garbage import spare_what_is_loaded

MIXED = 16


def run(dtype: str, arguments: argparse.Namespace) -> dict[str, object]:
    """Every comparison in one dtype."""
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        path = checkpoint(Path(directory) / "model", "qwen2")
        urls = {
            "ours": (stack.enter_context(our_server(path, dtype)), our_body),
        }
        if arguments.padded:
            urls["padded"] = (stack.enter_context(padded_server(path, dtype)), padded_body)
        if arguments.vllm and VLLM_PYTHON.exists():
            urls["vllm"] = (stack.enter_context(vllm_server(path, dtype)), vllm_body)
        seconds, differing = compare(path, dtype, urls, arguments)
    result: dict[str, object] = {
        "dtype": dtype,
        "texts": arguments.texts,
        "score_differences_over_http": differing,
        "share_of_in_process_rate": round(ratio(seconds, "in process", "ours, single items"), 3),
    }
    for kind in ("single items", "requests of 16", "groups"):
        for other in urls:
            if other != "ours":
                key = f"over {other}, {kind}"
                result[key] = round(ratio(seconds, f"{other}, {kind}", f"ours, {kind}"), 3)
    result["median_seconds"] = {
        name: round(statistics.median(values), 3) for name, values in seconds.items()
    }
    return result


def compare(
    path: Path, dtype: str, urls: dict[str, tuple[str, Body]], arguments: argparse.Namespace
) -> tuple[dict[str, list[float]], int]:
    """Seconds of every arm per round, and how many served scores differ from in-process ones."""
    model, load = RewardModel.load(path, dtype=dtype), Load()
    spare_what_is_loaded()  # as the service does
    vocab_size, longest = model.encoder.vocab_size, 1024

    def rounds(index: int) -> dict[str, Arm]:
        arms: dict[str, Arm] = {}
        for number, (name, (url, body)) in enumerate(urls.items()):
            # Fresh for every arm too: nobody may remember what another was asked.
            found = texts(100 * index + number, arguments.texts, vocab_size, longest)
            grouped = groups(100 * index + number, vocab_size)
            kinds = {
                "single items": [[ids] for ids in found],
                "requests of 16": [found[i : i + MIXED] for i in range(0, len(found), MIXED)],
                "groups": [grouped[i : i + 8] for i in range(0, len(grouped), 8)],
            }
            if name == "vllm":  # its prefix cache has seen the single ones
                again = texts(100 * index + 50, arguments.texts, vocab_size, longest)
                kinds["requests of 16"] = [
                    again[i : i + MIXED] for i in range(0, len(again), MIXED)
                ]
            for kind, requests in kinds.items():
                arms[f"{name}, {kind}"] = _sending(load, url, body, requests)
        mine = texts(100 * index + 99, arguments.texts, vocab_size, longest)
        arms["in process"] = lambda: score_token_ids(model, mine)
        return arms

    seconds = measure(rounds, arguments.rounds)
    sample = texts(7, MIXED, vocab_size, longest)
    url, body = urls["ours"]
    where, content = body(sample)
    answer = httpx.post(url + where, json=content, timeout=600).json()
    served = [result["scores"][0] for result in answer["results"]]
    return seconds, sum(a != b for a, b in zip(served, score_token_ids(model, sample), strict=True))


def _sending(load: Load, url: str, body: Body, requests: Sequence[Sequences]) -> Arm:
    return lambda: load.send(url, body, requests)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--overload", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("--padded", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--vllm", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    results: list[dict[str, object]] = []
    report: dict[str, object] = {
        "benchmark": "serving",
        "machine": {
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "processor": platform.processor() or platform.machine(),
        },
    }
    for dtype in arguments.dtype if arguments.rounds else ():
        found = run(dtype, arguments)
        print(json.dumps(found), file=sys.stderr, flush=True)  # in case the rest never comes
        results.append(found)
    report["results"] = results
    if arguments.overload:
        report["overload"] = overload(arguments.dtype[0], arguments.overload)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
