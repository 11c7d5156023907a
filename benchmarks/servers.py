"""The servers that benchmarks ask, each a process of its own on a free port, and what asks them."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from benchmarks.connection import Connection

CLIENTS = 64
VLLM_PYTHON = Path(__file__).parents[1] / ".venv-vllm" / "bin" / "python"
VLLM_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}

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
        *("--enforce-eager", "--host", "127.0.0.1"),
    ]
    return server(command, "/health", VLLM_ENVIRONMENT)


class Load:
    """Requests from many clients at once, on one event loop for the whole benchmark."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()

    def send(self, url: str, body: Body, requests: Sequence[Sequences]) -> None:
        """All ``requests``, from 64 clients of which each has one in flight.

        Raises:
            RuntimeError: an answer is not 200.
        """
        self.loop.run_until_complete(self._send(url, body, requests))

    async def _send(self, url: str, body: Body, requests: Sequence[Sequences]) -> None:
        waiting = iter(requests)

        async def keep_asking() -> None:
            connection = await Connection.open(url)
            try:
                for sequences in waiting:
                    status, content = await connection.post(*body(sequences))
                    if status != 200:
                        raise RuntimeError(f"{url} answered {status}: {content[:200]!r}")
            finally:
                connection.close()

        await asyncio.gather(*(keep_asking() for _ in requests[:CLIENTS]))
