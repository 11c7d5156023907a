import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from reward_model.command import run
from reward_model.model import RewardModel
from tests.checkpoints import tiny_checkpoint
from trainer.demo.cells import Sizes, build_cells, cell_path, write_cells
from trainer.demo.gold import gold
from trainer.demo.gold_server import GoldServer
from trainer.evaluation.config import EvaluationSettings
from trainer.evaluation.evaluate import evaluate


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("cells")
    write_cells(directory, build_cells(0, Sizes(conversations=2, train=12, unseen=6, policy=2)))
    return directory


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    backbone = tiny_checkpoint(directory / "backbone", task="causal")
    RewardModel.from_backbone(backbone).save(directory / "reward")
    return directory / "reward"


def settings(cells: Path, output: Path, **values: Any) -> EvaluationSettings:
    sets = {name: str(cell_path(cells, name)) for name in ("train_pairs", "mutual_ood")}
    return EvaluationSettings(**({"sets": sets, "output_dir": output, "bootstrap": 100} | values))


def test_a_checkpoint_against_plain_transformers(
    cells: Path, checkpoint: Path, tmp_path: Path
) -> None:
    results = evaluate(settings(cells, tmp_path, checkpoint=checkpoint))
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    def reward(prompt: list[dict[str, str]], response: str) -> float:
        turns = [*prompt, {"role": "assistant", "content": response}]
        text = tokenizer.apply_chat_template(turns, tokenize=False).rstrip()
        with torch.inference_mode():
            return float(model(**tokenizer(text, return_tensors="pt")).logits)

    rows = [json.loads(line) for line in cell_path(cells, "train_pairs").open()]
    wins = [
        reward(row["prompt"], row["chosen"]) > reward(row["prompt"], row["rejected"])
        for row in rows
    ]
    assert results.sets["train_pairs"].accuracy.estimate.value == pytest.approx(
        sum(wins) / len(wins)
    )
    assert results.sets["train_pairs"].ranking is None
    assert results.sets["mutual_ood"].ranking is not None
    assert results.representation["mutual_ood"].rows == 24
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["model_version"] == RewardModel.load(checkpoint).model_version
    assert "mutual_ood" in (tmp_path / "report.html").read_text()


def test_a_reward_url(cells: Path, tmp_path: Path) -> None:
    """The gold reward, served, agrees with itself on every pair and ranking."""
    with GoldServer() as server:
        results = evaluate(settings(cells, tmp_path, url=[server.url]))
    for result in results.sets.values():
        assert result.accuracy.estimate.value == 1.0
        assert result.accuracy.ties == 0
    ranking = results.sets["mutual_ood"].ranking
    assert ranking is not None
    assert ranking.estimate.value == pytest.approx(1.0)
    first = json.loads(cell_path(cells, "mutual_ood").read_text().splitlines()[0])
    assert first["responses"][0]["gold"] == gold(first["prompt_id"], first["responses"][0]["text"])
    assert results.model_version == "gold"


def test_what_is_too_long_is_counted_and_not_cut(
    cells: Path, checkpoint: Path, tmp_path: Path
) -> None:
    model = RewardModel.load(checkpoint)
    responses = [
        (row["prompt"], response["text"])
        for row in map(json.loads, cell_path(cells, "mutual_ood").open())
        for response in row["responses"]
    ]
    lengths = sorted(len(model.encoder.prompt_response(*one).token_ids) for one in responses)
    shorter = model.contract.model_copy(update={"max_length": lengths[7]})
    model.save(tmp_path / "short", shorter)
    results = evaluate(settings(cells, tmp_path / "out", checkpoint=tmp_path / "short"))
    result = results.sets["mutual_ood"]
    assert result.unscored == sum(length > lengths[7] for length in lengths)
    assert 0 < result.unscored < result.responses
    cut = evaluate(
        settings(cells, tmp_path / "cut", checkpoint=tmp_path / "short", truncation="left")
    )
    assert cut.sets["mutual_ood"].unscored == 0


def test_a_set_may_be_called_rm_bench_where_there_is_no_other(
    cells: Path, checkpoint: Path, tmp_path: Path
) -> None:
    sets = {"rm_bench": str(cell_path(cells, "train_pairs"))}
    found = evaluate(settings(cells, tmp_path, checkpoint=checkpoint, sets=sets))
    assert found.representation["rm_bench"].rows == 24
    with pytest.raises(ValidationError, match="rm_bench is RM-Bench's own name"):
        settings(cells, tmp_path, checkpoint=checkpoint, sets=sets, rm_bench={"chat": tmp_path})


def test_rm_bench_files_are_pooled_by_domain(checkpoint: Path, tmp_path: Path) -> None:
    item = {"prompt": "p", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"]}
    for name in ("safety-refuse", "safety-response", "chat"):
        (tmp_path / f"{name}.json").write_text(json.dumps([item, item]))
    files = {
        name: tmp_path / f"{name}.json" for name in ("safety-refuse", "safety-response", "chat")
    }
    results = evaluate(
        EvaluationSettings(checkpoint=checkpoint, rm_bench=files, output_dir=tmp_path / "out")
    )
    assert results.rm_bench is not None
    assert {name: part.items for name, part in results.rm_bench.domains.items()} == {
        "safety": 4,
        "chat": 2,
    }
    assert results.rm_bench.missing == ["math", "code"]
    assert results.representation["rm_bench"].rows == 6 * (4 + 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "absent"], "checkpoint: absent: no such directory"),
        ([], "either checkpoint or url"),
        (["--url", "http://127.0.0.1:1", "--nonsense", "1"], "nonsense"),
    ],
)
def test_bad_usage_is_one_line(
    arguments: list[str],
    message: str,
    cells: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from trainer.evaluation.__main__ import _evaluate

    sets = ["--sets", f"a={cell_path(cells, 'train_pairs')}", "--output_dir", str(tmp_path)]
    code = run(EvaluationSettings, _evaluate, prog="evaluation", argv=[*arguments, *sets])
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


def test_reward_bench_best_of_n_and_length(cells: Path, checkpoint: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": "Why?", "chosen": f"Because of {n}.", "rejected": f"No {n}", "subset": name}
        for n, name in enumerate(["hep-cpp", "hep-cpp", "refusals-dangerous", "own"])
    ]
    path = tmp_path / "bench.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = evaluate(
        settings(cells, tmp_path / "out", checkpoint=checkpoint, reward_bench=str(path))
    )
    assert results.reward_bench is not None
    assert set(results.reward_bench.sections) == {"Safety", "Reasoning"}
    assert results.reward_bench.subsets["own"].items == 1
    scored = results.sets["mutual_ood"]
    assert scored.best_of_n is not None
    assert scored.best_of_n.points[0].gold.value == pytest.approx(0.0, abs=1e-9)
    assert scored.given_length.value is not None
    assert -1 <= scored.given_length.value <= 1
    page = (tmp_path / "out/report.html").read_text()
    assert "RewardBench" in page
    assert "Best of n" in page
