"""A whole study in small: two replicates of three arms, stopped and gone on with."""

import dataclasses
import gzip
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from reward_model.errors import UsageError
from tests.checkpoints import tiny_checkpoint
from trainer.evaluation.config import EvaluationSettings
from trainer.lock import locked
from trainer.study import benchmarks
from trainer.study.benchmarks import benchmarks_path
from trainer.study.config import BenchmarkSettings, StudySettings
from trainer.study.page import write_page
from trainer.study.pilot import Trial, try_rates
from trainer.study.records import Record, processor
from trainer.study.results import Results, analyse, write_results
from trainer.study.runs import (
    cells_directory,
    finished,
    prepare,
    read_record,
    read_rewards,
    record_path,
    run_all,
    run_directory,
)

WORDS = ["bread", "flour", "water", "salt", "yeast", "river", "Paris", "dough", "rest", "add"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 prompts, 14 models of seven lineages, the last strong; gold grows with their number."""
    out = tmp_path_factory.mktemp("source")
    rng = random.Random(0)
    models = [f"model-{number}" for number in range(14)]
    prompts = []
    for number in range(24):
        responses = [
            {
                "model": model,
                "output": " ".join(rng.choices(WORDS, k=6 + place)) + f" {number} {place}",
                "gold": place + rng.random(),
            }
            for place, model in enumerate(models)
        ]
        text = f"How do I bake {number} of bread?"
        prompts.append({"prompt_id": f"p{number}", "instruction": text, "responses": responses})
    with gzip.open(out / "prompts.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in prompts)
    ids = [row["prompt_id"] for row in prompts]
    splits = {
        "train_models": models[:9], "valid_models": models[9:12], "strong_ood_models": models[12:],
        "excluded_models": [], "train_prompts": ids[:18], "valid_prompts": ids[18:],
        "valid_prompts_benchmark_overlap": [],
    }  # fmt: skip
    (out / "splits.json").write_text(json.dumps(splits))
    lineages = {model: {"lineage": "abcdefabcdefgg"[place]} for place, model in enumerate(models)}
    (out / "models.json").write_text(json.dumps(lineages))
    return out


def write_pairs(path: Path) -> Path:
    pairs = [
        {"prompt": f"How much {word}?", "chosen": f"{word} {word}", "rejected": "none"}
        for word in WORDS
    ]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return path


def write_items(path: Path) -> Path:
    items = [
        {"prompt": word, "chosen": ["a", "b b", "c c c"], "rejected": ["d", "e e", "f f f"]}
        for word in WORDS
    ]
    path.write_text(json.dumps(items))
    return path


@pytest.fixture(scope="module")
def settings(source: Path, tmp_path_factory: pytest.TempPathFactory) -> StudySettings:
    """Stopped after the first replicate, and gone on with."""
    out = tmp_path_factory.mktemp("study")
    values: dict[str, Any] = {
        "source": source,
        "backbone": str(tiny_checkpoint(out / "backbone", "bert", task="backbone")),
        "output_dir": out / "study",
        "arms": {
            "bt": {"name": "bt"},
            "bsr": {"name": "bt_bsr", "lambda": 1.0, "scope": "micro", "scale": "reference"},
            "bt_l2": {"name": "bt_l2", "lambda": 1e-3},
        },
        "benchmarks": {
            "sets": {"asked": write_pairs(out / "asked.jsonl")},
            "rm_bench": {"chat": write_items(out / "chat.json")},
        },
        "page": out / "docs" / "README.md",
        "design": {
            "replicates": 2, "prompt_folds": 2, "lineage_folds": [["a", "b"]],
            "dev_lineages": ["c"], "dev_prompts": 4, "train_pairs": 16, "pairs_per_prompt": 4,
            "cell_prompts": 4, "cell_responses": 4, "max_length": 128, "strong_ood": True,
        },
        "training": {"lr": 1e-3, "batch_pairs": 8, "epochs": 2, "measurements": 2,
                     "micro_batch_pairs": 4},
        "draws": 100,
    }  # fmt: skip
    settings = StudySettings.model_validate(values)
    going = run_all(settings)
    assert next(going) == 0
    going.close()
    with pytest.raises(UsageError, match="1 replicates are finished"):
        analyse(settings)
    assert list(run_all(settings)) == [0, 1, 0, 1, 0, 1, 0, 1]
    return settings


def untimed(results: Results) -> Results:
    """A run that is trained again takes another time."""
    return dataclasses.replace(results, ran=[])


def test_the_primary_arms_come_first(settings: StudySettings, tmp_path: Path) -> None:
    shutil.copytree(settings.output_dir, tmp_path / "study")
    early = settings.model_copy(update={"output_dir": tmp_path / "study"})
    record_path(early, "bt_l2", 1).unlink()
    found = analyse(early)
    assert list(found.trajectories) == ["bt", "bsr"]
    for arm in ("bsr", "bt_l2"):
        shutil.rmtree(run_directory(early, arm, 1))
    record_path(early, "bsr", 1).unlink()
    benchmarks_path(record_path(early, "bsr", 1)).unlink()
    going = run_all(early)
    assert [next(going), next(going)] == [0, 1]
    early_found = analyse(early)
    assert early_found.comparisons == found.comparisons
    assert early_found.benchmarks is not None
    assert early_found.benchmarks.replicates == [0]
    assert next(going) == 1
    assert untimed(analyse(early)) == untimed(found)
    assert list(going) == [0, 1]
    assert untimed(analyse(early)) == untimed(analyse(settings))


def test_results_have_every_step_and_one_primary_endpoint(settings: StudySettings) -> None:
    results = analyse(settings)
    write_results(settings, results)
    write_page(settings, results)
    assert (settings.output_dir / "report.html").is_file()
    written = json.loads((settings.output_dir / "results.json").read_text())
    assert sorted(written["trajectories"]["bt"]["mutual_ood"]) == ["0", "2", "4"]
    page = settings.page
    assert page is not None
    assert "| bt less length |" in page.read_text()
    assert (page.parent / "README-1.png").is_file()
    primary = [one for one in results.comparisons if one.holm is None]
    assert [(one.arm, one.cell) for one in primary] == [("bsr", "mutual_ood")]


def test_arms_of_a_replicate_start_alike_and_part(settings: StudySettings) -> None:
    bt, bsr = (read_rewards(run_directory(settings, arm, 0)) for arm in ("bt", "bsr"))
    assert sorted(bt) == sorted(bsr) == [0, 2, 4]
    assert bt[0] == bsr[0]
    assert bt[4] != bsr[4]


def test_cells_hold_what_was_held_out(settings: StudySettings) -> None:
    cells = cells_directory(settings, 0)
    trained: set[str] = set()
    for line in (cells / "train.jsonl").read_text().splitlines():
        row = json.loads(line)
        trained |= {row["chosen"], row["rejected"]}
    for name, lineages in (("mutual_ood", {"a", "b"}), ("dev_mutual", {"c"})):
        rows = [json.loads(line) for line in (cells / f"{name}.jsonl").read_text().splitlines()]
        responses = [one for row in rows for one in row["responses"]]
        assert {one["lineage"] for one in responses} <= lineages
        assert not trained & {one["text"] for one in responses}


def test_records_are_all_that_a_study_needs(settings: StudySettings, tmp_path: Path) -> None:
    wanted = analyse(settings)
    moved = settings.model_copy(
        update={"output_dir": tmp_path / "elsewhere", "records": settings.output_dir / "records"}
    )
    assert list(run_all(moved)) == [0, 1, 0, 1]
    assert not run_directory(moved, "bt", 0).exists()
    assert analyse(moved) == wanted


def test_a_finished_study_is_analysed_once(
    settings: StudySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.study.__main__ import _command

    analysed = []

    def count(settings: StudySettings) -> Results:
        analysed.append(len(finished(settings)))
        return analyse(settings)

    monkeypatch.setattr("trainer.study.results.analyse", count)
    _command(settings)
    records = 2 * 3 * 2  # replicates, arms; rewards and benchmarks
    assert analysed == [records]


def test_every_run_is_measured_on_the_benchmarks(settings: StudySettings) -> None:
    found = analyse(settings).benchmarks
    assert found is not None
    assert found.replicates == [0, 1]
    report = run_directory(settings, "bsr", 1) / "benchmarks" / "results.json"
    evaluated = json.loads(report.read_text())
    accuracy = evaluated["sets"]["asked"]["accuracy"]["estimate"]["value"]
    assert found.values["bsr"]["asked/accuracy"][1] == accuracy
    assert found.differences["bsr"]["asked/accuracy"].differences[1] == pytest.approx(
        accuracy - found.values["bt"]["asked/accuracy"][1]
    )
    hard = evaluated["rm_bench"]["domains"]["chat"]["hard"]
    assert found.values["bsr"]["rm_bench/chat/hard"][1] == hard
    assert {"train/erank", "rm_bench/erank", "asked/h_norm"} <= found.values["bt"].keys()
    assert found.counts["rm_bench/chat/items"] == len(WORDS)


def test_where_there_is_a_gpu_it_is_taken_and_named(
    settings: StudySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H100")
    assert processor() == "H100"

    asked: list[EvaluationSettings] = []

    def evaluate(own: EvaluationSettings) -> None:
        asked.append(own)
        raise InterruptedError

    monkeypatch.setattr(benchmarks, "evaluate", evaluate)
    run = run_directory(settings, "bsr", 1)
    assert settings.benchmarks is not None
    with pytest.raises(InterruptedError):
        benchmarks.measure(run, run, settings.benchmarks, precision="float32", seed=0)
    assert [own.device for own in asked] == ["cuda"]


def test_an_arm_without_all_benchmarks_is_left_out_of_their_table(
    settings: StudySettings, tmp_path: Path
) -> None:
    shutil.copytree(settings.output_dir, tmp_path / "study")
    stopped = settings.model_copy(update={"output_dir": tmp_path / "study"})
    benchmarks_path(record_path(stopped, "bt_l2", 1)).unlink()
    whole, found = analyse(settings).benchmarks, analyse(stopped).benchmarks
    assert whole is not None
    assert found is not None
    assert found.replicates == whole.replicates == [0, 1]
    assert found.values == {arm: whole.values[arm] for arm in ("bt", "bsr")}
    assert list(found.differences) == ["bsr"]


def test_benchmarks_of_other_files_are_refused(settings: StudySettings, tmp_path: Path) -> None:
    assert settings.benchmarks is not None
    pairs = write_pairs(tmp_path / "asked.jsonl")
    pairs.write_text(pairs.read_text().replace("none", "some"))
    other = settings.benchmarks.model_copy(update={"sets": {"asked": pairs}})
    with pytest.raises(UsageError, match=r"another benchmarks\.asked; remove it"):
        analyse(settings.model_copy(update={"benchmarks": other}))
    gone = settings.benchmarks.model_copy(update={"sets": {"asked": tmp_path / "gone.jsonl"}})
    with pytest.raises(UsageError, match=r"benchmarks\.asked: .*gone\.jsonl: no such file"):
        next(run_all(settings.model_copy(update={"benchmarks": gone})))


@pytest.mark.parametrize("name", ["train", "rm_bench", "chat"])
def test_a_benchmark_takes_no_name_that_is_taken(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=f"{name} means something else here"):
        BenchmarkSettings(sets={name: tmp_path}, rm_bench={"chat": tmp_path})


def test_a_record_of_another_run_is_refused(settings: StudySettings, tmp_path: Path) -> None:
    shutil.copytree(settings.output_dir, tmp_path / "study")
    other = settings.model_copy(update={"output_dir": tmp_path / "study"})
    faster = other.training.model_copy(update={"lr": 1.0})
    with pytest.raises(UsageError, match=r"bt\.json: the record of .* another optimiser;"):
        analyse(other.model_copy(update={"training": faster}))
    path = cells_directory(other, 1) / "mutual_ood.jsonl"
    path.write_text(path.read_text().replace("bread", "cake"))
    with pytest.raises(UsageError, match=r"another mutual_ood\.jsonl; remove"):
        list(run_all(other))


def test_a_run_that_another_process_is_at_comes_last(
    settings: StudySettings, tmp_path: Path
) -> None:
    shutil.copytree(settings.output_dir, tmp_path / "study")
    shared = settings.model_copy(update={"output_dir": tmp_path / "study"})
    record = record_path(shared, "bt", 0)
    wanted = Record.read(record)
    record.unlink()
    shutil.rmtree(run_directory(shared, "bt", 0))
    going = run_all(shared)
    with locked(shared.output_dir / "runs" / "bt" / "replicate-0.lock", wait=False):
        assert [next(going) for _ in range(3)] == [1, 0, 1]
        assert not record.exists()
    assert list(going) == [0]
    assert Record.read(record).rewards == wanted.rewards


def test_a_pilot_compares_rates_on_the_dev_set(settings: StudySettings, tmp_path: Path) -> None:
    shutil.copytree(settings.output_dir, tmp_path / "study")
    piloted = settings.model_copy(
        update={"output_dir": tmp_path / "study", "pilot": [1e-4, settings.training.lr]}
    )
    trials = list(try_rates(piloted))
    own = read_record(piloted, "bt", next(prepare(piloted)))
    assert trials[1].taus == {
        step: found["dev_mutual"].tau for step, found in own.trajectory.items()
    }
    assert trials[0].taus[0] == trials[1].taus[0]
    record = json.loads((tmp_path / "study/records/pilot/lr-0.0001.json").read_text())
    assert record["identity"]["optimiser"]["lr"] == 1e-4
    assert list(try_rates(piloted)) == trials
    assert analyse(piloted) == analyse(settings)


def test_the_best_step_of_a_trial_is_after_training_began() -> None:
    assert Trial(1e-4, {0: 0.9, 8: 0.2, 16: 0.3, 24: 0.1}).best == (16, 0.3)


def test_a_record_holds_no_text_and_no_gold(settings: StudySettings) -> None:
    text = record_path(settings, "bsr", 1).read_text()
    assert "gold" not in text
    assert not any(word in text for word in ("dough", "yeast"))
    assert set(json.loads(text)["metrics"]) == {"0", "2", "4"}
