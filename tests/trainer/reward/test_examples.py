import pytest

from reward_model.model import RewardModel
from tests.checkpoints import tiny_checkpoint
from trainer.data.preferences import parse_pair
from trainer.reward.examples import (
    batch_order,
    cut_by_cost,
    learning_rate,
    rank_share,
    tokenise_pairs,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    path = tiny_checkpoint(tmp_path_factory.mktemp("backbone"), task="backbone")
    return RewardModel.from_backbone(path, max_length=120)


def pair(prompt: str, chosen: str, rejected: str) -> dict[str, object]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def test_an_epoch_holds_every_pair_once_and_is_seeded() -> None:
    batches = batch_order(50, 16, seed=1, epoch=0)
    assert [len(batch) for batch in batches] == [16, 16, 16, 2]
    assert sorted(index for batch in batches for index in batch) == list(range(50))
    assert batches == batch_order(50, 16, seed=1, epoch=0)
    assert batches != batch_order(50, 16, seed=1, epoch=1)
    assert batches != batch_order(50, 16, seed=2, epoch=0)


@pytest.mark.parametrize("count", [0, 1, 5, 16])
def test_ranks_share_a_batch_without_doubling_a_pair(count: int) -> None:
    batch = list(range(count))
    shares = [rank_share(batch, rank, 3) for rank in range(3)]
    assert [index for share in shares for index in share] == batch
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_cut_by_cost() -> None:
    assert list(cut_by_cost([4, 4, 4, 9, 1], 8)) == [range(2), range(2, 3), range(3, 4),
                                                     range(4, 5)]  # fmt: skip
    assert list(cut_by_cost([1] * 5, 100, max_pairs=2)) == [range(2), range(2, 4), range(4, 5)]
    assert list(cut_by_cost([], 8)) == []


def test_learning_rate_by_hand() -> None:
    rates = [learning_rate(step, 10, 0.2, 1.0) for step in range(10)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    assert learning_rate(0, 10, 0.0, 1.0) == 1.0


def test_over_long_pairs_are_dropped_and_counted(model: RewardModel) -> None:
    pairs = [parse_pair(pair("a?", "b", "c")), parse_pair(pair("a " * 200, "b", "c"))]
    result = tokenise_pairs(pairs, model.encoder, causal=True)
    assert len(result.examples) == 1
    assert result.lost == {"too_long": 1}


def test_over_long_prompts_are_cut_at_their_start(model: RewardModel) -> None:
    pairs = [parse_pair(pair("x " * 200 + "end?", "yes", "no"))]
    result = tokenise_pairs(pairs, model.encoder, causal=True, too_long="cut_prompt")
    assert (len(result.examples), result.cut, result.lost) == (1, 1, {})
    chosen = result.examples[0].chosen.tolist()
    assert len(chosen) == 120
    text = model.tokenizer.decode(chosen)
    assert text.endswith("end?<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>")


def test_a_response_that_alone_is_too_long_is_never_cut(model: RewardModel) -> None:
    pairs = [parse_pair(pair("a?", "b " * 200, "c"))]
    result = tokenise_pairs(pairs, model.encoder, causal=True, too_long="cut_prompt")
    assert not result.examples
    assert result.lost == {"response_too_long": 1}


def test_the_training_tokens_are_those_that_serving_would_score(model: RewardModel) -> None:
    result = tokenise_pairs([parse_pair(pair("a?", "b", "c"))], model.encoder, causal=True)
    served = model.encoder.prompt_response("a?", "b").token_ids
    assert tuple(result.examples[0].chosen.tolist()) == served


def test_cost_counts_a_shared_prompt_once(model: RewardModel) -> None:
    result = tokenise_pairs([parse_pair(pair("x " * 40, "b", "c"))], model.encoder, causal=True)
    example = result.examples[0]
    assert example.cost == len(example.chosen) + len(example.rejected) - 64


def test_the_fingerprint_changes_with_the_data(model: RewardModel) -> None:
    one = tokenise_pairs([parse_pair(pair("a?", "b", "c"))], model.encoder, causal=True)
    two = tokenise_pairs([parse_pair(pair("a?", "c", "b"))], model.encoder, causal=True)
    assert one.fingerprint() != two.fingerprint()
