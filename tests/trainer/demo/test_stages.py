from pathlib import Path

import pytest

from reward_model.errors import UsageError
from trainer.demo.stages import Stage, clear, only_one


def stage(root: Path, name: str = "sft", after: tuple[Stage, ...] = (), **settings: int) -> Stage:
    return Stage(root, name, settings, after)


def run(one: Stage, content: str) -> None:
    one.begin()
    (one.directory / "out.txt").write_text(content)
    one.finish()


def test_a_finished_stage_is_done_for_the_same_settings_only(tmp_path: Path) -> None:
    run(stage(tmp_path, epochs=1), "one")
    assert stage(tmp_path, epochs=1).done
    assert not stage(tmp_path, epochs=2).done


def test_an_interrupted_stage_keeps_its_directory(tmp_path: Path) -> None:
    first = stage(tmp_path, epochs=1)
    first.begin()
    (first.directory / "checkpoint").write_text("half way")
    first.interrupt()
    again = stage(tmp_path, epochs=1)
    assert not again.done
    again.begin()
    assert (again.directory / "checkpoint").read_text() == "half way"


def test_a_killed_stage_keeps_its_directory_too(tmp_path: Path) -> None:
    first = stage(tmp_path, epochs=1)
    first.begin()
    (first.directory / "checkpoint").write_text("half way")
    again = stage(tmp_path, epochs=1)
    assert not again.done
    again.begin()
    assert (again.directory / "checkpoint").exists()


def test_other_settings_start_in_an_empty_directory(tmp_path: Path) -> None:
    run(stage(tmp_path, epochs=1), "one")
    changed = stage(tmp_path, epochs=2)
    changed.begin()
    assert list(changed.directory.iterdir()) == []
    changed.interrupt()
    assert not stage(tmp_path, epochs=1).done


def test_a_change_upstream_undoes_what_builds_on_it(tmp_path: Path) -> None:
    world, other = stage(tmp_path, "world", seed=0), stage(tmp_path, "world", seed=1)
    run(stage(tmp_path, "sft", (world,), epochs=1), "one")
    assert stage(tmp_path, "sft", (world,), epochs=1).done
    assert not stage(tmp_path, "sft", (other,), epochs=1).done


def test_time_adds_up_over_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 15.0, 100.0, 102.0])
    monkeypatch.setattr("trainer.demo.stages.time.monotonic", lambda: next(clock))
    first = stage(tmp_path)
    first.begin()
    first.interrupt()
    second = stage(tmp_path)
    second.begin()
    second.finish()
    assert stage(tmp_path).seconds == 7.0


def test_a_torn_marker_counts_as_none(tmp_path: Path) -> None:
    run(stage(tmp_path), "one")
    (tmp_path / "stages" / "sft.json").write_text('{"key": ')
    assert not stage(tmp_path).done


def test_a_directory_belongs_to_one_demo_at_a_time(tmp_path: Path) -> None:
    root = tmp_path / "demo"
    with only_one(root), pytest.raises(UsageError, match="another demo is running"), only_one(root):
        pass
    with only_one(root):
        run(stage(root), "one")
        clear(root)
        assert [path.name for path in root.iterdir()] == [".lock"]
