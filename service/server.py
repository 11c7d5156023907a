"""One uvicorn process around the embedded scorer, from the first log line to the last answer."""

import asyncio
import contextlib
import errno
import ipaddress
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from reward_model.errors import UsageError
from service.app import create_app, create_metrics_app
from service.embedded import EmbeddedScorer
from service.garbage import spare_what_is_loaded
from service.gate import Gate
from service.logs import FIELDS, configure_logging, log_fault
from service.metrics import Metrics
from service.settings import ServiceSettings
from service.tls import check_tls

logger = logging.getLogger("service.server")

KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep idle connections, so that theirs is the side that closes."""

LINGER_SECONDS = 1.0
"""How long a service that is asked to end still says no in words."""


def serve(settings: ServiceSettings) -> None:
    """Serve until SIGTERM (then return) or Ctrl-C (then raise KeyboardInterrupt).

    The port opens before the models load, so that ``/health`` and ``/ready`` can be asked.

    Raises:
        UsageError: the port is taken, the certificate is none, or a model cannot be served.
    """
    configure_logging(settings.log_format, settings.log_level)
    disable_progress_bar()
    set_verbosity_error()
    check_tls(settings.ssl_certfile, settings.ssl_keyfile)
    with contextlib.ExitStack() as listeners:
        listener = listeners.enter_context(bind(settings.host, settings.port))
        watched = None
        if settings.metrics_port is not None:
            watched = listeners.enter_context(
                bind(settings.metrics_host, settings.metrics_port, option="--metrics_port")
            )
        warn_if_open(settings)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(settings, listener, watched))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it exists, which is not on Windows."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


@contextlib.contextmanager
def bind(host: str, port: int, option: str = "--port") -> Iterator[socket.socket]:
    """A listening socket. ``option`` is the setting to change when the port is taken.

    Raises:
        UsageError: the address is taken, unknown or not ours to use.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)  # only listening takes the port for certain
    except OSError as error:
        remedy = f"; choose another {option}" if error.errno == errno.EADDRINUSE else ""
        raise UsageError(f"cannot listen on {host}:{port}: {error.strerror}{remedy}") from None
    with listener:
        yield listener


class _Server(uvicorn.Server):
    """uvicorn with its signal handling left to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _server(app: ASGIApp, **options: Any) -> _Server:
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, lifespan="off", **options
    )
    return _Server(config)


@contextlib.asynccontextmanager
async def _watched(app: ASGIApp, listener: socket.socket | None) -> AsyncIterator[None]:
    """Answer for ``/metrics`` on a port of its own until all is over; nowhere without a port."""
    if listener is None:
        yield
        return
    server = _server(app)
    serving = asyncio.create_task(server.serve([listener]), name="metrics")
    host, port = listener.getsockname()[:2]
    logger.info("metrics", extra={FIELDS: {"host": host, "port": port}})
    try:
        yield
    finally:
        server.should_exit = True
        await serving


async def _serve(
    settings: ServiceSettings, listener: socket.socket, watched: socket.socket | None
) -> None:
    metrics, gate = Metrics(), Gate()
    scorer = EmbeddedScorer(settings, metrics)
    async with _watched(create_metrics_app(scorer, settings, metrics=metrics, gate=gate), watched):
        app = create_app(scorer, settings, metrics=metrics, gate=gate)
        await _serve_scores(app, scorer, gate, settings, listener)


async def _serve_scores(
    app: ASGIApp,
    scorer: EmbeddedScorer,
    gate: Gate,
    settings: ServiceSettings,
    listener: socket.socket,
) -> None:
    server = _server(
        app,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
        ssl_certfile=settings.ssl_certfile,
        ssl_keyfile=settings.ssl_keyfile,
    )
    stop = _listen_for_signals(scorer)
    serving = asyncio.create_task(server.serve([listener]))
    loading = asyncio.create_task(_load(scorer, listener))
    waiting = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({serving, loading, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done() and not serving.done():
            loading.result()
            await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if stop.interrupted:
            server.force_exit = True  # nobody presses Ctrl-C to wait
        elif waiting.done():
            await _drain(gate, settings.drain_seconds)
    finally:
        loading.cancel()
        waiting.cancel()
        server.should_exit = True
        await serving
        await scorer.close(drain=not stop.interrupted)
    if stop.interrupted:
        raise KeyboardInterrupt


async def _load(scorer: EmbeddedScorer, listener: socket.socket) -> None:
    await scorer.load()
    spare_what_is_loaded()
    host, port = listener.getsockname()[:2]
    logger.info("ready", extra={FIELDS: {"host": host, "port": port}})


async def _drain(gate: Gate, seconds: float) -> None:
    """Refuse what comes, answer what is inside."""
    gate.close()
    logger.info("shutting down", extra={FIELDS: {"requests": gate.inside}})
    try:
        async with asyncio.timeout(seconds):
            # Busy clients hear 503 and "Connection: close" before their connections are cut.
            await asyncio.sleep(LINGER_SECONDS)
            await gate.wait_empty()
    except TimeoutError:
        logger.warning("requests left unanswered", extra={FIELDS: {"requests": gate.inside}})


class _Stop(asyncio.Event):
    """Set by SIGTERM, or by Ctrl-C (``interrupted``)."""

    interrupted = False

    def interrupt(self) -> None:
        self.interrupted = True
        self.set()


def _listen_for_signals(scorer: EmbeddedScorer) -> _Stop:
    stop = _Stop()
    loop = asyncio.get_running_loop()
    reloads: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = asyncio.create_task(scorer.reload(), name="reload")
        reloads.add(task)
        task.add_done_callback(_reloaded)
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, reload)
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, stop.interrupt)
    return stop


def _reloaded(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log_fault(logger, "not reloaded", error)


def warn_if_open(settings: ServiceSettings) -> None:
    if not settings.api_keys and not _is_loopback(settings.host):
        logger.warning(
            "no api_keys: whoever reaches the port may ask for scores",
            extra={FIELDS: {"host": settings.host}},
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
