"""A client for ``POST /score`` that outlives restarts of the server and does not stampede.

Retried until a deadline, with full jitter: connection errors, 429 (honouring ``Retry-After``), 502,
503 and 504. Never retried: any other 4xx. Several URLs share the load and stand in for each other.
A failed item is ``None`` with a reason, never a number. Importing this module pulls in no web
framework and no torch.
"""

import asyncio
import random
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar
from weakref import WeakKeyDictionary

import httpx

from service.url import checked_url

T = TypeVar("T")
Json = dict[str, Any]
Prompt = str | Sequence[Mapping[str, str]]

RETRIED = frozenset({429, 502, 503, 504})
BACKOFF_SECONDS = 0.25
MAX_BACKOFF_SECONDS = 15.0
CONNECT_SECONDS = 10.0
SCORES_PER_REQUEST = 64
"""Large calls are cut into requests of about so many scores, to be spread over the URLs."""


class RewardError(Exception):
    """No scores. ``status`` and ``type`` are the server's last words, where it had any."""

    def __init__(self, message: str, status: int | None = None, type: str | None = None) -> None:
        super().__init__(message, status, type)
        self.message, self.status, self.type = message, status, type

    def __str__(self) -> str:
        return self.message


class RequestRefused(RewardError):  # noqa: N818
    """The server will never take this request: asking again would change nothing."""


class RewardTimeout(RewardError):  # noqa: N818
    """The deadline passed; ``message`` tells what the last attempt met."""


@dataclass(frozen=True, slots=True)
class ItemScores:
    """The scores of one item: one per response, or one for the other forms of an item."""

    scores: list[float | None]
    errors: list[dict[str, str] | None]
    num_tokens: list[int]
    model_version: str


@dataclass(slots=True)
class _Replica:
    """One URL: how busy we keep it, and until when it is left alone."""

    url: str
    in_flight: int = 0
    rests_until: float = 0.0
    failures: int = 0
    """In a row."""

    def succeeded(self) -> None:
        self.rests_until, self.failures = 0.0, 0

    def failed(self, retry_after: float) -> None:
        self.failures += 1
        self.rests_until = time.monotonic() + _pause(retry_after, self.failures)

    def is_rested(self) -> bool:
        return self.rests_until <= time.monotonic()

    def reluctance(self) -> tuple[float, int]:
        """Lowest for the URL to ask next: a rested one that is least busy."""
        return (0.0 if self.is_rested() else self.rests_until, self.in_flight)


@dataclass(frozen=True, slots=True)
class _Failure:
    """What one attempt met, and how long the server asks to be left alone."""

    reason: str
    status: int | None = None
    type: str | None = None
    retry_after: float = 0.0


@dataclass(frozen=True, slots=True)
class _Connections:
    """What belongs to one event loop."""

    http: httpx.AsyncClient
    slots: asyncio.Semaphore


