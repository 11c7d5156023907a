"""Gold labels from any reward URL.

    python -m trainer.data.label --source responses.jsonl --out scored.jsonl --url http://HOST:8000

Reads prompts with responses (see :mod:`trainer.data.responses`) and writes the scored format.
Responses that get no score are left out and counted. A killed run goes on where it stopped.
"""

import asyncio
import sys
from pathlib import Path

from pydantic import Field

from reward_model.command import Settings, run
from reward_model.errors import SumzeroError
from service.client import Prompt, RewardClient, RewardError
from trainer.data.journal import Journal
from trainer.data.responses import PromptResponses, prompt_key, read_responses
from trainer.urls import Urls


class LabelSettings(Settings):
    """What to label, and who labels."""

    source: str = Field(
        description="prompts with responses: a JSONL or Parquet file, or a hub name"
    )
    split: str = Field(default="train", description="split of a hub data set")
    out: Path = Field(description="JSONL file to write")
    url: Urls = Field(description="reward URLs of the gold model")
    model: str | None = Field(default=None, description="its name, where several are served")
    api_key: str | None = None
    at_once: int = Field(default=16, gt=0, description="prompts under way at the same time")


def label(settings: LabelSettings) -> dict[str, int]:
    """Score every response; return the counts that are printed.

    Raises:
        SumzeroError: the service refuses, or stays away; what is done is kept.
    """
    prompts, _ = read_responses([settings.source], split=settings.split)
    told = {"source": settings.source, "url": settings.url, "model": settings.model}
    journal = Journal(settings.out, told)
    waiting = [
        one for one in prompts if one.responses and prompt_key(one.prompt) not in journal.done
    ]
    try:
        asyncio.run(_label_all(waiting, settings, journal))
    except RewardError as error:
        raise SumzeroError(f"url: {error}; give the command again to go on") from error
    finally:
        journal.close()
    rows = []
    missing = 0
    for one in prompts:
        if not one.responses:
            continue
        gold = journal.done[prompt_key(one.prompt)]["gold"]
        missing += sum(score is None for score in gold)
        row = one.row()
        row["responses"] = [
            response | {"gold": score}
            for response, score in zip(row["responses"], gold, strict=True)
            if score is not None
        ]
        rows.append(row)
    count = journal.finish([row for row in rows if row["responses"]])
    scored = sum(len(row["responses"]) for row in rows)
    return {"prompts": count, "responses": scored, "without_score": missing}


async def _label_all(
    waiting: list[PromptResponses], settings: LabelSettings, journal: Journal
) -> None:
    async with RewardClient(
        settings.url, model=settings.model, api_key=settings.api_key
    ) as rewards:
        for start in range(0, len(waiting), settings.at_once):
            part = waiting[start : start + settings.at_once]
            asked: list[Prompt] = [
                [{"role": turn["role"], "content": turn["content"]} for turn in one.prompt]
                for one in part
            ]
            scores = await rewards.score_groups(
                asked,
                [[response.text for response in one.responses] for one in part],
            )
            for one, gold in zip(part, scores, strict=True):
                journal.add(prompt_key(one.prompt), {"gold": gold})


def _command(settings: LabelSettings) -> None:
    counts = label(settings)
    print(f"{settings.out}:", ", ".join(f"{name} {count}" for name, count in counts.items()))


def main() -> int:
    return run(LabelSettings, _command, prog="python -m trainer.data.label")


if __name__ == "__main__":
    sys.exit(main())
