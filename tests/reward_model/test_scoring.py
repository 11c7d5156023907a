import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reward_model.model import RewardModel
from reward_model.packing import count_computed_tokens
from reward_model.scoring import batches, score_token_ids
from tests.checkpoints import tiny_checkpoint


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 100))
def test_batches_keep_order_and_budget(lengths: list[int], budget: int) -> None:
    sequences = [[index] * length for index, length in enumerate(lengths)]
    runs = list(batches(sequences, budget, share_prefix=False))
    assert [index for run in runs for index in run] == list(range(len(lengths)))
    for run in runs:
        assert len(run) == 1 or sum(lengths[index] for index in run) <= budget


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 90)), max_size=30), st.integers(1, 600))
def test_what_a_batch_computes_is_within_the_budget(
    members: list[tuple[int, int]], budget: int
) -> None:
    """Sequences that share prompts of 0, 1 and 2 tiles with their neighbours."""
    sequences = [
        [prompt] * 64 * prompt + [10 + index] * own for index, (prompt, own) in enumerate(members)
    ]
    runs = list(batches(sequences, budget, share_prefix=True))
    assert [index for run in runs for index in run] == list(range(len(members)))
    for run in runs:
        computed = count_computed_tokens([sequences[index] for index in run], causal=True)
        assert len(run) == 1 or computed <= budget


def test_batches_by_hand() -> None:
    sequences = [[n] * length for n, length in enumerate([4, 4, 4, 9, 1])]
    wanted = [range(2), range(2, 3), range(3, 4), range(4, 5)]
    assert list(batches(sequences, 8, share_prefix=False)) == wanted


def test_batches_count_what_is_left_to_compute() -> None:
    """A prompt of two tiles and four answers of 10: 138 + 3 · 10, then a prompt of its own."""
    prompt = list(range(128))
    group = [[*prompt, *([200 + n] * 10)] for n in range(4)]
    assert list(batches([*group, [7] * 20], 170, share_prefix=True)) == [range(4), range(4, 5)]
    assert len(list(batches([*group, [7] * 20], 170, share_prefix=False))) == 4


def test_a_group_is_not_cut_where_its_prompt_would_be_computed_twice() -> None:
    """Two groups of 128 + 4 · 10 fill 336 of 490 tokens; half of a third would fit, too."""
    groups = [[[g] * 128 + [100 + n] * 10 for n in range(4)] for g in range(3)]
    sequences = [one for group in groups for one in group]
    assert list(batches(sequences, 490, share_prefix=True)) == [range(8), range(8, 12)]
    # One whose groups are larger than the budget is cut all the same, where it is full.
    assert [len(run) for run in batches(sequences, 160, share_prefix=True)] == [3, 1, 3, 1, 3, 1]


@pytest.fixture(scope="module", params=["qwen2", "gemma2", "modernbert"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    path = tiny_checkpoint(tmp_path_factory.mktemp("m") / request.param, request.param)
    return RewardModel.load(path)


@given(seed=st.integers(0, 10_000), budget=st.sampled_from([100, 700, 10_000]))
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_placement_changes_no_bit(model: RewardModel, seed: int, budget: int) -> None:
    """Random lengths, random neighbours, random shared prefixes, against each sequence alone."""
    rng = random.Random(seed)
    prompts = [[rng.randrange(3, 300) for _ in range(rng.randrange(1, 200))] for _ in range(2)]
    sequences = [
        (rng.choice(prompts) if rng.random() < 0.6 else [])
        + [rng.randrange(3, 300) for _ in range(rng.randrange(1, 150))]
        for _ in range(rng.randrange(1, 9))
    ]
    alone = [score_token_ids(model, [one], share_prefix=False)[0] for one in sequences]
    together = score_token_ids(model, sequences, max_batch_tokens=budget)
    assert np.array_equal(np.float32(together).view(np.uint32), np.float32(alone).view(np.uint32))


def test_the_service_can_load_what_a_path_names(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "m")
    first, second = (RewardModel.load(path) for _ in range(2))
    assert score_token_ids(first, [[5, 6, 7]]) == score_token_ids(second, [[5, 6, 7]])
    assert first.model_version == second.model_version
