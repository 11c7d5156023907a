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
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from reward_model.errors import UsageError
from service.app import create_app
from service.embedded import EmbeddedScorer
from service.garbage import spare_what_is_loaded
from service.logs import configure_logging
from service.metrics_board import MetricsBoard
from service.posted_metrics import PostedMetrics
from service.ray_scorer import EncodingChanged, RayScorer, encoding_version
from service.scorer import Readiness, Scored, ServedModel, TokenIds
from service.settings import ModelSettings, ServiceSettings

INGRESS = "ingress"
BOARD = "metrics"

MANY = 100_000
"""Requests a replica takes in at once. Ray's default of 5 would keep the queue out of the replica's
sight; admission is by tokens, in the replica, and answers 429 by itself."""


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
        spare_what_is_loaded()
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
        spare_what_is_loaded()

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
