"""The gate between requests and new weights, and the seeds of groups."""

import asyncio

from trainer.rloo.generation import Gate, sampling_seed


async def test_closing_waits_for_those_inside_and_holds_up_the_next():
    gate, events = Gate(), []
    inside, leave = asyncio.Event(), asyncio.Event()

    async def request(name):
        async with gate.entered():
            events.append(f"{name} in")
            inside.set()
            await leave.wait()
        events.append(f"{name} out")

    async def change():
        async with gate.closed():
            events.append("changed")

    first = asyncio.create_task(request("a"))
    await inside.wait()
    changing = asyncio.create_task(change())
    await asyncio.sleep(0)
    second = asyncio.create_task(request("b"))
    await asyncio.sleep(0.01)
    assert events == ["a in"]
    leave.set()
    await asyncio.gather(first, changing, second)
    assert events.index("changed") < events.index("b in")
    assert events.index("a in") < events.index("changed")
    assert gate.inside == 0


async def test_a_cancelled_change_opens_the_gate_again():
    gate, leave = Gate(), asyncio.Event()

    async def request():
        async with gate.entered():
            await leave.wait()

    async def change():
        async with gate.closed():
            pass

    first = asyncio.create_task(request())
    await asyncio.sleep(0)
    changing = asyncio.create_task(change())
    await asyncio.sleep(0)
    changing.cancel()
    await asyncio.gather(changing, return_exceptions=True)
    leave.set()
    await asyncio.wait_for(request(), 1)
    await first


def test_seeds_are_stable_and_differ():
    seeds = {sampling_seed(run, position, 0) for run in range(3) for position in range(100)}
    assert len(seeds) == 300
    assert sampling_seed(0, 1, 2) == sampling_seed(0, 1, 2)
    assert all(0 <= seed < 2**63 for seed in seeds)
