"""Scoring over HTTP: our server beside the in-process rate, a padded server, and vLLM's.

    python -m benchmarks.serving [--dtype float32] [--rounds 3] [--texts 256] [--overload 60]

Prints one JSON object. All servers run on this machine, one after another in every round, with
fresh token ids; the random models are those of ``benchmarks.scoring``. Without ``.venv-vllm`` there
is no vLLM arm. ``--overload`` gives the seconds of load at ten times the capacity; 0 leaves it out.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import torch

from benchmarks.interleaved import Arm, measure, ratio
from benchmarks.scoring import checkpoint, groups, texts
from reward_model.model import RewardModel
from reward_model.scoring import score_token_ids

CLIENTS, MIXED = 64, 16
VLLM_PYTHON = Path(__file__).parents[1] / ".venv-vllm" / "bin" / "python"
VLLM_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
OVERLOAD_FACTOR, OVERLOAD_QUEUE_TOKENS = 10, 16384

Sequences = Sequence[Sequence[int]]
Body = Callable[[Sequences], tuple[str, dict[str, Any]]]
"""One request for some sequences: path and JSON."""


def our_body(sequences: Sequences) -> tuple[str, dict[str, Any]]:
    return "/score", {"items": [{"token_ids": list(ids)} for ids in sequences]}


def padded_body(sequences: Sequences) -> tuple[str, dict[str, Any]]:
    return "/get_reward", {"query": [list(ids) for ids in sequences]}


def vllm_body(sequences: Sequences) -> tuple[str, dict[str, Any]]:
    rows = [list(ids) for ids in sequences]
    return "/classify", {"model": "m", "input": rows, "use_activation": False}


@contextlib.contextmanager
def server(command: Sequence[str], ready: str, environment: dict[str, str]) -> Iterator[str]:
    """A server of its own on a free port, up when ``ready`` answers 200; ended afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        env=os.environ | environment,
        stdout=sys.stderr,
        process_group=0,
    )
    try:
        while True:
            if process.poll() is not None:
                raise SystemExit(f"a server ended by itself: {' '.join(command)}")
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(url + ready, timeout=5).status_code == 200:
                    break
            time.sleep(0.5)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def our_server(path: Path, dtype: str, *options: str) -> contextlib.AbstractContextManager[str]:
    command = [sys.executable, "-m", "service", "--model", f"m={path}", "--dtype", dtype]
    command += ["--cache_mib", "0", "--log_level", "warning", *options]
    return server(command, "/ready", {})


def padded_server(path: Path, dtype: str) -> contextlib.AbstractContextManager[str]:
    command = [sys.executable, "-m", "benchmarks.padded_server", "--model", str(path)]
    return server([*command, "--dtype", dtype], "/health", {})


