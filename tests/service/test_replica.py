"""Bisection and fallback, on a real model with faults put into its forward by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from reward_model.errors import UsageError
from reward_model.model import RewardModel, RewardOutput
from reward_model.packing import PackedBatch
from reward_model.scoring import score_token_ids
from reward_model.self_test import SelfTest
from service import replica as replica_module
from service.errors import InternalError, ServiceError, Unavailable
from service.replica import Replica
from service.scorer import ItemFailure

BAD = 7
"""The token id that makes a sequence fail."""

Fault = Callable[[PackedBatch, RewardOutput], RewardOutput]


@pytest.fixture
def replica(checkpoint: Path) -> Replica:
    replica = Replica("tiny", RewardModel.load(checkpoint))
    replica.warm_up(64)
    return replica


def sequences(count: int = 9) -> list[list[int]]:
    return [[20 + n + place for place in range(30 + 11 * n)] for n in range(count)]


def plant(replica: Replica, monkeypatch: pytest.MonkeyPatch, fault: Fault) -> list[int]:
    """Let ``fault`` act on forwards that hold a bad token; return the sizes of all forwards."""
    real, sizes = replica.model.forward, []

    def forward(packed: PackedBatch) -> RewardOutput:
        sizes.append(len(packed))
        output = real(packed)
        return fault(packed, output) if (packed.token_ids_T == BAD).any() else output

    monkeypatch.setattr(replica.model, "forward", forward)
    return sizes


def out_of_memory(packed: PackedBatch, output: RewardOutput) -> RewardOutput:
    raise torch.OutOfMemoryError("CUDA out of memory")


def cpu_out_of_memory(packed: PackedBatch, output: RewardOutput) -> RewardOutput:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


def poison(packed: PackedBatch, output: RewardOutput) -> RewardOutput:
    """Not only the bad sequence: the whole batch comes out NaN."""
    return RewardOutput(torch.full_like(output.rewards_N, float("nan")), output.hidden_NH)


def crash(packed: PackedBatch, output: RewardOutput) -> RewardOutput:
    raise RuntimeError("secret user text")


def test_scores_are_those_of_one_sequence_alone(replica: Replica) -> None:
    items = sequences()
    alone = [score_token_ids(replica.model, [item], share_prefix=False)[0] for item in items]
    assert replica.compute(items).outcomes == alone


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (out_of_memory, "out_of_memory"),
        (cpu_out_of_memory, "out_of_memory"),
        (poison, "not_finite"),
    ],
)
@pytest.mark.parametrize("bad", [[0], [4], [8], [2, 3], list(range(9))])
def test_bisection_isolates_the_bad_and_harms_no_neighbour(
    replica: Replica,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    kind: str,
    bad: list[int],
) -> None:
    items = sequences()
    wanted: list[Any] = replica.compute(items).outcomes
    for index in bad:
        items[index] = [*items[index], BAD]
    plant(replica, monkeypatch, fault)
    computed = replica.compute(items)
    for index, outcome in enumerate(computed.outcomes):
        if index in bad:
            assert isinstance(outcome, ItemFailure)
            assert outcome.type == kind
        else:
            assert outcome == wanted[index]
    assert computed.bisections > 0
    assert computed.computed_tokens == sum(len(s) for i, s in enumerate(items) if i not in bad)


def test_a_single_bad_item_costs_a_logarithm_of_forwards(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [[30 + n] for n in range(64)]
    items[40] = [BAD]
    sizes = plant(replica, monkeypatch, out_of_memory)
    replica.compute(items)
    assert len(sizes) == 1 + 2 * 6


def test_a_crash_is_an_internal_error_of_that_item_and_its_text_is_not_logged(
    replica: Replica, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    items = sequences()
    wanted = replica.compute(items).outcomes
    items[5] = [*items[5], BAD]
    plant(replica, monkeypatch, crash)
    outcomes = replica.compute(items).outcomes
    assert isinstance(outcomes[5], InternalError)
    assert [o for i, o in enumerate(outcomes) if i != 5] == [
        o for i, o in enumerate(wanted) if i != 5
    ]
    assert not replica.broken
    assert "RuntimeError" in str(caplog.records[-1].__dict__)
    assert "secret" not in str([record.__dict__ for record in caplog.records])


def test_a_device_that_no_longer_computes_is_told_from_a_bad_item(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(packed: PackedBatch) -> RewardOutput:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(replica.model, "forward", lost)
    outcomes = replica.compute(sequences()).outcomes
    assert all(isinstance(outcome, ServiceError) for outcome in outcomes)
    assert "restart" in replica.broken
    after = replica.compute(sequences(2)).outcomes
    assert all(isinstance(outcome, Unavailable) for outcome in after)


def test_a_failed_self_test_falls_back_to_one_sequence_per_forward(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_module, "self_test", lambda model: SelfTest(42, 3))
    replica = Replica("tiny", RewardModel.load(checkpoint))
    replica.warm_up(64)
    items = sequences(5)
    wanted = [score_token_ids(replica.model, [item], share_prefix=False)[0] for item in items]
    sizes = plant(replica, monkeypatch, out_of_memory)
    assert replica.compute(items).outcomes == wanted
    assert sizes == [1] * 5
    assert replica.scoring == "one sequence per forward"


def test_a_budget_that_does_not_fit_into_memory_is_refused_at_the_start(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = Replica("tiny", RewardModel.load(checkpoint))
    real = replica.model.forward

    def forward(packed: PackedBatch) -> RewardOutput:
        if packed.num_tokens > 1000:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(packed)

    monkeypatch.setattr(replica.model, "forward", forward)
    monkeypatch.setattr(replica_module, "self_test", lambda model: SelfTest(42, 0))
    with pytest.raises(UsageError, match="lower --max_batch_tokens"):
        replica.warm_up(2048)


def test_warm_up_measures_a_rate_and_fails_when_nothing_can_be_scored(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = Replica("tiny", RewardModel.load(checkpoint))
    replica.warm_up(64)
    assert replica.tokens_per_second > 0
    real = replica.model.forward
    failing = False

    def forward(packed: PackedBatch) -> RewardOutput:
        if failing:
            raise RuntimeError("broken")
        return real(packed)

    monkeypatch.setattr(replica.model, "forward", forward)
    monkeypatch.setattr(replica_module, "self_test", lambda model: SelfTest(42, 0))
    failing = True
    with pytest.raises(ServiceError):
        replica.warm_up(64)
