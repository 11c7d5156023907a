"""How every command of the project reads its settings and ends.

Precedence: command line > environment (``SUMZERO_``, nested by ``__``) > YAML file (``--config``).
A key is spelled the same in all three: ``loss.lambda`` in a file is ``--loss.lambda`` and
``SUMZERO_LOSS__LAMBDA``.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)

from reward_model.errors import SumzeroError, UsageError

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130

_config_file: ContextVar[Path | None] = ContextVar("config_file", default=None)


class Section(BaseModel):
    """A group of settings: frozen, and an unknown key is an error."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, use_attribute_docstrings=True
    )


class Settings(BaseSettings):
    """The settings of one command. Subclasses add fields; the sources are the same everywhere."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        use_attribute_docstrings=True,
        env_prefix="SUMZERO_",
        env_nested_delimiter="__",
        cli_exit_on_error=False,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        path = _config_file.get()
        if path is None:
            return init_settings, env_settings
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls, yaml_file=path)


S = TypeVar("S", bound=Settings)


def read_settings(settings_type: type[S], argv: Sequence[str], *, prog: str) -> S:
    """Read ``settings_type`` from ``argv``, the environment and the file named by ``--config``.

    Raises:
        UsageError: a missing or unreadable file, an unknown key, a value of the wrong type. The
            text names the key as it is spelled in a file.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    known, rest = parser.parse_known_args(list(argv))
    _check_file(known.config)
    token = _config_file.set(known.config)
    try:
        return settings_type(
            _cli_parse_args=_repeat_list_flags(settings_type, rest),
            _cli_prog_name=f"{prog} [--config FILE]",
        )
    except ValidationError as error:
        raise UsageError(_explain(error, settings_type)) from None
    except SettingsError as error:
        reason = str(error).removeprefix("error parsing CLI: ")
        raise UsageError(f"{reason} (see {prog} --help)") from None
    finally:
        _config_file.reset(token)


def run(
    settings_type: type[S],
    main: Callable[[S], None],
    *,
    prog: str,
    argv: Sequence[str] | None = None,
) -> int:
    """Read the settings, call ``main``, and turn how it ended into an exit code and one line."""
    try:
        main(read_settings(settings_type, sys.argv[1:] if argv is None else argv, prog=prog))
        return EXIT_DONE
    except KeyboardInterrupt:
        _say(prog, "interrupted")
        return EXIT_INTERRUPTED
    except Exception as error:
        if os.environ.get("SUMZERO_DEBUG"):
            traceback.print_exc()
        if isinstance(error, SumzeroError):
            _say(prog, str(error))
            return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED
        _say(prog, f"{type(error).__name__}: {error} (SUMZERO_DEBUG=1 shows the traceback)")
        return EXIT_FAILED


def _say(prog: str, text: str) -> None:
    print(f"{prog}: {' '.join(text.split())}", file=sys.stderr)


def _check_file(path: Path | None) -> None:
    if path is None:
        return
    if not path.is_file():
        raise UsageError(f"--config {path}: no such file")
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: not a YAML file: {error}") from None
    if content is not None and not isinstance(content, dict):
        raise UsageError(f"--config {path}: expected keys and values at the top level")


def _repeat_list_flags(settings_type: type[BaseSettings], argv: list[str]) -> list[str]:
    """``--model A B`` as ``--model A --model B``, the form pydantic-settings reads."""
    lists = {
        f"--{field.alias or name}"
        for name, field in settings_type.model_fields.items()
        if get_origin(field.annotation) in (list, tuple)
    }
    result: list[str] = []
    flag: str | None = None
    for index, word in enumerate(argv):
        if word.startswith("--"):
            flag = word if word in lists else None
            result.append(word)
        elif flag is not None and not argv[index - 1].startswith("--"):
            result += [flag, word]
        else:
            result.append(word)
    return result


def _explain(error: ValidationError, settings_type: type[BaseModel]) -> str:
    return "; ".join(_explain_one(detail, settings_type) for detail in error.errors())


def _explain_one(detail: Any, settings_type: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in detail["loc"]) or "settings"
    if detail["type"] == "extra_forbidden":
        return f"{key}: unknown key"
    if detail["type"] == "missing":
        flags = " and ".join(f"--{name}" for name in _required(settings_type, detail["loc"]))
        return f"{key}: required, give {flags or f'--{key}'} or set it in the --config file"
    return f"{key}: {detail['msg']}"


def _required(model: type[BaseModel], loc: Sequence[Any]) -> list[str]:
    """What has to be given of the section at ``loc``; nothing where there is no section."""
    for part in loc:
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        section = fields[part].annotation if part in fields else None
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            return []
        model = section
    names = [
        field.alias or name for name, field in model.model_fields.items() if field.is_required()
    ]
    return [".".join([*map(str, loc), name]) for name in names]
