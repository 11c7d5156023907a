"""The served reward as the callable that other trainers expect. Needs nothing but the client.

TRL::

    from service.adapters import TrlReward
    reward = TrlReward("http://127.0.0.1:8000")
    RLOOTrainer(reward_funcs=reward.score, ...)

verl, in its configuration::

    custom_reward_function.path=.../service/adapters.py
    custom_reward_function.name=compute_score
    SUMZERO_REWARD_URL=http://127.0.0.1:8000   (in the environment; SUMZERO_REWARD_KEY for a key)
"""

import logging
import os
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from service.client import Prompt, RewardClient, RewardError

logger = logging.getLogger("service.adapters")

Completion = str | Sequence[Mapping[str, str]]


class TrlReward:
    """``reward_funcs=TrlReward(url).score`` for TRL's GRPO, RLOO and asynchronous trainers.

    Picklable. A sample that cannot be scored is ``None``, and so is a whole batch when the service
    stays away: an exception on one rank would leave the others waiting for ever.
    """

    def __init__(self, urls: str | Sequence[str], **options: Any) -> None:
        self.client = RewardClient(urls, **options)

    async def score(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], **columns: Any
    ) -> list[float | None]:
        """Scores of ``completions``, texts or lists of messages; other columns are ignored."""
        items = [_item(*pair) for pair in zip(prompts, completions, strict=True)]
        try:
            return [result.scores[0] for result in await self.client.score(items)]
        except RewardError as error:
            logger.warning("no scores for a batch of %d: %s", len(items), error)
            return [None] * len(items)


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    url: str | None = None,
    **options: Any,
) -> dict[str, float]:
    """verl's custom reward function. The prompt comes in ``extra_info["prompt"]``.

    Args:
        url: of the service; several are separated by commas. ``SUMZERO_REWARD_URL`` otherwise.

    Raises:
        RewardError: no score; verl knows no missing reward.
        ValueError: no URL, or no prompt.
    """
    urls = url or os.environ.get("SUMZERO_REWARD_URL")
    if not urls:
        raise ValueError("compute_score: set SUMZERO_REWARD_URL, or pass url in reward_kwargs")
    prompt = (extra_info or {}).get("prompt")
    if not prompt:
        raise ValueError('compute_score: extra_info["prompt"] is missing; keep it in the data set')
    result = (await _client(urls).score([_item(prompt, solution_str)]))[0]
    if result.scores[0] is None:
        error = result.errors[0] or {}
        raise RewardError(f"no score: {error.get('message')}", type=error.get("type"))
    return {"score": result.scores[0]}


@cache
def _client(urls: str) -> RewardClient:
    parts = [url.strip() for url in urls.split(",")]
    return RewardClient(parts, api_key=os.environ.get("SUMZERO_REWARD_KEY"))


def _item(prompt: Prompt, completion: Completion) -> dict[str, Any]:
    if isinstance(completion, str):
        turns = prompt if isinstance(prompt, str) else [dict(message) for message in prompt]
        return {"prompt": turns, "responses": [completion]}
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return {"messages": [dict(message) for message in [*before, *completion]]}
