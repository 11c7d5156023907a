"""``python -m service`` as a process: how it starts, scores, and ends."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from reward_model.model import RewardModel
from reward_model.scoring import score_token_ids
from service.client import RewardClient
from tests.certificates import needs_openssl, self_signed
from tests.checkpoints import tiny_checkpoint

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

START_SECONDS = 240
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
TEXTS = ["", " once", " upon a time" * 9, " there was bread" * 40, " x" * 200, " the end."]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "service", *map(str, arguments)]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        env=ENVIRONMENT,
        check=False,
    )


class Service:
    """A running service and what it logged."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._ready = threading.Event()
        self.url = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._ready.wait(START_SECONDS), "\n".join(self.lines)
        assert self.url, "\n".join(self.lines)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if '"message": "ready"' in line:
                self.url = f"http://127.0.0.1:{json.loads(line)['port']}"
                self._ready.set()
        self._ready.set()

    def end(self, with_signal: int = signal.SIGTERM) -> int:
        self.process.send_signal(with_signal)
        code = self.process.wait(60)
        self._reader.join(10)
        return code


@contextmanager
def running(*arguments: object) -> Iterator[Service]:
    process = subprocess.Popen(
        command("--port", 0, "--log_format", "json", *arguments),
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    try:
        yield Service(process)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: tiny_checkpoint(root / name, name) for name in ("qwen2", "gemma2", "bert")}


@pytest.fixture(scope="module")
def service(checkpoints: dict[str, Path]) -> Iterator[Service]:
    with running("--model", *(f"{name}={path}" for name, path in checkpoints.items())) as service:
        yield service


def one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if "WARNING" not in line]
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0]


def test_a_busy_port_is_one_line_and_exit_code_2(checkpoints: dict[str, Path]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        one_line(run("--model", checkpoints["qwen2"], "--port", port), str(port), "--port")


def test_a_missing_directory_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    one_line(run("--model", tmp_path / "nothing", "--port", 0), "nothing", "config.json")


def test_a_checkpoint_without_a_reward_head_is_refused(tmp_path: Path) -> None:
    for task in ("causal", "backbone"):
        path = tiny_checkpoint(tmp_path / task, "qwen2", task)  # type: ignore[arg-type]
        one_line(run("--model", path, "--port", 0), task, "reward head")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("model", "required")),
        (("--model", "a", "--colour", "red"), ("--colour",)),
        (("--model", "a", "--port", "many"), ("port",)),
        (("--config", "nothing.yaml"), ("nothing.yaml",)),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    one_line(run(*arguments), *words)


@pytest.mark.parametrize("name", ["qwen2", "gemma2", "bert"])
def test_scores_are_those_of_the_model_and_of_transformers(
    service: Service, checkpoints: dict[str, Path], name: str
) -> None:
    model = RewardModel.load(checkpoints[name])
    sequences = [model.encoder.text(f"bread{text}").token_ids for text in TEXTS]
    items = [{"token_ids": list(ids)} for ids in sequences]
    body = {"model": name, "items": items}
    answer = httpx.post(f"{service.url}/score", json=body, timeout=60).json()
    served = [result["scores"][0] for result in answer["results"]]
    direct = [score_token_ids(model, [ids], share_prefix=False)[0] for ids in sequences]
    assert served == direct
    # The soft cap of Gemma-2 exists in transformers' eager attention only.
    plain = AutoModelForSequenceClassification.from_pretrained(
        checkpoints[name], attn_implementation="eager"
    )
    with torch.inference_mode():
        wanted = [plain(torch.tensor([ids])).logits.item() for ids in sequences]
    assert served == pytest.approx(wanted, abs=1e-5)
    assert len(set(served)) == len(TEXTS)


def test_messages_score_as_transformers_reads_them(
    service: Service, checkpoints: dict[str, Path]
) -> None:
    path = checkpoints["qwen2"]
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Bread."}]
    tokenizer = AutoTokenizer.from_pretrained(path)
    ids = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    plain = AutoModelForSequenceClassification.from_pretrained(path)
    with torch.inference_mode():
        wanted = plain(torch.tensor([ids])).logits.item()
    body = {"items": [{"messages": messages}, {"prompt": "Hi", "responses": ["Bread."]}]}
    answer = httpx.post(f"{service.url}/score", json=body, timeout=60).json()
    assert [r["scores"][0] for r in answer["results"]] == pytest.approx([wanted] * 2, abs=1e-5)


