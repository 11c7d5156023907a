"""Our server at ten times its capacity: what comes back, how late, and how much memory it takes."""

import asyncio
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.connection import Connection
from benchmarks.scoring import checkpoint, texts
from benchmarks.servers import CLIENTS, Load, our_body, our_server
from reward_model.scoring import default_batch_tokens
from service.garbage import spare_what_is_loaded

OVERLOAD_FACTOR, OVERLOAD_QUEUE_TOKENS = 10, 16384


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
            batch_tokens = default_batch_tokens("cpu", getattr(torch, dtype))
            return asyncio.run(_flood(url, OVERLOAD_FACTOR * capacity, seconds, batch_tokens))


async def _flood(url: str, rate: float, seconds: float, batch_tokens: int) -> dict[str, object]:
    """``rate`` requests a second, each on whatever connection is free, or a new one."""
    statuses: dict[str, int] = {}
    accepted: list[float] = []
    in_service: list[float] = []
    tokens_meanwhile: list[int] = []
    tokens = 0
    memory: list[float] = []
    free: list[Connection] = []

    async def ask(ids: Sequence[int]) -> None:
        nonlocal tokens
        asked, before = time.perf_counter(), tokens
        try:
            while free and free[-1].closed:
                free.pop().close()
            connection = free.pop() if free else await Connection.open(url)
            code, content = await connection.post(*our_body([ids]))
            free.append(connection)
            status = str(code)
        except (OSError, asyncio.IncompleteReadError) as error:
            status = type(error).__name__
        statuses[status] = statuses.get(status, 0) + 1
        if status == "200":
            accepted.append(time.perf_counter() - asked)
            in_service.append(sum(json.loads(content)["timing_ms"].values()) / 1000)
            tokens += len(ids)
            tokens_meanwhile.append(tokens - before)

    status_of_server = _status_of_server(url)
    pool = texts(5, 4096, 8192, 1024)
    # None that has ended stays: a full collection, 0.3 s, would take the server's core.
    tasks: set[asyncio.Task[None]] = set()
    sent = 0
    spare_what_is_loaded()
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        while sent < rate * elapsed:
            # Fresh: the same lengths again, with another first token.
            ids = [1 + sent % 8000, *pool[sent % len(pool)][1:]]
            task = asyncio.create_task(ask(ids))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            sent += 1
        memory.append(_resident_mib(status_of_server))
        await asyncio.sleep(0.05)
    await asyncio.gather(*tasks)
    for connection in free:
        connection.close()
    took = time.perf_counter() - started
    throughput = tokens / took
    settled = len(memory) // 3
    # What waits when one gets in, its own tokens, and two batches: the running one and its own.
    promise = OVERLOAD_QUEUE_TOKENS + 1024 + 2 * batch_tokens
    return {
        "requests_per_second": round(rate, 1),
        "seconds": seconds,
        "answers": dict(sorted(statuses.items())),
        "accepted_p50_seconds": round(statistics.median(accepted), 3),
        "accepted_p99_seconds": round(_p99(accepted), 3),
        # As the service timed them: without the client, which here takes part of the same cores.
        "accepted_p99_seconds_in_service": round(_p99(in_service), 3),
        "promise_seconds": round(promise / throughput, 3),
        # The same promise where the machine's rate is not the same all the time: tokens answered
        # between a request and its answer.
        "accepted_p99_tokens": _p99(tokens_meanwhile),
        "promise_tokens": promise,
        "tokens_per_second": round(throughput),
        "memory_mib": {
            "after_a_third": round(memory[settled], 1),
            "at_the_end": round(memory[-1], 1),
        },
    }


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[int(0.99 * (len(values) - 1))]


def _status_of_server(url: str) -> Path:
    """``/proc/PID/status`` of the process that listens on the URL's port; a child of ours."""
    port = url.rpartition(":")[2].encode()
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            words = (status.parent / "cmdline").read_bytes().split(b"\0")
            if b"service" in words and port in words:
                return status
    raise RuntimeError(f"no process listens on {url}")


def _resident_mib(status: Path) -> float:
    line = next(x for x in status.read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) / 1024
