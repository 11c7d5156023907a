import asyncio
import threading
from pathlib import Path

from service.embedded import EmbeddedScorer
from service.metrics import Metrics
from service.settings import ServiceSettings


async def test_one_thread_computes_for_every_model_and_none_that_loaded_stays(
    checkpoint: Path,
) -> None:
    """More threads that compute than processors would put OpenMP's helpers to sleep."""
    seen: list[threading.Thread] = []
    settings = ServiceSettings.model_validate({"model": [f"a={checkpoint}", f"b={checkpoint}"]})
    scorer = EmbeddedScorer(settings, Metrics())
    await scorer.load()
    for name in "ab":
        model = scorer.replica(name).model
        model.register_forward_hook(lambda *_: seen.append(threading.current_thread()))
        await scorer.score(name, [[5, 6, ord(name)]], timeout=60)  # the versions are equal
    assert len(seen) == 2
    assert len(set(seen)) == 1
    for thread in threading.enumerate():
        if thread.name.startswith("passing"):  # on its way out
            await asyncio.to_thread(thread.join, 10)
            assert not thread.is_alive()
    await scorer.close()
