from pathlib import Path

import pytest
from pydantic import Field

from reward_model.command import Section, Settings, run
from reward_model.errors import SumzeroError, UsageError


class Loss(Section):
    name: str = "bt"
    lambda_: float = Field(default=1e-3, alias="lambda", gt=0)


class Example(Settings):
    model: list[str] = []
    steps: int = 10
    loss: Loss = Loss()


class Optimiser(Section):
    lr: float
    decay: float = Field(alias="weight_decay")
    epochs: int = 1


class Needing(Settings):
    backbone: str
    optimiser: Optimiser
    each: dict[str, Optimiser] = {}


def read(tmp_path: Path, argv: list[str], file: str | None = None) -> Example:
    if file is not None:
        (tmp_path / "config.yaml").write_text(file)
        argv = ["--config", str(tmp_path / "config.yaml"), *argv]
    seen: list[Example] = []
    assert run(Example, seen.append, prog="example", argv=argv) == 0
    return seen[0]


def test_command_line_beats_environment_beats_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = "steps: 1\nloss: {lambda: 0.1, name: bt_bsr}\n"
    assert read(tmp_path, [], file).loss == Loss(name="bt_bsr", lambda_=0.1)
    monkeypatch.setenv("SUMZERO_LOSS__LAMBDA", "0.2")
    monkeypatch.setenv("SUMZERO_STEPS", "2")
    assert read(tmp_path, [], file).loss == Loss(name="bt_bsr", lambda_=0.2)
    settings = read(tmp_path, ["--loss.lambda", "0.3"], file)
    assert settings.loss == Loss(name="bt_bsr", lambda_=0.3)
    assert settings.steps == 2


def test_a_list_takes_several_words(tmp_path: Path) -> None:
    assert read(tmp_path, ["--model", "a=x", "b=y", "--steps", "3"]).model == ["a=x", "b=y"]
    assert read(tmp_path, ["--model", "a=x", "--model", "b=y"]).model == ["a=x", "b=y"]


@pytest.mark.parametrize(
    ("argv", "file", "says"),
    [
        (["--nonsense", "1"], None, "nonsense"),
        (["--steps", "many"], None, "steps"),
        (["--loss.lambda", "-1"], None, "loss.lambda"),
        ([], "loss: {lamda: 1}", "loss.lamda: unknown key"),
        ([], "[1, 2]", "keys and values"),
        (["--config", "absent.yaml"], None, "absent.yaml: no such file"),
    ],
)
def test_a_wrong_setting_is_one_line_and_exit_code_two(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    file: str | None,
    says: str,
) -> None:
    if file is not None:
        (tmp_path / "config.yaml").write_text(file)
        argv = ["--config", str(tmp_path / "config.yaml")]
    assert run(Example, lambda settings: None, prog="example", argv=argv) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("no such data"), 2),
        (SumzeroError("server went away"), 1),
        (RuntimeError("surprise"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(capsys: pytest.CaptureFixture[str], error: BaseException, code: int) -> None:
    def fail(settings: Example) -> None:
        raise error

    assert run(Example, fail, prog="example", argv=[]) == code
    assert "Traceback" not in capsys.readouterr().err


def test_what_is_missing_is_named_as_the_flag_that_gives_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def said(*argv: str) -> list[str]:
        assert run(Needing, print, prog="example", argv=argv) == 2
        return capsys.readouterr().err.strip().removeprefix("example: ").split("; ")

    rest = "or set it in the --config file"
    assert said() == [
        f"backbone: required, give --backbone {rest}",
        f"optimiser: required, give --optimiser.lr and --optimiser.weight_decay {rest}",
    ]
    assert said("--backbone", "b", "--optimiser.lr", "1") == [
        f"optimiser.weight_decay: required, give --optimiser.weight_decay {rest}"
    ]
    whole = ["--backbone", "b", "--optimiser.lr", "1", "--optimiser.weight_decay", "0"]
    assert said(*whole, "--each", '{"a": {"lr": 1}}') == [
        f"each.a.weight_decay: required, give --each.a.weight_decay {rest}"
    ]
