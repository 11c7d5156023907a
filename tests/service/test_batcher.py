"""Admission, order, budget, deadlines, cancellation: against a compute that can be held."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import pytest_asyncio

from service.batcher import BatchedScores, Batcher
from service.errors import DeadlinePassed, InternalError, QueueFull, Unavailable
from service.metrics import Metrics
from service.replica import Computed
from service.scorer import ItemFailure, Outcome, TokenIds


class Machine:
    """Scores a sequence as the sum of its ids; waits before each batch while ``hold`` is set."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, ...]]] = []
        self.released = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)
        self.hold = False
        self.executor = ThreadPoolExecutor(1)

    def compute(self, sequences: Sequence[TokenIds]) -> Computed:
        self.batches.append([tuple(sequence) for sequence in sequences])
        self.begun.release()
        if self.hold:
            self.released.acquire()
        outcomes: list[Any] = [self._score(sequence) for sequence in sequences]
        return Computed(outcomes, sum(map(len, sequences)), 0.01)

    def _score(self, sequence: TokenIds) -> Outcome | InternalError:
        if sequence[0] == 666:
            return InternalError("scoring failed")
        if sequence[0] == 13:
            return ItemFailure("not_finite", "unlucky")
        return float(sum(sequence))

    async def wait_begun(self) -> None:
        await asyncio.to_thread(self.begun.acquire)


@pytest_asyncio.fixture
async def machine() -> AsyncIterator[Machine]:
    machine = Machine()
    yield machine
    machine.hold = False
    for _ in range(100):
        machine.released.release()
    machine.executor.shutdown()


def make(machine: Machine, *, budget: int = 100, queue: int = 1000, **options: Any) -> Batcher:
    return Batcher(
        "m",
        machine.compute,
        machine.executor,
        Metrics(),
        max_batch_tokens=budget,
        max_queue_tokens=queue,
        **options,
    )


async def submit(
    batcher: Batcher, *sequences: tuple[int, ...], timeout: float = 10
) -> BatchedScores:
    return await batcher.submit(sequences, sequences, timeout=timeout)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_scores_come_back_in_order(machine: Machine) -> None:
    result = await submit(make(machine), (3, 4), (1,), (2, 2))
    assert result.outcomes == [7.0, 1.0, 4.0]
    assert result.computed_tokens == 5


async def test_an_idle_replica_starts_at_once_and_the_next_batch_gathers(machine: Machine) -> None:
    machine.hold = True
    batcher = make(machine)
    first = asyncio.create_task(submit(batcher, (1,)))
    await machine.wait_begun()
    rest = [asyncio.create_task(submit(batcher, (n,))) for n in (2, 3, 4)]
    await settle()
    assert batcher.queued_tokens == 3
    for _ in range(2):
        machine.released.release()
    assert [(await task).outcomes for task in [first, *rest]] == [[1.0], [2.0], [3.0], [4.0]]
    assert machine.batches == [[(1,)], [(2,), (3,), (4,)]]
    assert batcher.queued_tokens == 0


async def test_a_batch_is_the_head_of_the_queue_within_the_budget(machine: Machine) -> None:
    sequences = [(n,) * 40 for n in range(1, 6)]
    await submit(make(machine, budget=100), *sequences)
    assert [len(batch) for batch in machine.batches] == [2, 2, 1]
    assert [s for batch in machine.batches for s in batch] == sequences


async def test_while_little_waits_a_batch_is_small_and_else_half_of_what_waits(
    machine: Machine,
) -> None:
    sequences = [(n, 0, 0, 0, 0) for n in range(1, 31)]
    await submit(make(machine, budget=60, quick_batch_tokens=20), *sequences)
    # 150 tokens wait, then 90, 45 and 25.
    assert [len(batch) for batch in machine.batches] == [12, 9, 4, 4, 1]


async def test_a_sequence_over_the_budget_is_a_batch_of_its_own(machine: Machine) -> None:
    await submit(make(machine, budget=10), (1,), (2,) * 50, (3,))
    assert [[len(s) for s in batch] for batch in machine.batches] == [[1], [50], [1]]