def test_the_log_holds_no_text_no_query_string_and_no_traceback(service: Service) -> None:
    httpx.post(f"{service.url}/get_reward?token=hidden", json={"query": ["private words"]})
    httpx.post(f"{service.url}/score", json={"items": [{"text": "private words"}]}, timeout=60)
    log = "".join(service.lines)
    assert "/get_reward" in log
    assert not any(word in log for word in ("private", "hidden", "Traceback"))


def test_sigterm_under_load_loses_nothing(checkpoints: dict[str, Path]) -> None:
    """Every request that got in is answered; the rest hear so in words and can go elsewhere."""
    with running("--model", checkpoints["qwen2"], "--cache_mib", 0) as service:
        outcomes = asyncio.run(_load_while_ending(service))
        assert service.process.wait(60) == 0
    answered = [status for status in outcomes if status == 200]
    turned_away = [status for status in outcomes if status in (503, "refused")]
    assert len(answered) > 20
    assert len(answered) + len(turned_away) == len(outcomes), outcomes
    assert len(turned_away) > 0


async def _load_while_ending(service: Service) -> list[int | str]:
    outcomes: list[int | str] = []
    ended = time.monotonic() + 3

    async def ask_until_turned_away(worker: int, http: httpx.AsyncClient) -> None:
        number = 0
        while not outcomes or outcomes[-1] == 200 or time.monotonic() < ended:
            number += 1
            items = [{"token_ids": [worker, number % 300, *range(3, 200 + k)]} for k in range(8)]
            try:
                response = await http.post("/score", json={"items": items}, timeout=60)
            except httpx.ConnectError:
                outcomes.append("refused")
                return
            if response.status_code == 200:
                scores = [r["scores"][0] for r in response.json()["results"]]
                assert all(isinstance(score, float) for score in scores)
            outcomes.append(response.status_code)
            if response.status_code == 503:
                return

    async with httpx.AsyncClient(base_url=service.url) as http:
        workers = [asyncio.create_task(ask_until_turned_away(n, http)) for n in range(16)]
        await asyncio.sleep(2)
        service.process.send_signal(signal.SIGTERM)
        await asyncio.gather(*workers)
    return outcomes


def test_a_client_outlives_a_rolling_restart(checkpoints: dict[str, Path]) -> None:
    """Two servers, one ended under load: every score arrives, with the bits of a quiet server."""
    items = [{"token_ids": [n % 300, *range(3, 100)]} for n in range(300)]
    path = checkpoints["qwen2"]
    with running("--model", path) as first, running("--model", path) as second:
        client = RewardClient([first.url, second.url], timeout=60)

        async def ask() -> list[float | None]:
            tasks = [asyncio.create_task(client.score([item])) for item in items]
            await asyncio.sleep(0.3)
            first.process.send_signal(signal.SIGTERM)
            results = [(await task)[0].scores[0] for task in tasks]
            await client.aclose()
            return results

        scores = asyncio.run(ask())
        assert first.process.wait(60) == 0
    model = RewardModel.load(path)
    sequences: list[Any] = [item["token_ids"] for item in items]
    assert scores == score_token_ids(model, sequences)


@needs_openssl
def test_https_with_a_certificate_of_ones_own(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = self_signed(tmp_path)
    files = ("--ssl_certfile", certificate, "--ssl_keyfile", key)
    with running("--model", checkpoints["qwen2"], *files) as service:
        url = service.url.replace("http:", "https:")
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{url}/ready")
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(f"{service.url}/ready")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        client = RewardClient(url)
        [[score]] = client.score_groups_sync(["Where is the Louvre?"], [["In Paris."]])
        client.close()
        model = RewardModel.load(checkpoints["qwen2"])
        ids = model.encoder.prompt_response("Where is the Louvre?", "In Paris.").token_ids
        assert [score] == score_token_ids(model, [ids])
        assert service.end() == 0
    log = "".join(service.lines)
    assert "Traceback" not in log


def test_ctrl_c_is_130(checkpoints: dict[str, Path]) -> None:
    with running("--model", checkpoints["qwen2"]) as service:
        assert service.end(signal.SIGINT) == 130
        assert "Traceback" not in "".join(service.lines)
