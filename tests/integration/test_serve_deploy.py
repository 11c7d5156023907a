"""``deploy/serve.yaml`` on a real Ray cluster: deployed, updated in place, scaled up and down."""

import asyncio
import contextlib
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from reward_model.model import RewardModel
from tests.checkpoints import tiny_checkpoint
from tests.integration.test_ray_serve import descendants, end, free_port

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
BODY = {"items": [{"prompt": "Where is the Louvre?", "responses": ["In Paris.", "No."]}]}
SECONDS = 300


@dataclass
class Cluster:
    """A Ray cluster of one node, and the file that is deployed to it."""

    directory: Path
    dashboard: str
    url: str
    environment: dict[str, str]
    content: dict[str, Any] = field(default_factory=dict)

    def answers(self) -> bool:
        """Whether the part of the dashboard is up that takes deployments, not only the rest."""
        return self._call("status").returncode == 0

    def deploy(self) -> None:
        file = self.directory / "serve.yaml"
        file.write_text(yaml.safe_dump(self.content))
        self._serve("deploy", str(file))

    def status(self) -> dict[str, Any]:
        # The command prints one document per cluster state; applications are by name.
        answer = yaml.safe_load(self._serve("status"))
        application: dict[str, Any] = answer["applications"]["sumzero"]
        return application

    def running(self, deployment: str) -> int:
        """How many replicas; -1 while one of them is on its way in or out, or none is known yet."""
        states = self.status()["deployments"].get(deployment, {}).get("replica_states", {})
        count: int = states.get("RUNNING", 0)
        return count if set(states) == {"RUNNING"} else -1

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, "it never came"
            time.sleep(1)

    def version(self, name: str) -> str:
        return str(RewardModel.load(self.directory / name).model_version)

    def block(self, deployment: str) -> dict[str, Any]:
        (application,) = self.content["applications"]
        (found,) = (one for one in application["deployments"] if one["name"] == deployment)
        block: dict[str, Any] = found
        return block

    def _call(self, command: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [Path(sys.executable).with_name("serve"), command, *arguments, "-a", self.dashboard],
            cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def _serve(self, command: str, *arguments: str) -> str:
        done = self._call(command, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("deploy")
    ports = [free_port() for _ in range(7)]
    # Ray's sockets lie below it, and their names may not be long.
    temporary = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    environment = os.environ | {
        "RAY_TMPDIR": str(temporary),  # no other Ray of this machine takes this cluster for its own
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    environment.pop("RAY_ADDRESS", None)
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block",
        "--num-cpus=4", f"--object-store-memory={100 << 20}", f"--temp-dir={temporary}",
        f"--port={ports[0]}", f"--dashboard-port={ports[1]}",
        f"--ray-client-server-port={ports[2]}", f"--dashboard-agent-listen-port={ports[3]}",
        f"--dashboard-agent-grpc-port={ports[4]}", f"--metrics-export-port={ports[5]}",
    ]  # fmt: skip
    content = yaml.safe_load((ROOT / "deploy" / "serve.yaml").read_text())
    content["http_options"]["port"] = ports[6]
    (application,) = content["applications"]
    for seed, name in enumerate(("one", "two", "three")):
        tiny_checkpoint(directory / name, "qwen2", seed=seed)
    tiny_checkpoint(directory / "bt", "llama", seed=3)
    application["args"]["model"] = [f"bsr={directory / 'one'}", f"bt={directory / 'bt'}"]
    cluster = Cluster(
        directory,
        f"http://127.0.0.1:{ports[1]}",
        f"http://127.0.0.1:{ports[6]}",
        environment,
        content,
    )
    try:
        with started(cluster, command):
            yield cluster
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def started(cluster: Cluster, command: list[str], tries: int = 3) -> Iterator[None]:
    """Ray gives up its start where a machine is too busy to answer in half a minute; try again."""
    log = cluster.directory / "ray.log"
    for left in reversed(range(tries)):
        with log.open("wb") as file:
            ray = subprocess.Popen(
                command, env=cluster.environment, stdout=file, stderr=subprocess.STDOUT
            )
        try:
            cluster.wait(lambda ray=ray: ray.poll() is not None or cluster.answers())
            if ray.poll() is None:
                yield
                return
            assert left, log.read_text()[-4000:]
        finally:
            processes = descendants(ray.pid)
            ray.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                ray.wait(60)
            ray.kill()
            end(set(processes))


def long_items() -> dict[str, Any]:
    """New ones every time: the cache would answer for old ones, and no token would wait."""
    chosen = random.Random()
    return {"items": [{"token_ids": chosen.choices(range(5, 300), k=1500)} for _ in range(16)]}


@contextlib.asynccontextmanager
async def traffic(
    url: str, clients: int = 3, body: Callable[[], Any] = lambda: BODY
) -> AsyncIterator[list[tuple[int, Any]]]:
    """Requests without a pause and without a second try; yields their statuses and bodies."""
    answers: list[tuple[int, Any]] = []

    async def ask(http: httpx.AsyncClient) -> None:
        while True:
            answer = await http.post(f"{url}/score", json=body())
            answers.append((answer.status_code, answer.json()))
            await asyncio.sleep(0.02)

    async with httpx.AsyncClient(timeout=200) as http:
        tasks = [asyncio.create_task(ask(http)) for _ in range(clients)]
        try:
            yield answers
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(result) for result in results} == {asyncio.CancelledError}, results


def check(answers: list[tuple[int, Any]], *versions: str) -> None:
    """None failed; the versions came one after another, and each gave one set of scores."""
    assert {status for status, _ in answers} == {200}, [a for a in answers if a[0] != 200][:3]
    assert {body["model_version"] for _, body in answers} == set(versions)
    scores = {(b["model_version"], str(b["results"][0]["scores"])) for _, b in answers}
    assert len(scores) == len(versions)


async def asked_until(answers: list[tuple[int, Any]], wanted: str) -> None:
    """Until the last twenty answers are all of that version."""
    async with asyncio.timeout(SECONDS):
        while {body.get("model_version") for _, body in answers[-20:]} != {wanted}:
            await asyncio.sleep(0.5)


def replicas_told(cluster: Cluster, name: str) -> dict[str, set[str]]:
    """Which replicas of which deployment show that metric to whoever scrapes the ingress."""
    text = httpx.get(f"{cluster.url}/metrics", timeout=60).text
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name:
                found.setdefault(sample.labels["deployment"], set()).add(sample.labels["replica"])
    return found


async def wait(cluster: Cluster, condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(cluster.wait, condition)


async def test_first_deployment(cluster: Cluster) -> None:
    cluster.deploy()
    await wait(cluster, lambda: cluster.status()["status"] == "RUNNING")
    answer = httpx.post(f"{cluster.url}/score", json=BODY, timeout=60)
    assert answer.json()["model_version"] == cluster.version("one")


async def test_one_scrape_tells_of_every_replica(cluster: Cluster) -> None:
    told = replicas_told(cluster, "sumzero_self_test_passed")
    assert {name: len(replicas) for name, replicas in told.items()} == {
        "model-bsr": 1,
        "model-bt": 1,
    }
    assert replicas_told(cluster, "sumzero_requests_total").keys() == {"ingress"}
    started = replicas_told(cluster, "process_start_time_seconds")
    assert started.keys() == {"ingress", "model-bsr", "model-bt"}


async def test_a_new_version_in_the_same_replicas(cluster: Cluster) -> None:
    before = replicas_told(cluster, "sumzero_self_test_passed")
    cluster.block("model-bsr")["user_config"] = {"path": str(cluster.directory / "two")}
    async with traffic(cluster.url) as answers:
        await asyncio.to_thread(cluster.deploy)
        await asked_until(answers, cluster.version("two"))
    check(answers, cluster.version("one"), cluster.version("two"))
    assert replicas_told(cluster, "sumzero_self_test_passed") == before


async def test_a_directory_that_is_none_leaves_the_old_version(cluster: Cluster) -> None:
    block = cluster.block("model-bsr")
    good = block["user_config"]
    block["user_config"] = {"path": str(cluster.directory / "no-such-directory")}
    async with traffic(cluster.url) as answers:
        await asyncio.to_thread(cluster.deploy)
        await wait(cluster, lambda: cluster.status()["status"] == "RUNNING")
    block["user_config"] = good
    check(answers, cluster.version("two"))


async def test_more_replicas_under_load_and_fewer_after(cluster: Cluster) -> None:
    block = cluster.block("model-bsr")
    block["autoscaling_config"] |= {"upscale_delay_s": 1, "downscale_delay_s": 5}
    block["autoscaling_config"]["policy"]["policy_kwargs"] = {"tokens_per_replica": 10_000}
    await asyncio.to_thread(cluster.deploy)
    async with traffic(cluster.url, body=long_items) as answers:
        await wait(cluster, lambda: cluster.running("model-bsr") == 2)
        await wait(
            cluster,
            lambda: len(replicas_told(cluster, "sumzero_self_test_passed")["model-bsr"]) == 2,
        )
    assert {status for status, _ in answers} == {200}
    await wait(cluster, lambda: cluster.running("model-bsr") == 1)
    assert httpx.post(f"{cluster.url}/score", json=BODY, timeout=60).status_code == 200


async def test_new_arguments_replace_the_replicas(cluster: Cluster) -> None:
    before = replicas_told(cluster, "sumzero_model_info")
    (application,) = cluster.content["applications"]
    application["args"]["model"][0] = f"bsr={cluster.directory / 'three'}"
    del cluster.block("model-bsr")["user_config"]
    async with traffic(cluster.url) as answers:
        await asyncio.to_thread(cluster.deploy)
        await asked_until(answers, cluster.version("three"))
        await wait(cluster, lambda: cluster.status()["status"] == "RUNNING")
    check(answers, cluster.version("two"), cluster.version("three"))
    after = replicas_told(cluster, "sumzero_model_info")
    assert not after["model-bsr"] <= before["model-bsr"]