def vllm_server(path: Path, dtype: str) -> contextlib.AbstractContextManager[str]:
    command = [
        *(str(VLLM_PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(path)),
        *("--served-model-name", "m", "--runner", "pooling", "--dtype", dtype),
        *("--enforce-eager", "--host", "127.0.0.1", "--max-num-batched-tokens", "16384"),
    ]
    return server(command, "/health", VLLM_ENVIRONMENT)


class Load:
    """Requests from many clients at once, on one event loop for the whole benchmark."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=CLIENTS)
        self.http = httpx.AsyncClient(limits=limits, timeout=600)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def send(self, url: str, body: Body, requests: Sequence[Sequences]) -> None:
        """All ``requests``, from 64 clients of which each has one in flight."""
        self.run(self._send(url, body, requests))

    async def _send(self, url: str, body: Body, requests: Sequence[Sequences]) -> None:
        waiting = iter(requests)

        async def client() -> None:
            for sequences in waiting:
                path, content = body(sequences)
                response = await self.http.post(url + path, json=content)
                response.raise_for_status()

        await asyncio.gather(*(client() for _ in range(min(CLIENTS, len(requests)))))


def run(dtype: str, arguments: argparse.Namespace) -> dict[str, object]:
    """Every comparison in one dtype."""
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        path = checkpoint(Path(directory) / "model", "qwen2")
        urls = {
            "ours": (stack.enter_context(our_server(path, dtype)), our_body),
            "padded": (stack.enter_context(padded_server(path, dtype)), padded_body),
        }
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


def overload(dtype: str, seconds: float) -> dict[str, object]:
    """Ten times the capacity: one item per request, arriving evenly, whatever comes back."""
    with tempfile.TemporaryDirectory() as directory:
        path = checkpoint(Path(directory) / "model", "qwen2")
        limit = ("--max_queue_tokens", str(OVERLOAD_QUEUE_TOKENS))
        with our_server(path, dtype, *limit) as url:
            load = Load()
            warm = [[ids] for ids in texts(1, CLIENTS, 8192, 1024)]
            started = time.perf_counter()
            load.send(url, our_body, warm)
            capacity = len(warm) / (time.perf_counter() - started)
            return load.run(_flood(load.http, url, OVERLOAD_FACTOR * capacity, seconds))  # type: ignore[no-any-return]


async def _flood(
    http: httpx.AsyncClient, url: str, rate: float, seconds: float
) -> dict[str, object]:
    statuses: dict[str, int] = {}
    accepted: list[float] = []
    tokens = 0
    memory: list[float] = []

    async def ask(ids: Sequence[int]) -> None:
        nonlocal tokens
        asked = time.perf_counter()
        try:
            path, content = our_body([ids])
            response = await http.post(url + path, json=content)
            status = str(response.status_code)
        except httpx.TransportError as error:
            status = type(error).__name__
        statuses[status] = statuses.get(status, 0) + 1
        if status == "200":
            accepted.append(time.perf_counter() - asked)
            tokens += len(ids)

    pool = texts(5, 4096, 8192, 1024)
    tasks: list[asyncio.Task[None]] = []
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        while len(tasks) < rate * elapsed:
            number = len(tasks)
            # Fresh: the same lengths again, with another first token.
            ids = [1 + number % 8000, *pool[number % len(pool)][1:]]
            tasks.append(asyncio.create_task(ask(ids)))
        memory.append(_resident_mib(url))
        await asyncio.sleep(0.05)
    await asyncio.gather(*tasks)
    took = time.perf_counter() - started
    throughput = tokens / took
    settled = len(memory) // 3
    return {
        "requests_per_second": round(rate, 1),
        "seconds": seconds,
        "answers": dict(sorted(statuses.items())),
        "accepted_p50_seconds": round(statistics.median(accepted), 3),
        "accepted_p99_seconds": round(sorted(accepted)[int(0.99 * (len(accepted) - 1))], 3),
        # What waits when one gets in, its own tokens, and two batches: the running one and its own.
        "promise_seconds": round((OVERLOAD_QUEUE_TOKENS + 1024 + 2 * 2048) / throughput, 3),
        "tokens_per_second": round(throughput),
        "memory_mib": {
            "after_a_third": round(memory[settled], 1),
            "at_the_end": round(memory[-1], 1),
        },
    }


def _resident_mib(url: str) -> float:
    """Resident memory of the process that listens on the URL's port; a child of ours."""
    port = url.rpartition(":")[2]
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            words = (status.parent / "cmdline").read_bytes().split(b"\0")
            if b"service" in words and port.encode() in words:
                line = next(x for x in status.read_text().splitlines() if x.startswith("VmRSS"))
                return int(line.split()[1]) / 1024
    return float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--overload", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("--vllm", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    report: dict[str, object] = {
        "benchmark": "serving",
        "machine": {
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "processor": platform.processor() or platform.machine(),
        },
        "results": [run(dtype, arguments) for dtype in arguments.dtype if arguments.rounds],
    }
    if arguments.overload:
        report["overload"] = overload(arguments.dtype[0], arguments.overload)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
