import os
from pathlib import Path

import pytest

from reward_model import atomic


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "a.txt"
    atomic.write_text(path, "one")
    atomic.write_text(path, "two")
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_directory_that_failed_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    with atomic.directory(path) as new:
        (new / "weights").write_text("old")
    with pytest.raises(RuntimeError, match="disk"), atomic.directory(path) as new:
        (new / "weights").write_text("half")
        raise RuntimeError("disk")
    assert (path / "weights").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


def test_a_directory_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    for name in ("a", "b"):
        with atomic.directory(path) as new:
            (new / name).write_text(name)
    assert [p.name for p in path.iterdir()] == ["b"]


def test_a_kill_between_the_renames_is_undone(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    old = tmp_path / ".checkpoint.old"
    old.mkdir()
    (old / "weights").write_text("old")
    atomic.recover(path)
    assert (path / "weights").read_text() == "old"


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    """safetensors writes for the owner alone; a service runs as somebody else."""
    with atomic.directory(tmp_path / "checkpoint") as new:
        (new / "sub").mkdir(mode=0o700)
        (new / "sub" / "weights").touch(mode=0o600)
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "checkpoint" / "sub").stat().st_mode & 0o777 == 0o777 & ~umask
    assert (tmp_path / "checkpoint" / "sub" / "weights").stat().st_mode & 0o777 == 0o666 & ~umask
