"""``python -m service.offline IN.jsonl OUT.jsonl --model DIR``: score a file as the server would.

Each line of the input is an item of ``POST /score`` (``prompt`` and ``responses``, ``messages``,
``text`` or ``token_ids``), with an ``id`` of yours if you like. Each line of the output is the
result of the same line: ``scores``, ``errors``, ``num_tokens``, ``truncated``, and the ``id``.
The items go the server's own way to their scores, so they get the same bits.

Results gather in ``OUT.jsonl.part``; the same command goes on after the last whole line of it, and
it becomes ``OUT.jsonl`` when all are there.
"""

import asyncio
import logging
import sys

from reward_model.command import run
from reward_model.errors import UsageError
from service.embedded import EmbeddedScorer
from service.logs import FIELDS, configure_logging
from service.metrics import Metrics
from service.offline.lines import Source
from service.offline.output import Output
from service.offline.progress import Progress
from service.offline.settings import OfflineSettings
from service.offline.work import Work
from service.scoring import ScoringPath

logger = logging.getLogger("service.offline")


def score_file(settings: OfflineSettings) -> None:
    """Score every line of the input; see the module.

    Raises:
        UsageError: a file or line that cannot be read, results that exist already.
    """
    configure_logging(settings.log_format, settings.log_level)
    if settings.output.exists():
        raise UsageError(f"output {settings.output}: exists; remove it or choose another name")
    source = Source.of(settings.input)
    asyncio.run(_score_file(settings, source))


async def _score_file(settings: OfflineSettings, source: Source) -> None:
    service = settings.as_service()
    metrics = Metrics()
    scorer = EmbeddedScorer(service, metrics)
    await scorer.load()
    model = scorer.models()[settings.served.name]
    if settings.normalize and model.contract.stats is None:
        raise UsageError(f"normalize: model {model.name} has no statistics")
    belongs_to = {
        "input_sha256": source.sha256,
        "model_version": model.version,
        "dtype": model.details["dtype"],
        "truncation": settings.truncation,
        "normalize": settings.normalize,
        "chat_format": model.details["chat_format"],
    }
    work = Work(settings, ScoringPath(scorer, metrics), model.name)
    try:
        with Output(settings.output, belongs_to).open() as output:
            with Progress(source.lines, output.done) as progress:
                await work.score(source.read(output.done), output, progress)
            output.finish()
    finally:
        await scorer.close(drain=False)
    fields = {"lines": source.lines, "output": str(settings.output), "version": model.version}
    logger.info("done", extra={FIELDS: fields})


def main() -> int:
    return run(OfflineSettings, score_file, prog="python -m service.offline")


if __name__ == "__main__":
    sys.exit(main())