class RewardClient:
    """Scores over HTTP.

    Args:
        urls: one base URL of the service, or several of equals.
        model: name of the served model; the server's default otherwise.
        api_key: sent as ``Authorization: Bearer``.
        timeout: seconds until a request is given up, all its attempts together.
        max_in_flight: requests under way at once, per event loop.

    Picklable, and usable from several event loops and threads; each loop has its own connections.

    Raises:
        ValueError: no URL, or one that is no address of a server.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 180.0,
        max_in_flight: int = 32,
    ) -> None:
        self.urls = [checked_url(url) for url in ([urls] if isinstance(urls, str) else urls)]
        if not self.urls:
            raise ValueError("RewardClient needs at least one URL")
        self.model = model
        self.api_key = api_key
        self.timeout = timeout
        self.max_in_flight = max_in_flight
        self._reset()

    async def score(
        self,
        items: Sequence[Mapping[str, Any]],
        *,
        truncation: str = "error",
        normalize: bool = False,
    ) -> list[ItemScores]:
        """Score items in the forms of ``POST /score``; one result per item, in order.

        Raises:
            RequestRefused: a 4xx other than 429; nothing was retried.
            RewardTimeout: no answer within ``timeout`` seconds.
            RewardError: a fault of the server (500).
        """
        options = {"truncation": truncation, "normalize": normalize}
        tasks = [asyncio.create_task(self._score_some(part, options)) for part in _parts(items)]
        try:
            return [scores for part in await asyncio.gather(*tasks) for scores in part]
        finally:
            for task in tasks:
                task.cancel()

    async def score_groups(
        self, prompts: Sequence[Prompt], responses: Sequence[Sequence[str]], **options: Any
    ) -> list[list[float | None]]:
        """Scores of every response of every prompt; ``None`` where there is none."""
        if len(prompts) != len(responses):
            raise ValueError(f"{len(prompts)} prompts but {len(responses)} groups of responses")
        items = [
            {"prompt": _plain(prompt), "responses": list(group)}
            for prompt, group in zip(prompts, responses, strict=True)
        ]
        asked = [index for index, item in enumerate(items) if item["responses"]]
        results: list[list[float | None]] = [[] for _ in items]
        for index, scores in zip(
            asked, await self.score([items[index] for index in asked], **options), strict=True
        ):
            results[index] = scores.scores
        return results

    def score_sync(self, items: Sequence[Mapping[str, Any]], **options: Any) -> list[ItemScores]:
        """:meth:`score` for code without an event loop (or inside of one: it blocks)."""
        return self._background.run(self.score(items, **options))

    def score_groups_sync(
        self, prompts: Sequence[Prompt], responses: Sequence[Sequence[str]], **options: Any
    ) -> list[list[float | None]]:
        """:meth:`score_groups` for code without an event loop."""
        return self._background.run(self.score_groups(prompts, responses, **options))

    async def aclose(self) -> None:
        """Close this event loop's connections."""
        connections = self._connections.pop(asyncio.get_running_loop(), None)
        if connections is not None:
            await connections.http.aclose()

    def close(self) -> None:
        """Close the connections of the ``_sync`` methods."""
        self._background.stop(self.aclose)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __getstate__(self) -> Json:
        own = ("urls", "model", "api_key", "timeout", "max_in_flight")
        return {name: getattr(self, name) for name in own}

    def __setstate__(self, state: Json) -> None:
        self.__dict__.update(state)
        self._reset()

    def _reset(self) -> None:
        self._replicas = [_Replica(url.rstrip("/")) for url in self.urls]
        self._background = _BackgroundLoop()
        self._connections: WeakKeyDictionary[asyncio.AbstractEventLoop, _Connections] = (
            WeakKeyDictionary()
        )

    def _connect(self) -> _Connections:
        loop = asyncio.get_running_loop()
        if loop not in self._connections:
            headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
            self._connections[loop] = _Connections(
                httpx.AsyncClient(headers=headers, limits=limits),
                asyncio.Semaphore(self.max_in_flight),
            )
        return self._connections[loop]

    async def _score_some(
        self, items: Sequence[Mapping[str, Any]], options: Json
    ) -> list[ItemScores]:
        connections = self._connect()
        async with connections.slots:
            body = {"items": list(items), **options}
            if self.model is not None:
                body["model"] = self.model
            answer = await self._ask(connections.http, body)
        version = answer["model_version"]
        return [
            ItemScores(result["scores"], result["errors"], result["num_tokens"], version)
            for result in answer["results"]
        ]

    async def _ask(self, http: httpx.AsyncClient, body: Json) -> Json:
        """One request, tried until it is answered or the deadline passes."""
        deadline = time.monotonic() + self.timeout
        attempt = 0
        while True:
            replica = min(self._replicas, key=_Replica.reluctance)
            answer = await self._try(http, replica, body, deadline)
            if not isinstance(answer, _Failure):
                replica.succeeded()
                return answer
            attempt += 1
            replica.failed(answer.retry_after)
            if any(other.is_rested() for other in self._replicas):
                continue
            pause = _pause(answer.retry_after, attempt)
            if time.monotonic() + pause >= deadline:
                raise RewardTimeout(
                    f"no scores within {self.timeout:g} s and {attempt} attempts; last: "
                    f"{answer.reason}",
                    answer.status,
                    answer.type,
                )
            await asyncio.sleep(pause)

    async def _try(
        self, http: httpx.AsyncClient, replica: _Replica, body: Json, deadline: float
    ) -> Json | _Failure:
        remaining = max(0.05, deadline - time.monotonic())
        limit = httpx.Timeout(remaining + 1, connect=min(CONNECT_SECONDS, remaining))
        timed = {**body, "timeout_ms": max(1, min(3_600_000, int(1000 * remaining)))}
        replica.in_flight += 1
        try:
            response = await http.post(f"{replica.url}/score", json=timed, timeout=limit)
        except httpx.TransportError as error:
            return _Failure(f"{replica.url}: {type(error).__name__}: {error}")
        finally:
            replica.in_flight -= 1
        if response.status_code == 200:
            return _read(replica.url, response)
        return _judge(replica.url, response)


@dataclass
class _BackgroundLoop:
    """An event loop in a daemon thread, started when first needed."""

    _loop: asyncio.AbstractEventLoop | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                name = "reward-client"
                threading.Thread(target=self._loop.run_forever, daemon=True, name=name).start()
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def stop(self, close: Any) -> None:
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None:
            asyncio.run_coroutine_threadsafe(close(), loop).result()
            loop.call_soon_threadsafe(loop.stop)


def _parts(items: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Cut into requests; the responses of one prompt stay together."""
    part: list[Mapping[str, Any]] = []
    scores = 0
    for item in items:
        count = len(item.get("responses", [None]))
        if part and scores + count > SCORES_PER_REQUEST:
            yield part
            part, scores = [], 0
        part.append(item)
        scores += count
    if part:
        yield part


def _plain(prompt: Prompt) -> str | list[dict[str, str]]:
    return prompt if isinstance(prompt, str) else [dict(message) for message in prompt]


def _read(url: str, response: httpx.Response) -> Json:
    try:
        answer = response.json()
        if isinstance(answer, dict) and {"results", "model_version"} <= answer.keys():
            return answer
    except ValueError:
        pass
    raise RewardError(f"{url}: answered 200 without scores; is it a scoring service?", 200)


def _judge(url: str, response: httpx.Response) -> _Failure:
    """Worth another try, or final.

    Raises:
        RequestRefused, RewardError: final.
    """
    status = response.status_code
    try:
        error = response.json()["error"]
        kind, message = str(error["type"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        kind, message = None, response.reason_phrase
    reason = f"{url}: {status} {message}"
    if status not in RETRIED:
        final = RequestRefused if 400 <= status < 500 else RewardError
        raise final(reason, status, kind)
    try:
        retry_after = float(response.headers.get("Retry-After", 0))
    except ValueError:
        retry_after = 0.0
    return _Failure(reason, status, kind, retry_after)


def _pause(retry_after: float, attempt: int) -> float:
    """Full jitter on top of what the server asked for, so that clients do not come back as one."""
    backoff = min(MAX_BACKOFF_SECONDS, BACKOFF_SECONDS * 2 ** min(attempt, 10))
    return retry_after + random.uniform(0, backoff)
