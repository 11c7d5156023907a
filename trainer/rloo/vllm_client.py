"""One or several vLLM servers behind the generator interface, over their own HTTP endpoints.

A version is published when every server confirmed it. A server that went away is waited for, up to
a limit, and gets the current weights again before it writes another sample.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from transformers import PreTrainedTokenizerBase

from reward_model.errors import SumzeroError, UsageError
from trainer.rloo.failures import first_cause
from trainer.rloo.generation import Gate, Sampling, response_text
from trainer.rloo.samples import Sample
from trainer.rloo.vllm_server import VllmServer
from trainer.rloo.weight_sync import check_ready
from trainer.rloo.weight_transfer import Transfer

POLL_SECONDS = 0.5
ATTEMPTS = 5
"""For one prompt, each after the server was seen to be up with the current weights."""


class Unavailable(Exception):  # noqa: N818
    """The server cannot be reached, or does not hold the weights it should."""


class VllmConnection:
    """One server: its requests, its gate and the version it holds.

    Args:
        process: the server where we own it; it is started again when it dies.
        restart_timeout: seconds to wait for a server that went away.
        weights_dir: where the server sees the directory of versions, if not where we do.
        transfer: sends the weights where they do not go by the directory.
    """

    def __init__(
        self,
        url: str,
        sampling: Sampling,
        tokenizer: PreTrainedTokenizerBase,
        *,
        process: VllmServer | None,
        request_timeout: float,
        restart_timeout: float,
        max_in_flight: int,
        weights_dir: str | None,
        transfer: Transfer | None = None,
    ) -> None:
        self.url = url
        self.model = ""
        self.max_model_len = 0
        self._sampling = sampling
        self._tokenizer = tokenizer
        self._process = process
        self._restart_timeout = restart_timeout
        self._weights_dir = weights_dir
        self._transfer = transfer
        self._weights: tuple[Path, int] | None = None
        self._gate = Gate()
        self._recovering = asyncio.Lock()
        self._slots = asyncio.Semaphore(max_in_flight)
        self._http = httpx.AsyncClient(
            base_url=url,
            timeout=httpx.Timeout(request_timeout, connect=10.0),
            limits=httpx.Limits(max_connections=None),
        )

    @property
    def load(self) -> int:
        return self._gate.inside

    async def open(self) -> None:
        """Wait until the server is up and read which model it serves."""
        await self._wait_until_up()
        models = (await self._call("GET", "/v1/models"))["data"]
        self.model, self.max_model_len = models[0]["id"], models[0]["max_model_len"]
        try:
            await self._call("GET", "/weight_info")
        except UsageError:
            raise UsageError(
                f"{self.url}: has no endpoints for weights; start it with VLLM_SERVER_DEV_MODE=1"
            ) from None

    async def generate(self, prompt_ids: Sequence[int], count: int) -> tuple[Sample, ...]:
        failure: Exception | None = None
        for _ in range(ATTEMPTS):
            try:
                async with self._slots, self._gate.entered():
                    return await self._generate(prompt_ids, count)
            except Unavailable as error:
                failure = error
            await self._recover()
        raise SumzeroError(f"generation failed {ATTEMPTS} times over: {failure}") from failure

    async def publish(self, path: Path, version: int) -> None:
        async with self._gate.closed():
            self._weights = (path, version)
            if self._process is not None:
                self._process.model = path  # what it starts with if it dies: older ones are removed
            try:
                await self._load_weights()
                return
            except Unavailable:
                pass
        await self._recover()

    async def aclose(self) -> None:
        if self._transfer is not None:
            self._transfer.forget()
        await self._http.aclose()

    async def _generate(self, prompt_ids: Sequence[int], count: int) -> tuple[Sample, ...]:
        version = -1 if self._weights is None else self._weights[1]
        body = {
            "model": self.model,
            "prompt": list(prompt_ids),
            "n": count,
            "max_tokens": self._sampling.max_new_tokens,
            "temperature": self._sampling.temperature,
            "stop_token_ids": list(self._sampling.stop_token_ids),
            "logprobs": 0,
            "return_token_ids": True,
            # Said outright, so that no default of the server narrows the distribution.
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        }
        reply = await self._call("POST", "/v1/completions", json=body)
        # A server that was restarted in between answers with the weights it was started with.
        await self._check_version()
        choices = sorted(reply["choices"], key=lambda choice: choice["index"])
        if any(choice["finish_reason"] not in ("stop", "length") for choice in choices):
            raise Unavailable(f"{self.url}: somebody aborted a request")
        return tuple(self._sample(choice, version) for choice in choices)

    def _sample(self, choice: dict[str, Any], version: int) -> Sample:
        token_ids, ended = tuple(choice["token_ids"]), choice["finish_reason"] == "stop"
        return Sample(
            token_ids=token_ids,
            logprobs=tuple(choice["logprobs"]["token_logprobs"]),
            ended=ended,
            version=version,
            text=response_text(self._tokenizer, token_ids, ended),
        )

    async def _check_version(self) -> None:
        if self._weights is not None:
            held = (await self._call("GET", "/weight_info"))["weight_version"]
            if held != str(self._weights[1]):
                raise Unavailable(f"{self.url} holds weights {held}, not {self._weights[1]}")

    async def _load_weights(self) -> None:
        assert self._weights is not None
        path, version = self._weights
        await self._call("POST", "/pause", params={"mode": "wait"})
        try:
            await (self._reload(path) if self._transfer is None else self._receive())
            await self._call("POST", "/reset_prefix_cache")
            await self._call("POST", "/update_weight_version", json={"new_version": str(version)})
            await self._check_version()
        finally:
            await self._call("POST", "/resume")

    async def _reload(self, path: Path) -> None:
        seen = (
            str(path.resolve()) if self._weights_dir is None else f"{self._weights_dir}/{path.name}"
        )
        reload = {"method": "reload_weights", "kwargs": {"weights_path": seen}}
        await self._call("POST", "/collective_rpc", json=reload)

    async def _receive(self) -> None:
        assert self._transfer is not None
        try:
            await self._transfer.send(self._call)
        except BaseException as error:
            self._transfer.forget()
            cause = first_cause(error)
            if isinstance(cause, Unavailable | TimeoutError):
                raise Unavailable(f"{self.url}: weights did not arrive: {cause!r}") from error
            raise

    async def _recover(self) -> None:
        """Wait for the server to be back with the current weights; one caller does it for all."""
        async with self._recovering, self._gate.closed():
            try:
                async with asyncio.timeout(self._restart_timeout):
                    await self._wait_until_current()
            except TimeoutError:
                raise SumzeroError(
                    f"{self.url}: vLLM has been gone for {self._restart_timeout:.0f} s"
                    f"{'' if self._process is None else f', see {self._process.log}'}"
                ) from None

    async def _wait_until_current(self) -> None:
        while True:
            try:
                await self._wait_until_up()
                try:
                    await self._check_version()
                except Unavailable:
                    await self._load_weights()
                return
            except Unavailable:
                await asyncio.sleep(POLL_SECONDS)

    async def _wait_until_up(self) -> None:
        started = False
        try:
            async with asyncio.timeout(self._restart_timeout):
                while not await self._healthy():
                    if self._process is not None and not self._process.alive:
                        if started:
                            self._process.check()
                        await self._process.start()
                        started = True
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            raise SumzeroError(
                f"{self.url}: no vLLM server answered within {self._restart_timeout:.0f} s"
            ) from None

    async def _healthy(self) -> bool:
        try:
            return (await self._http.get("/health", timeout=5.0)).status_code == 200
        except httpx.TransportError:
            return False

    async def _call(self, method: str, path: str, **arguments: Any) -> Any:
        """One request. Raises Unavailable where another try may help, UsageError where not."""
        try:
            response = await self._http.request(method, path, **arguments)
        except httpx.TransportError as error:
            raise Unavailable(f"{self.url}{path}: {type(error).__name__}") from error
        if response.status_code >= 500:
            raise Unavailable(f"{self.url}{path}: {response.status_code}")
        if response.status_code >= 400:
            raise UsageError(f"{self.url}{path}: {response.status_code} {response.text[:300]}")
        return response.json() if response.content else None


class VllmGenerator:
    """Spreads prompts over servers, the least busy first, and publishes to all of them.

    Args:
        by_directory: whether the weights of a version are in its directory.
    """

    def __init__(self, connections: Sequence[VllmConnection], *, by_directory: bool = True) -> None:
        self.connections = tuple(connections)
        self._by_directory = by_directory
        self.version = -1

    async def generate(
        self, prompt_ids: Sequence[int], count: int, *, seed: int
    ) -> tuple[Sample, ...]:
        # The seed stays here. vLLM's CPU engine dies when the prompt of a seeded request is read in
        # two pieces (0.32: "CPU Generator does not use offset"), and draws seeded ones one by one.
        connection = min(self.connections, key=lambda one: one.load)
        return await connection.generate(prompt_ids, count)

    async def publish(self, path: Path, version: int) -> None:
        if self._by_directory:
            check_ready(path, version)
        async with asyncio.TaskGroup() as tasks:
            for connection in self.connections:
                tasks.create_task(connection.publish(path, version))
        self.version = version

    async def aclose(self) -> None:
        for connection in self.connections:
            await connection.aclose()
