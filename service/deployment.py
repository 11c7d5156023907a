"""The same app and replicas on Ray Serve: ``python -m service --ray``, or ``serve run`` with YAML.

::

    Ingress (HTTP, tokenizing)  ──token ids──▶  model-NAME (queue, packed batches, one device each)

There is one deployment per model, so that each is placed, scaled and updated by itself. Admission,
batching and the forward happen in the model replica, where :class:`service.embedded.EmbeddedScorer`
does for one model what it does for all of them in a single process. Its forward runs in a thread of
its own, so a health check never waits for it. One more deployment, ``metrics``, is the board on
which all of them post what ``/metrics`` shows (:mod:`service.metrics_board`).
"""

import asyncio
import hashlib
import logging
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
from pydantic import ValidationError
from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve import Application
from ray.serve.config import HTTPOptions
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from reward_model.errors import SumzeroError, UsageError
from service.app import create_app
from service.embedded import EmbeddedScorer
from service.errors import (
    DeadlinePassed,
    InternalError,
    ServiceError,
    Unavailable,
    UnknownModel,
    VersionChanged,
)
from service.logs import FIELDS, configure_logging
from service.metrics_board import MetricsBoard
from service.posted_metrics import PostedMetrics
from service.scorer import Readiness, Scored, ServedModel, TokenIds
from service.server import bind, warn_if_open
from service.settings import ModelSettings, ServiceSettings
from service.tls import check_tls

logger = logging.getLogger("service.deployment")

APP = "sumzero"
INGRESS = "ingress"
BOARD = "metrics"

MANY = 100_000
"""Requests a replica takes in at once. Ray's default of 5 would keep the queue out of the replica's
sight; admission is by tokens, in the replica, and answers 429 by itself."""

READINESS_SECONDS = 5.0
"""A model replica that does not say how it is within this time is not ready."""

OBJECT_STORE_BYTES = 100 << 20
"""Requests are small and pass inline; Ray would take a third of the machine's memory for this."""

RETRY_SECONDS = 0.2
"""Pause before another replica is asked after one has died."""


class EncodingChanged(Unavailable):
    """The tokens were made for another version of the model: make them anew and ask again."""


