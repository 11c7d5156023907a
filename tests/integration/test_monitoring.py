"""A real Prometheus scrapes the real service, and its rules are in order."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.checkpoints import tiny_checkpoint

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus"

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        shutil.which("prometheus") is None or shutil.which("promtool") is None,
        reason="needs Prometheus (Debian's package prometheus)",
    ),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def eventually(question: Callable[[], Any], seconds: float = 90) -> Any:
    """Ask until the answer is true; a server that is not up yet counts as no."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if answer := question():
                return answer
        except httpx.TransportError:
            pass
        time.sleep(0.3)
    raise AssertionError("it never came")


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("monitoring")
    service, port = free_port(), free_port()
    config = yaml.safe_load((RULES / "prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"localhost:{service}"]
    shutil.copy(RULES / "rules.yaml", directory)
    (directory / "prometheus.yaml").write_text(yaml.safe_dump(config))
    commands = [
        [sys.executable, "-m", "service", "--model", f"m={tiny_checkpoint(directory / 'm')}",
         "--port", str(service)],
        ["prometheus", f"--config.file={directory / 'prometheus.yaml'}",
         f"--storage.tsdb.path={directory / 'data'}", f"--web.listen-address=127.0.0.1:{port}"],
    ]  # fmt: skip
    processes = [
        subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}) for command in commands
    ]
    try:
        url = f"http://127.0.0.1:{service}"
        eventually(lambda: httpx.get(f"{url}/ready").status_code == 200)
        body = {"items": [{"prompt": "Hi", "responses": ["Bread.", "Cake."]}]}
        assert httpx.post(f"{url}/score", json=body, timeout=30).status_code == 200
        yield f"http://127.0.0.1:{port}"
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def ask(prometheus: str, query: str) -> list[dict[str, Any]]:
    answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": query}).json()
    assert answer["status"] == "success", answer
    found: list[dict[str, Any]] = answer["data"]["result"]
    return found


def test_it_scrapes_the_service(prometheus: str) -> None:
    assert eventually(lambda: [r["value"][1] for r in ask(prometheus, "sumzero_ready")] == ["1"])
    items = eventually(lambda: ask(prometheus, 'sumzero_items_total{model="m"} == 2'))
    assert items[0]["metric"]["job"] == "sumzero"
    assert ask(prometheus, "sumzero_self_test_passed == 1")
    assert ask(prometheus, "process_start_time_seconds{job='sumzero'} > 0")


def test_its_rules_are_read_and_quiet(prometheus: str) -> None:
    def evaluated() -> list[dict[str, Any]]:
        groups = httpx.get(f"{prometheus}/api/v1/rules").json()["data"]["groups"]
        rules: list[dict[str, Any]] = groups[0]["rules"] if groups else []
        return rules if all(rule["health"] == "ok" for rule in rules) else []

    rules = eventually(evaluated)
    assert len(rules) == 6
    assert {rule["state"] for rule in rules} == {"inactive"}


def test_each_alert_fires_on_its_fault_alone() -> None:
    done = subprocess.run(
        ["promtool", "test", "rules", str(RULES / "rules_test.yaml")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
