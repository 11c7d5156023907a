"""``python -m service --ray``: a process that serves on Ray until it is told to end."""

import logging
import os
import signal
import threading
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import HTTPOptions

from reward_model.errors import SumzeroError, UsageError
from service.deployment import build_application
from service.logs import FIELDS, configure_logging
from service.server import bind, warn_if_open
from service.settings import ServiceSettings
from service.tls import check_tls

logger = logging.getLogger("service.ray_process")

APP = "sumzero"

OBJECT_STORE_BYTES = 100 << 20
"""Requests are small and pass inline; Ray would take a third of the machine's memory for this."""


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
