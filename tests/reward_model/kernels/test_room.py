"""Room for kernels: used again, never by two tensors at once."""

import gc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from reward_model.kernels import room
from reward_model.kernels.room import LEAST_BYTES, empty

LIKE = torch.empty(0)
ROWS = LEAST_BYTES // 4 // 64


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(room, "_free", [])
    yield
    gc.collect()


def test_a_tensor_of_its_own() -> None:
    like = torch.empty(0, dtype=torch.bfloat16)
    found = empty(like, 2, ROWS, 64)
    assert found.shape == (2, ROWS, 64)
    assert found.dtype is torch.bfloat16
    assert found.is_contiguous()
    assert found.data_ptr() % 64 == 0
    found.fill_(3)
    assert found.sum(dtype=torch.float64) == 3 * 2 * ROWS * 64


def test_what_nothing_refers_to_is_used_again() -> None:
    first = empty(LIKE, ROWS, 64)
    place = first.data_ptr()
    part = first[5:7]
    del first
    assert empty(LIKE, ROWS, 64).data_ptr() != place, "a part of it is still there"
    del part
    places = {empty(LIKE, ROWS + more, 64).data_ptr() for more in (0, 1, 0, 2)}
    assert place in places
    assert len(places) <= 2


def test_two_at_once_share_nothing() -> None:
    kept = [empty(LIKE, ROWS, 64).fill_(number) for number in range(8)]
    assert [float(x.mean()) for x in kept] == list(range(8))


def test_pieces_become_larger_and_not_more() -> None:
    for rows in range(ROWS, 20 * ROWS, ROWS // 2):
        empty(LIKE, rows, 64)
    assert len(room._free) <= 3
    large = sum(map(len, room._free))
    for rows in range(19 * ROWS, ROWS, -ROWS):
        empty(LIKE, rows, 64)
    assert sum(map(len, room._free)) <= 2 * large


def test_small_ones_come_from_the_heap() -> None:
    assert empty(LIKE, ROWS - 1, 64).shape == (ROWS - 1, 64)
    assert empty(LIKE, 0, 64).shape == (0, 64)
    assert not room._free


def test_from_many_threads() -> None:
    def work(number: int) -> bool:
        kept = [empty(LIKE, ROWS + number, 64).fill_(number + i) for i in range(4)]
        return all(bool((x == number + i).all()) for i, x in enumerate(kept))

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(200)))
    assert len(room._free) <= 8 * 4 * 2


def test_no_more_memory_is_named() -> None:
    with pytest.raises(MemoryError, match=r"no room for [\d,]+ bytes"):
        empty(LIKE, 1 << 55)
