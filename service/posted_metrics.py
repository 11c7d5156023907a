"""The metrics of one replica on Ray Serve, posted on the board that they all share."""

import asyncio
import contextlib

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from service.metrics import Metrics
from service.metrics_board import POST_SECONDS, MetricsBoard, Poster

PAGE_SECONDS = 5.0
"""How long ``/metrics`` waits for the board; without it, it shows what the ingress itself knows."""


class PostedMetrics(Metrics):
    """Metrics of one replica, posted on the board; :meth:`page` shows everybody's."""

    def __init__(self, board: DeploymentHandle[MetricsBoard]) -> None:
        super().__init__()
        self._board = board
        context = serve.get_replica_context()
        self._poster = Poster(context.deployment, context.replica_id.unique_id)
        self._posting = asyncio.get_running_loop().create_task(self._keep_posting())

    async def page(self) -> bytes:
        try:
            async with asyncio.timeout(PAGE_SECONDS):
                await self._post()
                whole: bytes = await self._board.page.remote()
                return whole
        except (TimeoutError, RayError, DeploymentUnavailableError):
            return await super().page()

    async def _post(self) -> None:
        await self._board.post.remote(self._poster, list(self.registry.collect()))

    async def _keep_posting(self) -> None:
        while True:
            # A board that is not there yet, or was restarted, gets the next one.
            with contextlib.suppress(TimeoutError, RayError, DeploymentUnavailableError):
                async with asyncio.timeout(POST_SECONDS):
                    await self._post()
            await asyncio.sleep(POST_SECONDS)
