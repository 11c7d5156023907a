"""``python -m service --ray`` as its users run it: a process of its own, real Ray, real HTTP."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from reward_model.model import RewardModel
from reward_model.scoring import score_token_ids
from service.client import RewardClient
from tests.adapters import tiny_adapter
from tests.checkpoints import tiny_checkpoint

pytestmark = [pytest.mark.integration, pytest.mark.smoke, pytest.mark.timeout(600)]

PROMPTS = [f"Question {index}: what is {index} times seven?" for index in range(6)]
RESPONSES = ["It is a number.", "Seven times as much, which one can work out by adding.", "No."]


@dataclass(frozen=True)
class Running:
    url: str
    process: subprocess.Popen[bytes]
    models: dict[str, Path]
    log: Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-4000:]
        try:
            if httpx.get(f"{url}/ready", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    pytest.fail(f"not ready: {log.read_text()[-4000:]}")


def descendants(pid: int) -> dict[int, str]:
    """Every process below ``pid``, with its title."""
    parents: dict[int, int] = {}
    titles: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            status = (entry / "stat").read_text().rpartition(")")[2].split()
            parents[int(entry.name)] = int(status[1])
            titles[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
    found: set[int] = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return {child: titles[child] for child in found - {pid}}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("ray")
    models = {
        "bsr": tiny_checkpoint(directory / "bsr", "qwen2", "reward", seed=1),
        "bt": tiny_checkpoint(directory / "bt", "llama", "reward", seed=2),
    }
    models["lora"] = tiny_adapter(directory / "lora", models["bsr"])
    url = f"http://127.0.0.1:{free_port()}"
    log = directory / "log"
    command = [sys.executable, "-m", "service", "--ray", "--port", url.rpartition(":")[2]]
    for name, path in models.items():
        command += ["--model", f"{name}={path}"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    try:
        wait_ready(url, process, log)
        yield Running(url, process, models, log)
    finally:
        started = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        code = process.wait(120)
        left_over = end(set(started))
    assert code == 0, log.read_text()[-4000:]
    assert not left_over, "processes of Ray are left over"


def end(alive: set[int]) -> set[int]:
    """Give the processes a minute to end by themselves; kill and return those that did not."""
    deadline = time.monotonic() + 60
    while alive and time.monotonic() < deadline:
        alive = {pid for pid in alive if _runs(pid)}
        time.sleep(0.2)
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
    return alive


def _runs(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


def direct_scores(path: Path) -> list[list[float]]:
    """Every response scored alone, in this process."""
    model = RewardModel.load(path)
    return [
        [
            score_token_ids(model, [model.encoder.prompt_response(prompt, response).token_ids])[0]
            for response in RESPONSES
        ]
        for prompt in PROMPTS
    ]


@pytest.mark.parametrize("name", ["bsr", "bt", "lora"])
async def test_scores_equal_those_of_the_model_bit_for_bit(running: Running, name: str) -> None:
    async with RewardClient(running.url, model=name) as client:
        scores = await client.score_groups(PROMPTS, [RESPONSES] * len(PROMPTS))
    assert scores == direct_scores(running.models[name])


def test_models_stand_side_by_side(running: Running) -> None:
    listed = httpx.get(f"{running.url}/v1/models", timeout=30).json()["data"]
    assert [model["id"] for model in listed] == ["bsr", "bt", "lora"]
    versions = {model["id"]: model["version"] for model in listed}
    assert versions["bsr"] != versions["bt"]
    item = {"prompt": PROMPTS[0], "responses": RESPONSES}
    for name, version in versions.items():
        body = {"model": name, "items": [item]}
        answer = httpx.post(f"{running.url}/score", json=body, timeout=60).json()
        assert answer["model_version"] == version


def test_errors_are_those_of_the_embedded_service(running: Running) -> None:
    unknown = httpx.post(
        f"{running.url}/score", json={"model": "other", "items": [{"text": "a"}]}, timeout=30
    )
    assert unknown.status_code == 404
    assert unknown.json()["error"]["details"]["models"] == ["bsr", "bt", "lora"]
    late = {"items": [{"token_ids": [5] * 2000}] * 50, "timeout_ms": 1}
    answer = httpx.post(f"{running.url}/score", json=late, timeout=60)
    assert answer.status_code == 504
    assert answer.json()["error"]["type"] == "deadline_passed"


def test_the_page_finds_the_queue_of_every_model(running: Running) -> None:
    """What it sums is posted by the model replicas, every few seconds."""
    page = httpx.get(running.url, timeout=30).text
    assert 'series(text, "sumzero_queue_tokens")' in page
    deadline = time.monotonic() + 60
    missing = set(running.models)
    while missing:
        assert time.monotonic() < deadline, missing
        lines = httpx.get(f"{running.url}/metrics", timeout=30).text.splitlines()
        queues = [line for line in lines if line.startswith("sumzero_queue_tokens{")]
        missing = {name for name in missing if not any(f'model="{name}"' in q for q in queues)}
        time.sleep(0.5)


async def test_a_running_forward_does_not_delay_health(running: Running) -> None:
    long_items = [{"token_ids": [5 + index % 50] * (1300 + index)} for index in range(200)]
    meanwhile = []
    async with httpx.AsyncClient(base_url=running.url, timeout=300) as client:
        scoring = asyncio.create_task(client.post("/score", json={"items": long_items}))
        await asyncio.sleep(0.1)
        while not scoring.done():
            ready = await client.get("/ready")
            if not scoring.done():
                meanwhile.append(ready.status_code)
        answer = await scoring
    assert answer.status_code == 200
    # One that waited for the forward would come after it.
    assert len(meanwhile) >= 5, "the forward was over before health was asked, or held it up"
    assert set(meanwhile) == {200}


async def test_a_killed_replica_loses_no_request(running: Running) -> None:
    expected = direct_scores(running.models["bsr"])

    async def score_all(client: RewardClient) -> None:
        for _ in range(4):
            got = await client.score_groups(PROMPTS, [RESPONSES] * len(PROMPTS))
            assert got == expected

    replicas = [
        pid
        for pid, title in descendants(running.process.pid).items()
        if "ServeReplica:sumzero:model-bsr" in title
    ]
    assert len(replicas) == 1
    async with RewardClient(running.url, model="bsr", timeout=240) as client:
        load = [asyncio.create_task(score_all(client)) for _ in range(6)]
        await asyncio.sleep(0.2)
        os.kill(replicas[0], signal.SIGKILL)
        await asyncio.gather(*load)
        # The loop above may have ended before the replica did: the next ones meet its successor.
        await score_all(client)
    assert not _runs(replicas[0])


def test_no_user_text_in_the_log(running: Running) -> None:
    marker = "a-word-that-only-this-user-says"
    body = {"items": [{"prompt": marker, "responses": [marker]}]}
    for path in (f"/score?token={marker}", f"/get_reward?token={marker}"):
        httpx.post(f"{running.url}{path}", json=body, timeout=60)
    log = running.log.read_text(errors="replace")
    assert "model loaded" in log
    assert marker not in log


def test_a_busy_port_is_one_clear_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "service", "--ray", "--model", str(tmp_path)]
        done = subprocess.run(
            [*command, "--port", port], capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert port in done.stderr
