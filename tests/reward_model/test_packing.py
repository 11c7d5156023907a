import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_model.packing import (
    ROW_MULTIPLE,
    count_computed_tokens,
    pack,
    shared_tokens,
)
from reward_model.tiles import TILE, Segment

TOKENS = st.integers(min_value=0, max_value=3)
SEQUENCES = st.lists(st.lists(TOKENS, min_size=1, max_size=3 * TILE), min_size=1, max_size=6)


@given(SEQUENCES, st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_rows_give_every_sequence_back(
    sequences: list[list[int]], causal: bool, share: bool
) -> None:
    packed = pack(sequences, causal=causal, share_prefix=share)
    for n, sequence in enumerate(sequences):
        rows = packed.rows(n)
        assert packed.token_ids_T[rows].tolist() == sequence
        assert packed.position_ids_T[rows].tolist() == list(range(len(sequence)))
        assert packed.first_N[n] == rows[0]
        assert packed.last_N[n] == rows[-1]


@given(SEQUENCES, st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_query_slot_sees_its_own_sequence(sequences: list[list[int]], causal: bool) -> None:
    packed = pack(sequences, causal=causal)
    computed = packed.computed_tokens
    assert torch.equal(packed.slot_rows_S[packed.row_slots_T[:computed]], torch.arange(computed))
    keys = {}
    for block in packed.blocks:
        slots = torch.arange(len(packed.slot_rows_S)).view(-1, TILE)
        own = slots.view(-1)[block.start : block.stop].view(block.count, -1)
        keys_BK = own if block.chains_BA is None else slots[block.chains_BA].view(block.count, -1)
        assert keys_BK.shape[1] == block.keys
        for run, query_slots in enumerate(own):
            for row in packed.slot_rows_S[query_slots].tolist():
                keys[row] = packed.slot_rows_S[keys_BK[run]]
    for n, sequence in enumerate(sequences):
        rows = packed.rows(n)
        for place, row in enumerate(rows.tolist()):
            seen = place + 1 if causal else len(sequence)
            assert torch.equal(keys[row][:seen], rows[:seen])


@given(SEQUENCES, st.booleans())
@settings(max_examples=60, deadline=None)
def test_segments_are_the_rows_and_their_chains_the_sequences(
    sequences: list[list[int]], causal: bool
) -> None:
    packed = pack(sequences, causal=causal)
    stops = list(itertools.accumulate(segment.length for segment in packed.segments))
    assert stops[-1] == packed.computed_tokens
    rows = [
        list(range(stop - segment.length, stop))
        for stop, segment in zip(stops, packed.segments, strict=True)
    ]
    chains = []
    for own, segment in zip(rows, packed.segments, strict=True):
        before = [row for ancestor in segment.ancestors for row in rows[ancestor]]
        assert len(before) == segment.start
        chains.append(before + own)
    for n in range(len(sequences)):
        last = int(packed.last_N[n])
        [chain] = [chain for chain, own in zip(chains, rows, strict=True) if last in own]
        assert chain[: chain.index(last) + 1] == packed.rows(n).tolist()


def test_a_segment_ends_where_sequences_part() -> None:
    prompt = list(range(2 * TILE))
    packed = pack([[*prompt, 1, 1], [*prompt, 2], [9] * 70], causal=True)
    assert packed.segments == (
        Segment(2 * TILE, 0, ()),
        Segment(2, 2 * TILE, (0,)),
        Segment(1, 2 * TILE, (0,)),
        Segment(70, 0, ()),
    )


@given(SEQUENCES, st.booleans())
@settings(max_examples=60, deadline=None)
def test_count_agrees_with_the_batch(sequences: list[list[int]], causal: bool) -> None:
    packed = pack(sequences, causal=causal)
    assert count_computed_tokens(sequences, causal=causal) == packed.computed_tokens
    assert packed.num_tokens == sum(map(len, sequences))


def test_a_prompt_is_computed_once_up_to_the_last_whole_tile() -> None:
    prompt = list(range(2 * TILE + 10))
    packed = pack([prompt + [900 + k] * 20 for k in range(4)], causal=True)
    assert packed.num_tokens == 4 * (2 * TILE + 30)
    assert packed.computed_tokens == 2 * TILE + 4 * 30


def test_encoders_share_equal_sequences_only() -> None:
    packed = pack([[1] * 100, [1] * 100, [1] * 99 + [2]], causal=False)
    assert packed.computed_tokens == 200
    assert packed.first_N[0] == packed.first_N[1]


def test_without_sharing_equal_sequences_are_computed_twice() -> None:
    assert pack([[1] * 10] * 2, causal=True, share_prefix=False).computed_tokens == 20


def test_rows_are_filled_up_to_the_multiple() -> None:
    packed = pack([[5, 6, 7]], causal=True)
    assert len(packed.token_ids_T) == ROW_MULTIPLE
    assert packed.computed_tokens == 3


@pytest.mark.parametrize("sequences", [[], [[1], []]])
def test_nothing_to_pack_is_an_error(sequences: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="empty"):
        pack(sequences, causal=True)


def test_shared_tokens_counts_whole_equal_tiles() -> None:
    prompt = tuple(range(130))
    assert shared_tokens((*prompt, 1), (*prompt, 2)) == 128
    assert shared_tokens(prompt, prompt) == 130
    assert shared_tokens((1, 2), (1, 3)) == 0
    assert shared_tokens(prompt, prompt[:64]) == 64
    assert shared_tokens(prompt[:64], prompt) == 64
