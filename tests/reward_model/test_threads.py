import asyncio
import threading

import pytest
import torch

from reward_model.threads import ComputeThreads, in_passing_thread, without_helpers


def test_models_on_the_cpu_share_a_thread_and_others_do_not() -> None:
    threads = ComputeThreads()
    one, two = (threads.take(name, torch.device("cpu")) for name in "ab")
    other, another = (threads.take(name, torch.device("cuda", 0)) for name in "cd")
    assert one is two
    assert len({one, other, another}) == 3
    threads.give_back(one)
    threads.give_back(other)
    assert two.submit(threading.get_ident).result() == one.submit(threading.get_ident).result()
    assert another.submit(threading.get_ident).result() != two.submit(threading.get_ident).result()
    threads.give_back(another)
    threads.close()
    for ended in (one, other, another):
        with pytest.raises(RuntimeError, match="after shutdown"):
            ended.submit(threading.get_ident)


async def test_a_passing_thread_is_gone_afterwards() -> None:
    thread = await in_passing_thread(threading.current_thread)
    await asyncio.to_thread(thread.join, 10)
    assert not thread.is_alive()


def test_without_helpers_ends_as_it_began() -> None:
    before = torch.get_num_threads()
    with without_helpers():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
