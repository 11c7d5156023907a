"""How many replicas of a model the tokens that wait for it ask for."""

import math
from typing import Any

from ray.serve.config import AutoscalingContext

STATISTIC = "queued_tokens"
"""What :meth:`service.deployment.ModelReplica.record_autoscaling_stats` reports."""


class QueuedTokens:
    """An autoscaling policy for Ray Serve: ``ceil(queued tokens of all replicas / target)``.

    Tokens tell what is left to compute; requests do not, for one may hold a single short item and
    the next a thousand long ones. Bounds and delays are those of the ``autoscaling_config``.

    Args:
        tokens_per_replica: tokens that one replica may have waiting: its throughput times the
            longest wait that is acceptable.
    """

    def __init__(self, tokens_per_replica: int = 32768) -> None:
        self.tokens_per_replica = tokens_per_replica

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        queued = (context.aggregated_metrics or {}).get(STATISTIC, {})
        return max(1, math.ceil(sum(queued.values()) / self.tokens_per_replica)), {}
