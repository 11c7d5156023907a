"""Exact results, by version and token ids, within their memory."""

import sys

from service.cache import ENTRY_BYTES, ResultCache, digest


def test_the_key_is_version_and_token_ids() -> None:
    keys = [
        digest("sha256:1", (1, 2)),
        digest("sha256:2", (1, 2)),
        digest("sha256:1", (1, 2, 0)),
        digest("sha256:1", (2, 1)),
        digest("sha256:1", (0x0000000100000002,)),
    ]
    assert len(set(keys)) == 5
    assert digest("sha256:1", [1, 2]) == keys[0]


def test_a_score_of_zero_is_a_score() -> None:
    cache = ResultCache(1 << 20)
    cache.put(b"k", 0.0)
    assert cache.get(b"k") == 0.0
    assert cache.get(b"other") is None


def test_the_least_recently_used_goes_first() -> None:
    cache = ResultCache(2 * ENTRY_BYTES)
    cache.put(b"a", 1.0)
    cache.put(b"b", 2.0)
    cache.get(b"a")
    cache.put(b"c", 3.0)
    assert (cache.get(b"a"), cache.get(b"b"), cache.get(b"c")) == (1.0, None, 3.0)
    assert cache.num_bytes == 2 * ENTRY_BYTES


def test_no_memory_keeps_nothing() -> None:
    cache = ResultCache(0)
    cache.put(b"a", 1.0)
    assert cache.get(b"a") is None


def test_an_entry_takes_no_more_than_is_counted_for_it() -> None:
    cache = ResultCache(1 << 30)
    for number in range(10_000):
        cache.put(digest("sha256:1", (number,)), float(number))
    table = sys.getsizeof(cache._scores)
    entries = sum(sys.getsizeof(key) + sys.getsizeof(value) for key, value in cache._scores.items())
    # An OrderedDict's linked list is in its size; each node is counted there.
    assert table + entries <= cache.num_bytes
