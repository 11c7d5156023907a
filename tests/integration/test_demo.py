"""``python -m trainer.demo --scale ci`` as a newcomer runs it: interrupted, resumed, run again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer.demo.cells import CELLS
from trainer.metrics import read_metrics

pytestmark = [pytest.mark.integration, pytest.mark.timeout(3600)]


def start(directory: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "trainer.demo", "--scale", "ci"),
            *("--backend", "embedded", "--output_dir", str(directory)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "SUMZERO_DEBUG"},
    )


def processes_naming(directory: Path) -> list[str]:
    """Command lines of running processes that name ``directory``, other than this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(directory) in line and int(path.parent.name) != os.getpid():
            found.append(line)
    return found


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.1)


def test_interrupted_resumed_and_run_again(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    first = start(root)
    wait_for(root / "reward" / "bt" / "metrics.jsonl", first)
    first.send_signal(signal.SIGINT)
    output, _ = first.communicate(timeout=120)
    assert first.returncode == 130, output
    assert output.strip().splitlines()[-1] == "python -m trainer.demo: interrupted"
    assert processes_naming(root) == []
    assert not (root / "report.html").exists()

    second = start(root)
    output, _ = second.communicate()
    assert second.returncode == 0, output
    assert "sft: done before" in output
    assert processes_naming(root) == []
    check_outcome(root, output)

    before = (root / "reward" / "bsr" / "model" / "model.safetensors").stat().st_mtime_ns
    third = start(root)
    output, _ = third.communicate(timeout=120)
    assert third.returncode == 0, output
    assert output.count("done before") == 5
    assert (root / "reward" / "bsr" / "model" / "model.safetensors").stat().st_mtime_ns == before


def check_outcome(root: Path, output: str) -> None:
    for cell in CELLS:
        assert f"accuracy, {cell.replace('_', ' ')}" in output
    page = (root / "report.html").read_text()
    assert page.count("data:image/png") == 9
    for loss in ("bt", "bsr"):
        results = json.loads((root / "evaluation" / loss / "results.json").read_text())
        assert results["sets"]["in_domain"]["accuracy"]["estimate"]["value"] > 0.55
        contract = json.loads((root / "reward" / loss / "model" / "reward_model.json").read_text())
        assert contract["loss"]["name"] == {"bt": "bt", "bsr": "bt_bsr"}[loss]
        assert contract["model_version"] == results["model_version"]
        assert (root / "rloo" / loss / "policy" / "config.json").is_file()
        lines = read_metrics(root / "rloo" / loss)
        heldout = [line for line in lines if "heldout/raw/gold" in line]
        assert heldout[-1]["heldout/reward"] > heldout[0]["heldout/reward"]
