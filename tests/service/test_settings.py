"""Settings from the command line, the environment and a file."""

from pathlib import Path

import pytest

from reward_model.command import read_settings
from reward_model.errors import UsageError
from service.settings import ServiceSettings


def read(*arguments: str) -> ServiceSettings:
    return read_settings(ServiceSettings, arguments, prog="service")


def models(settings: ServiceSettings) -> list[tuple[str, str]]:
    return [(model.name, str(model.path)) for model in settings.model]


def test_models_by_name_and_by_directory() -> None:
    assert models(read("--model", "a=/models/x", "/models/y")) == [
        ("a", "/models/x"),
        ("y", "/models/y"),
    ]
    assert models(read("--model=/models/x")) == [("x", "/models/x")]
    assert models(read("--model", "/models/x/")) == [("x", "/models/x")]


def test_a_directory_is_named_by_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "best").mkdir()
    monkeypatch.chdir(tmp_path / "best")
    assert models(read("--model", ".")) == [("best", ".")]


@pytest.mark.parametrize(
    ("options", "budget", "quick"),
    [
        ((), 3072, 2048),
        (("--dtype", "bfloat16"), 4096, 2048),
        (("--dtype", "bfloat16", "--max_batch_tokens", "100"), 100, 100),
        (("--device", "cuda"), 16384, 16384),
    ],
)
def test_a_batch_has_what_suits_device_and_dtype(
    options: tuple[str, ...], budget: int, quick: int
) -> None:
    settings = read("--model", "/m", *options)
    assert (settings.batch_tokens, settings.quick_batch_tokens) == (budget, quick)


def test_two_models_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="two models are named 'x'"):
        read("--model", "/a/x", "/b/x")


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUMZERO_MODEL", "a=/x /y")
    monkeypatch.setenv("SUMZERO_API_KEYS", "one,two")
    monkeypatch.setenv("SUMZERO_PORT", "9000")
    settings = read("--port", "9001")
    assert models(settings) == [("a", "/x"), ("y", "/y")]
    assert [key.get_secret_value() for key in settings.api_keys] == ["one", "two"]
    assert settings.port == 9001


def test_file(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(
        "model:\n  - bt=/models/bt\n  - {name: bsr, path: /models/bsr, truncation: left}\n"
        "max_queue_tokens: 5\n"
    )
    settings = read("--config", str(path))
    assert models(settings) == [("bt", "/models/bt"), ("bsr", "/models/bsr")]
    assert [model.truncation for model in settings.model] == [None, "left"]
    assert settings.max_queue_tokens == 5


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("model: [/x]\ncolour: red\n", "colour"),
        ("model: [/x]\nport: many\n", "port"),
        ("model: []\n", "model"),
        ("model: [{path: /x, colour: red}]\n", "colour"),
        ("port: 1\n", "model"),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, text: str, key: str) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=key):
        read("--config", str(path))


def test_keys_do_not_show_when_settings_are_printed() -> None:
    assert "s3cret" not in repr(read("--model", "/x", "--api_keys", "s3cret"))