async def test_shared_tiles_cost_nothing(machine: Machine) -> None:
    prompt = tuple(range(1, 129))
    sequences = [(*prompt, n) for n in range(10)]
    await submit(make(machine, budget=140), *sequences)
    assert len(machine.batches) == 1
    machine.batches.clear()
    await submit(make(machine, budget=140, share_prefix=False), *sequences)
    assert len(machine.batches) == 10


async def test_equal_sequences_in_flight_are_computed_once(machine: Machine) -> None:
    machine.hold = True
    batcher = make(machine)
    first = asyncio.create_task(submit(batcher, (5,), (5,)))
    await machine.wait_begun()
    same_computing = asyncio.create_task(submit(batcher, (5,)))
    queued = [asyncio.create_task(submit(batcher, (6,))) for _ in range(3)]
    await settle()
    assert batcher.queued_tokens == 1
    for _ in range(2):
        machine.released.release()
    assert (await first).outcomes == [5.0, 5.0]
    assert (await same_computing).outcomes == [5.0]
    assert [(await task).outcomes for task in queued] == [[6.0]] * 3
    assert machine.batches == [[(5,)], [(6,)]]


async def test_a_full_queue_refuses_with_the_time_until_there_is_room(machine: Machine) -> None:
    machine.hold = True
    batcher = make(machine, queue=50, tokens_per_second=10.0)
    running = asyncio.create_task(submit(batcher, (1,)))
    await machine.wait_begun()
    waiting = asyncio.create_task(submit(batcher, (2,) * 45))
    await settle()
    with pytest.raises(QueueFull) as refused:
        await submit(batcher, (3,) * 25)
    # 20 tokens too many at 10 tokens/s, and at most 0.1 s of the batch that computes.
    assert 2.0 <= refused.value.details["retry_after"] <= 2.1
    assert refused.value.headers == {"Retry-After": "3"}
    assert batcher.queued_tokens == 45
    fits = asyncio.create_task(submit(batcher, (4,) * 5))
    await settle()
    assert not fits.done()
    for _ in range(2):
        machine.released.release()
    await asyncio.gather(running, waiting, fits)


async def test_a_request_larger_than_the_queue_is_admitted_when_it_is_empty(
    machine: Machine,
) -> None:
    assert (await submit(make(machine, queue=10), (1,) * 50)).outcomes == [50.0]


async def test_the_measured_throughput_follows_the_batches(machine: Machine) -> None:
    batcher = make(machine, budget=100, tokens_per_second=1.0)
    await submit(batcher, (1,) * 100)
    assert batcher.tokens_per_second > 100


async def test_a_deadline_ends_the_wait_and_frees_the_place(machine: Machine) -> None:
    machine.hold = True
    batcher = make(machine)
    running = asyncio.create_task(submit(batcher, (1,)))
    await machine.wait_begun()
    with pytest.raises(DeadlinePassed):
        await submit(batcher, (2, 2), timeout=0.01)
    assert batcher.queued_tokens == 0
    machine.released.release()
    await running
    await batcher.drain()
    assert machine.batches == [[(1,)]]


async def test_a_client_that_goes_away_frees_its_place_but_not_that_of_others(
    machine: Machine,
) -> None:
    machine.hold = True
    batcher = make(machine)
    running = asyncio.create_task(submit(batcher, (1,)))
    await machine.wait_begun()
    gone = asyncio.create_task(submit(batcher, (2,), (3,)))
    stays = asyncio.create_task(submit(batcher, (3,)))
    await settle()
    gone.cancel()
    await settle()
    assert batcher.queued_tokens == 1
    for _ in range(2):
        machine.released.release()
    assert (await stays).outcomes == [3.0]
    await running
    assert machine.batches == [[(1,)], [(3,)]]


async def test_a_dropped_sequence_can_be_asked_for_again(machine: Machine) -> None:
    machine.hold = True
    batcher = make(machine)
    running = asyncio.create_task(submit(batcher, (1,)))
    await machine.wait_begun()
    gone = asyncio.create_task(submit(batcher, (2,)))
    await settle()
    gone.cancel()
    await settle()
    again = asyncio.create_task(submit(batcher, (2,)))
    await settle()
    for _ in range(2):
        machine.released.release()
    assert (await again).outcomes == [2.0]
    await running
    assert machine.batches == [[(1,)], [(2,)]]