def encoding_version(served: ServedModel) -> str:
    """A digest of everything that turns an input of this model into token ids."""
    tokenizer = served.encoder.tokenizer
    contract = served.contract
    parts = (
        tokenizer.backend_tokenizer.to_str(),
        str(tokenizer.chat_template),
        f"{contract.bos} {contract.append_eos} {contract.max_length}",
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


class ModelReplica:
    """One model on one device. The only place of a Serve application that holds weights."""

    def __init__(
        self,
        settings: ServiceSettings,
        model: ModelSettings,
        board: DeploymentHandle[MetricsBoard],
    ) -> None:
        configure_logging(settings.log_format, settings.log_level)
        self._name = model.name
        self._model = model
        self._metrics = PostedMetrics(board)
        own = settings.model_copy(update={"model": (model,)})
        self._scorer = EmbeddedScorer(own, self._metrics)
        with ThreadPoolExecutor(1) as thread:  # Ray calls constructors on a running event loop
            thread.submit(asyncio.run, self._scorer.load()).result()
        self._encodings: dict[str, str] = {}

    async def reconfigure(self, user_config: Mapping[str, str]) -> None:
        """Serve what lies in another directory from now on: ``user_config: {path: DIR}``.

        Ray calls it when a deployed file changes there and nowhere else. Scores go on meanwhile,
        from the old version; both are in memory until it is done. A directory that cannot be served
        is said in the log, and the old version stays.

        Raises:
            UsageError: a key other than ``path``.
        """
        if user_config.keys() != {"path"}:
            raise UsageError(f"user_config of model-{self._name}: give path, and only that")
        wanted = self._model.model_copy(update={"path": Path(user_config["path"])})
        if wanted != self._model:
            await self._scorer.reload([wanted])
            self._model = wanted

    def served(self) -> ServedModel:
        return self._scorer.models()[self._name]

    async def describe(self) -> tuple[ServedModel, str]:
        """What the ingress needs to tokenize for this model, and the version of that."""
        return self.served(), self._encoding()

    async def score(self, sequences: Sequence[TokenIds], timeout: float, encoding: str) -> Scored:
        """See :meth:`service.scorer.Scorer.score`."""
        if encoding != self._encoding():
            raise EncodingChanged(f"model {self._name} was updated; try again")
        return await self._scorer.score(self._name, sequences, timeout=timeout)

    def _encoding(self) -> str:
        served = self.served()
        if served.version not in self._encodings:
            self._encodings = {served.version: encoding_version(served)}
        return self._encodings[served.version]

    async def readiness(self) -> Readiness:
        return await self._scorer.readiness()

    async def check_health(self) -> None:
        """Asked by Ray, which replaces the replica when this raises."""
        readiness = await self._scorer.readiness()
        if readiness.broken:
            raise RuntimeError(readiness.reason)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        labels = {"model": self._name}
        queued = self._metrics.registry.get_sample_value("sumzero_queue_tokens", labels)
        return {"queued_tokens": queued or 0.0}


class RayScorer:
    """Implements :class:`service.scorer.Scorer` with the replicas behind Ray Serve handles."""

    def __init__(self, handles: Mapping[str, DeploymentHandle[ModelReplica]]) -> None:
        self._handles = handles
        self._served: dict[str, ServedModel] = {}
        self._encodings: dict[str, str] = {}

    def load(self) -> None:
        """Learn from every model's replica how to tokenize for it. Blocks until they are there."""
        for name, handle in self._handles.items():
            self._served[name], self._encodings[name] = handle.describe.remote().result()

    def models(self) -> dict[str, ServedModel]:
        return self._served

    async def score(
        self,
        model: str,
        sequences: Sequence[TokenIds],
        *,
        timeout: float,
        version: str | None = None,  # the replica compares the version of the encoding
    ) -> Scored:
        if model not in self._handles:
            raise UnknownModel(f"no model named {model!r}", {"models": list(self._handles)})
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            try:
                return await self._ask(model, sequences, left)
            except RayActorError:
                # Scoring has no side effects, so what a dead replica held is asked again.
                await asyncio.sleep(min(RETRY_SECONDS, left))
        raise DeadlinePassed(f"no scores within {timeout:g} s")

    async def readiness(self) -> Readiness:
        answers = await asyncio.gather(*map(self._readiness_of, self._handles))
        return Readiness(
            ready=all(answer.ready for answer in answers),
            reason="; ".join(answer.reason for answer in answers if answer.reason),
            models={name: state for answer in answers for name, state in answer.models.items()},
        )

    async def _ask(self, model: str, sequences: Sequence[TokenIds], left: float) -> Scored:
        response = self._handles[model].score.remote(sequences, left, self._encodings[model])
        try:
            async with asyncio.timeout(left):
                scored: Scored = await response
        except TimeoutError:
            response.cancel()
            raise DeadlinePassed(f"no scores within {left:g} s") from None
        except asyncio.CancelledError:  # the client has gone: free its place in the replica
            response.cancel()
            raise
        except RayTaskError as error:
            if isinstance(error.cause, EncodingChanged):
                await self._refresh(model)
                raise VersionChanged(error.cause.message) from None
            raise _translate(error.cause) from None
        except DeploymentUnavailableError as error:
            raise Unavailable(error.message) from None
        if scored.model_version != self._served[model].version:
            await self._refresh(model)
        return scored

    async def _refresh(self, model: str) -> None:
        served, encoding = await self._handles[model].describe.remote()
        self._served[model], self._encodings[model] = served, encoding

    async def _readiness_of(self, model: str) -> Readiness:
        try:
            async with asyncio.timeout(READINESS_SECONDS):
                readiness: Readiness = await self._handles[model].readiness.remote()
                return readiness
        except (TimeoutError, RayError, DeploymentUnavailableError):
            return Readiness(ready=False, reason=f"model {model} has no replica that answers")


def _translate(cause: BaseException) -> ServiceError:
    """What a replica raised, as the app's own error; a fault's text stays in the replica's log."""
    if isinstance(cause, ServiceError):
        return cause
    return InternalError(f"scoring failed: {type(cause).__name__}")


@serve.ingress()
class Ingress:
    """Speaks HTTP and tokenizes. Holds no weights, so it needs no device."""

    def __init__(
        self,
        settings: ServiceSettings,
        handles: Mapping[str, DeploymentHandle[ModelReplica]],
        board: DeploymentHandle[MetricsBoard],
    ) -> None:
        configure_logging(settings.log_format, settings.log_level)
        self._settings = settings
        self._metrics = PostedMetrics(board)
        self._scorer = RayScorer(handles)
        with ThreadPoolExecutor(1) as thread:
            thread.submit(self._scorer.load).result()

    def __serve_build_asgi_app__(self) -> Any:
        return create_app(self._scorer, self._settings, metrics=self._metrics)


def build_application(settings: ServiceSettings, **actor_options: Any) -> Application:
    """One deployment per model and an ingress before them, as a Serve application.

    Args:
        actor_options: ``ray_actor_options`` of the model replicas; by default one GPU each where
            ``settings.device`` is one, else one core.

    Raises:
        UsageError: a setting that Ray Serve has no place for.
    """
    if settings.metrics_port is not None:
        raise UsageError("metrics_port: a Ray proxy has one port for all routes; leave it out")
    on_gpu = settings.device.startswith("cuda")
    actor_options = actor_options or {"num_gpus" if on_gpu else "num_cpus": 1}
    board = serve.deployment(MetricsBoard).options(
        name=BOARD,
        ray_actor_options={"num_cpus": 0},
        logging_config={"enable_access_log": False},
    )
    board_handle = board.bind()
    replica = serve.deployment(ModelReplica).options(
        max_ongoing_requests=MANY,
        max_surge_percent=100,
        health_check_period_s=5,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=settings.drain_seconds,
        ray_actor_options=actor_options,
        logging_config={"enable_access_log": False},
    )
    handles = {
        model.name: replica.options(name=f"model-{model.name}").bind(settings, model, board_handle)
        for model in settings.model
    }
    ingress = serve.deployment(Ingress).options(
        name=INGRESS,
        max_ongoing_requests=MANY,
        max_surge_percent=100,
        graceful_shutdown_timeout_s=settings.drain_seconds,
        ray_actor_options={"num_cpus": 0},
        logging_config={"enable_access_log": False},
    )
    return ingress.bind(settings, handles, board_handle)


def build(args: dict[str, Any]) -> Application:
    """The builder that ``serve run`` and ``serve deploy`` call with the ``args`` of the YAML file.

    Keys are those of ``python -m service``; what the file leaves out comes from the environment,
    and API keys should (the file is shown on Ray's dashboard).

    Raises:
        UsageError: an unknown key or a value of the wrong type.
    """
    try:
        settings = ServiceSettings(**args)
    except ValidationError as error:
        places = (f"args.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UsageError("; ".join(places)) from None
    if settings.ssl_certfile or settings.ssl_keyfile:
        raise UsageError("args.ssl_certfile, args.ssl_keyfile: give them to http_options instead")
    return build_application(settings)


def serve_on_ray(settings: ServiceSettings) -> None:
    """Serve until SIGTERM (then return) or Ctrl-C (then raise KeyboardInterrupt); both drain.

    ``RAY_ADDRESS`` names a running cluster; without it a local one is started and ended here.

    Raises:
        UsageError: the port is taken, or a model directory is not there.
    """
    configure_logging(settings.log_format, settings.log_level)
    for model in settings.model:
        if not model.path.is_dir():
            raise UsageError(f"--model {model.path}: no such directory")
    check_tls(settings.ssl_certfile, settings.ssl_keyfile)
    with bind(settings.host, settings.port) as listener:
        port = listener.getsockname()[1]
    warn_if_open(settings)
    actor_options: dict[str, Any] = {}
    if settings.device == "cpu" and "RAY_ADDRESS" not in os.environ:
        actor_options = _share_cores(len(settings.model))
    try:
        _start_ray()
        application = build_application(settings, **actor_options)
        _serve(application, _http_options(settings, port))
    finally:
        ray.shutdown()


def _start_ray() -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's workers run at nice 15 by default; a service should not wait for everything else.
    os.environ.setdefault("RAY_worker_niceness", "0")
    local = "RAY_ADDRESS" not in os.environ
    try:
        ray.init(
            address="local" if local else None,  # and not any that somebody else has started here
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES if local else None,
            logging_level=logging.WARNING,
        )
    except Exception as error:  # a plain one, after 30 seconds, where the machine is too busy
        raise SumzeroError(f"Ray did not start: {error}") from error


class _Terminated(BaseException):
    """SIGTERM came: not an error, so that nothing on the way catches it."""


def _terminate(*_: object) -> None:
    raise _Terminated


def _http_options(settings: ServiceSettings, port: int) -> HTTPOptions:
    options: dict[str, Any] = {"host": settings.host, "port": port}
    if settings.ssl_certfile is not None:
        options["ssl_certfile"] = str(settings.ssl_certfile)
        options["ssl_keyfile"] = str(settings.ssl_keyfile or settings.ssl_certfile)
    return HTTPOptions(**options)


def _serve(application: Application, options: HTTPOptions) -> None:
    signal.signal(signal.SIGTERM, _terminate)
    serve.start(http_options=options)
    try:
        serve.run(application, name=APP)
        logger.info("ready", extra={FIELDS: {"host": options.host, "port": options.port}})
        threading.Event().wait()
    except _Terminated:
        logger.info("shutting down")
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        serve.shutdown()


def _share_cores(models: int) -> dict[str, Any]:
    """On the CPUs of one machine: the models share the cores, and none waits for a whole one.

    The threads are set for all processes that Ray starts, not by a runtime environment of the
    replicas: with one they could not take a process that stands ready, and would start slowly.
    """
    cores = len(os.sched_getaffinity(0))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // models)))
    return {"num_cpus": 0}
