"""A real Prometheus scrapes the real service; rules and the dashboard's queries are in order."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from reward_model.contract import RewardStats
from reward_model.model import RewardModel
from tests.checkpoints import tiny_checkpoint

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus"
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "dashboards" / "sumzero.json").read_text())
KEY = "a-key-that-prometheus-does-not-have"

pytestmark = [
    pytest.mark.integration,
    pytest.mark.smoke,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        shutil.which("prometheus") is None or shutil.which("promtool") is None,
        reason="needs Prometheus (make install-system)",
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


def checkpoint_with_statistics(directory: Path) -> Path:
    """Statistics make the service follow the drift of the scores."""
    path = tiny_checkpoint(directory)
    contract = RewardModel.load(path).contract
    stats = RewardStats(mean=0.0, std=1.0, n=100, split="validation")
    contract.model_copy(update={"stats": stats}).write(path)
    return path


def send_traffic(url: str) -> None:
    """New scores, the same ones from the cache, and one that is null."""
    body = {"items": [{"prompt": f"Hi, {time.monotonic()}", "responses": ["Bread.", "Cake."]}]}
    too_long = {"items": [{"token_ids": [5] * 5000}]}
    for sent in (body, body, too_long):
        answer = httpx.post(
            f"{url}/score", json=sent, timeout=30, headers={"Authorization": f"Bearer {KEY}"}
        )
        assert answer.status_code == 200, answer.text


@dataclass(frozen=True)
class Watched:
    """A service with a port for its metrics, and the Prometheus that scrapes it."""

    service: str
    prometheus: str


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    directory = tmp_path_factory.mktemp("monitoring")
    service, metrics, port = free_port(), free_port(), free_port()
    config = yaml.safe_load((RULES / "compose.yaml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"localhost:{metrics}"]
    shutil.copy(RULES / "rules.yaml", directory)
    (directory / "prometheus.yaml").write_text(yaml.safe_dump(config))
    model = checkpoint_with_statistics(directory / "m")
    commands = [
        [sys.executable, "-m", "service", "--model", f"m={model}",
         "--port", str(service), "--metrics_port", str(metrics)],
        ["prometheus", f"--config.file={directory / 'prometheus.yaml'}",
         f"--storage.tsdb.path={directory / 'data'}", f"--web.listen-address=127.0.0.1:{port}"],
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "SUMZERO_API_KEYS": KEY}
    processes = [subprocess.Popen(command, env=environment) for command in commands]
    try:
        url = f"http://127.0.0.1:{service}"
        eventually(lambda: httpx.get(f"{url}/ready").status_code == 200)
        watched = Watched(url, f"http://127.0.0.1:{port}")
        eventually(lambda: ask(watched.prometheus, 'sumzero_ready{job="sumzero"} == 1'))
        send_traffic(url)
        yield watched
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0


@pytest.fixture(scope="module")
def prometheus(watched: Watched) -> str:
    return watched.prometheus


def ask(prometheus: str, query: str) -> list[dict[str, Any]]:
    answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": query}).json()
    assert answer["status"] == "success", answer
    found: list[dict[str, Any]] = answer["data"]["result"]
    return found


def test_it_scrapes_the_service(prometheus: str) -> None:
    assert eventually(lambda: [r["value"][1] for r in ask(prometheus, "sumzero_ready")] == ["1"])
    items = eventually(lambda: ask(prometheus, 'sumzero_items_total{model="m"} >= 5'))
    assert items[0]["metric"]["job"] == "sumzero"
    assert ask(prometheus, "sumzero_self_test_passed == 1")
    assert ask(prometheus, "process_start_time_seconds{job='sumzero'} > 0")


def test_metrics_have_a_port_of_their_own(watched: Watched) -> None:
    key = {"Authorization": f"Bearer {KEY}"}
    assert httpx.get(f"{watched.service}/metrics", headers=key).status_code == 404
    assert httpx.get(f"{watched.service}/v1/models").status_code == 401


def queries() -> Iterator[tuple[str, str]]:
    """The title of the panel and the expression, with Grafana's variables filled in."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"].replace("$__rate_interval", "1m").replace("$model", ".*")
            assert "$" not in query
            yield panel["title"], query


def test_every_query_of_the_dashboard_finds_what_was_sent(watched: Watched) -> None:
    def finds(query: str) -> bool:
        send_traffic(watched.service)  # rates need counters that move
        found = ask(watched.prometheus, query)
        return bool(found) and all(row["value"][1] != "NaN" for row in found)

    asked = dict(queries())
    assert len(asked) > 20
    for title, query in queries():
        try:
            eventually(lambda query=query: finds(query), seconds=30)
        except AssertionError:
            pytest.fail(f"{title}: {query} finds {ask(watched.prometheus, query)}")


def test_the_dashboard_lists_the_models(prometheus: str) -> None:
    (variable,) = DASHBOARD["templating"]["list"]
    metric, label = variable["definition"].removeprefix("label_values(").rstrip(")").split(", ")
    path = f"{prometheus}/api/v1/label/{label}/values"
    assert httpx.get(path, params={"match[]": metric}).json()["data"] == ["m"]


def test_its_rules_are_read_and_quiet(prometheus: str) -> None:
    def evaluated() -> list[dict[str, Any]]:
        groups = httpx.get(f"{prometheus}/api/v1/rules").json()["data"]["groups"]
        rules: list[dict[str, Any]] = groups[0]["rules"] if groups else []
        return rules if all(rule["health"] == "ok" for rule in rules) else []

    rules = eventually(evaluated)
    assert len(rules) == 7
    assert {rule["state"] for rule in rules} == {"inactive"}


def test_each_alert_fires_on_its_fault_alone() -> None:
    done = subprocess.run(
        ["promtool", "test", "rules", str(RULES / "rules_test.yaml")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
