"""A vLLM server that the run starts and owns, in vLLM's own environment."""

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from reward_model.errors import SumzeroError, UsageError

STOP_SECONDS = 20.0
KILL_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1
_OF_A_LAUNCHER = (
    "RANK", "LOCAL_", "GROUP_", "ROLE_", "WORLD_SIZE", "MASTER_", "TORCHELASTIC_", "ACCELERATE_",
    "FSDP_",
)  # fmt: skip
"""What ``accelerate launch`` tells the learner's ranks: the server has ranks of its own."""


class VllmServer:
    """``python -m vllm.entrypoints.openai.api_server`` on a free local port.

    Its output goes to ``log``. It is its own process group, ended by :meth:`stop`, and asked to end
    by the kernel when we are killed (Linux).
    """

    def __init__(
        self,
        python: Path,
        model: Path,
        log: Path,
        *,
        dtype: str,
        arguments: Sequence[str] = (),
        transfer: str = "directory",
        devices: str | None = None,
    ) -> None:
        if not python.is_file():
            raise UsageError(
                f"generation.python: {python}: no such file; run `make install-vllm`, or set "
                "generation.backend to embedded"
            )
        self.log = log
        self.model = model
        self.port = _free_port()
        self._python = python
        self._arguments = [f"--dtype={dtype}", *arguments]
        self._more_environment: dict[str, str] = {}
        if transfer != "directory":
            config = json.dumps({"backend": transfer})
            self._arguments.append(f"--weight-transfer-config={config}")
        if transfer == "ipc":  # memory handles are pickled; the server listens to this machine only
            self._more_environment["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
        if devices is not None:
            self._more_environment["CUDA_VISIBLE_DEVICES"] = devices
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    async def start(self) -> None:
        """Start the process; it is up when ``/health`` answers."""
        await self.stop()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                process_group=0,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )

    def check(self) -> None:
        """Raise when the process has ended by itself."""
        if self._process is not None and (code := self._process.poll()) is not None:
            raise SumzeroError(
                f"vLLM ended with exit code {code}; see {self.log}: {self._last_error()}"
            )

    async def stop(self) -> None:
        """End the process and everything it started."""
        if self._process is None:
            return
        for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
            self._signal(number)
            if await self._ended(seconds):
                break
        self._signal(signal.SIGKILL)  # workers that outlived the server
        self._process = None

    def _command(self) -> list[str]:
        return [
            str(self._python.absolute()),
            "-m",
            "vllm.entrypoints.openai.api_server",
            f"--model={self.model.resolve()}",
            "--served-model-name=policy",
            "--host=127.0.0.1",
            f"--port={self.port}",
            # Log-probabilities of the distribution that is sampled from, and no narrowing of it.
            "--logprobs-mode=processed_logprobs",
            "--generation-config=vllm",
            *([] if torch.cuda.is_available() else ["--enforce-eager"]),
            *self._arguments,
        ]

    def _environment(self) -> dict[str, str]:
        defaults = {"HF_HUB_OFFLINE": "1"}
        if not torch.cuda.is_available():
            # Even in eager mode vLLM compiles some functions, for which the CPU needs g++.
            defaults |= {"TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
        fixed = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(_OF_A_LAUNCHER)
        }
        return defaults | inherited | fixed | self._more_environment

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    async def _ended(self, seconds: float) -> bool:
        assert self._process is not None
        for _ in range(int(seconds / 0.1)):
            if self._process.poll() is not None:
                return True
            await asyncio.sleep(0.1)
        return False

    def _last_error(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        errors = [line for line in lines if "Error" in line]
        return " ".join((errors or lines or ["no output"])[-1].split())[-300:]


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