async def test_who_adds_nothing_to_a_full_queue_is_not_refused(machine: Machine) -> None:
    """A request larger than the queue waits; its equal joins it."""
    machine.hold = True
    batcher = make(machine, queue=10)
    running = asyncio.create_task(submit(batcher, (1,)))
    await machine.wait_begun()
    large = asyncio.create_task(submit(batcher, (2,) * 50))
    await settle()
    equal = asyncio.create_task(submit(batcher, (2,) * 50, (1,)))
    await settle()
    with pytest.raises(QueueFull):
        await submit(batcher, (3,))
    for _ in range(2):
        machine.released.release()
    assert (await equal).outcomes == [100.0, 1.0]
    assert (await large).outcomes == [100.0]
    await running
    assert len(machine.batches) == 2


async def test_asking_and_going_away_does_not_fill_the_memory(machine: Machine) -> None:
    machine.hold = True
    batcher = make(machine, queue=100)
    running = asyncio.create_task(submit(batcher, (1,)))
    await machine.wait_begun()
    stays = asyncio.create_task(submit(batcher, (2, 2)))
    for number in range(3, 100):
        gone = asyncio.create_task(submit(batcher, (number,) * 60))
        await settle()
        gone.cancel()
        await settle()
    assert sum(len(work.token_ids) for work in batcher._queue) <= 100 + 60
    assert batcher.queued_tokens == 2
    for _ in range(2):
        machine.released.release()
    assert (await stays).outcomes == [4.0]
    await running
    assert machine.batches == [[(1,)], [(2, 2)]]


async def test_what_nobody_waits_for_any_more_is_remembered(machine: Machine) -> None:
    """A request that comes too late for its own deadline finds its scores when it comes again."""
    machine.hold = True
    known: dict[Any, float] = {}
    batcher = make(machine, remember=known.__setitem__)
    with pytest.raises(DeadlinePassed):
        await submit(batcher, (1, 2), (13,), timeout=0.01)
    machine.released.release()
    await batcher.drain()
    assert known == {(1, 2): 3.0}


async def test_first_come_first_served_across_requests(machine: Machine) -> None:
    machine.hold = True
    batcher = make(machine, budget=4)
    running = asyncio.create_task(submit(batcher, (1,)))
    await machine.wait_begun()
    done: list[int] = []

    async def ask(number: int, count: int) -> None:
        await submit(batcher, *((number, place) for place in range(count)))
        done.append(number)

    # A small request does not overtake a large one that came before it.
    asked = [asyncio.create_task(ask(n, count)) for n, count in ((2, 6), (3, 1), (4, 2))]
    await settle()
    for _ in range(10):
        machine.released.release()
    await asyncio.gather(running, *asked)
    assert [s[0] for batch in machine.batches for s in batch] == [1, *[2] * 6, 3, 4, 4]
    assert done == [2, 3, 4]


async def test_one_failed_item_leaves_its_neighbours(machine: Machine) -> None:
    result = await submit(make(machine), (1,), (13,), (2,))
    assert result.outcomes == [1.0, ItemFailure("not_finite", "unlucky"), 2.0]


async def test_a_fault_fails_its_own_request_only(machine: Machine) -> None:
    machine.hold = True
    batcher = make(machine)
    running = asyncio.create_task(submit(batcher, (1,)))
    await machine.wait_begun()
    bad = asyncio.create_task(submit(batcher, (666,), (7,)))
    good = asyncio.create_task(submit(batcher, (8,)))
    await settle()
    for _ in range(2):
        machine.released.release()
    with pytest.raises(InternalError):
        await bad
    assert (await good).outcomes == [8.0]
    await running


async def test_a_lost_executor_is_an_answer_and_not_a_hang(machine: Machine) -> None:
    batcher = make(machine)
    machine.executor.shutdown()
    with pytest.raises(Unavailable):
        await submit(batcher, (1,))
    with pytest.raises(Unavailable):
        await submit(batcher, (1,))


async def test_drain_waits_for_everything(machine: Machine) -> None:
    machine.hold = True
    batcher = make(machine, budget=1)
    tasks = [asyncio.create_task(submit(batcher, (n,))) for n in range(1, 4)]
    await settle()
    draining = asyncio.create_task(batcher.drain())
    await settle()
    assert not draining.done()
    for _ in range(3):
        machine.released.release()
    await draining
    assert [(await task).outcomes for task in tasks] == [[1.0], [2.0], [3.0]]
