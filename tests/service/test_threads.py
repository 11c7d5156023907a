import asyncio
import threading
from pathlib import Path

import torch

from service.embedded import EmbeddedScorer
from service.metrics import Metrics
from service.settings import ServiceSettings
from service.threads import ComputeThreads, in_passing_thread


def test_models_on_the_cpu_share_a_thread_and_others_do_not() -> None:
    threads = ComputeThreads()
    one, two = (threads.take(name, torch.device("cpu")) for name in "ab")
    other, another = (threads.take(name, torch.device("cuda", 0)) for name in "cd")
    assert one is two
    assert len({one, other, another}) == 3
    threads.give_back(one)
    threads.give_back(other)
    assert two.submit(threading.get_ident).result()
    assert other._shutdown
    another.shutdown()
    threads.close()
    assert two._shutdown


async def test_a_passing_thread_is_gone_afterwards() -> None:
    thread = await in_passing_thread(threading.current_thread)
    await asyncio.to_thread(thread.join, 10)
    assert not thread.is_alive()


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
    assert not [one for one in threading.enumerate() if one.name.startswith("passing")]
    await scorer.close()
