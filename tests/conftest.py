"""Fixtures and the conditions under which marked tests are skipped, loudly."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

# Read when Triton is imported: without a GPU its kernels are tested in its interpreter.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
VLLM_PYTHON = ROOT / ".venv-vllm" / "bin" / "python"

_REQUIREMENTS = {
    "gpu": (torch.cuda.is_available, "no CUDA device"),
    "vllm": (VLLM_PYTHON.exists, "vLLM is not installed (make install-vllm)"),
    "shared": (SHARED.is_dir, f"no {SHARED.name} folder beside the project"),
    "docker": (lambda: shutil.which("docker") is not None, "no docker command"),
}


def pytest_configure() -> None:
    """Let the processes that tests start hear SIGINT: a shell's background jobs ignore it, and
    what they start inherits that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests/integration, and skip what this machine lacks."""
    for item in items:
        if "integration" in item.path.parts:
            item.add_marker("integration")
        for marker, (present, reason) in _REQUIREMENTS.items():
            if item.get_closest_marker(marker) and not present():
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data; for tests with the marker ``shared``."""
    return SHARED
