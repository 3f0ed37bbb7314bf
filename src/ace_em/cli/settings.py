"""Settings of a command; precedence: defaults < preset < run being resumed < settings files < command line."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ace_em.cli.options import Parser, did_you_mean, expected, read, shown
from ace_em.config import changed
from ace_em.errors import InputError
from ace_em.presets import PRESETS


def arguments(parser: Parser, line: Sequence[str]) -> argparse.Namespace:
    """Arguments of a command; ``settings`` is an instance of its settings class."""
    typed = parser.typed(line)
    files = {name: settings_file(parser, name) for name in typed.pop("config", [])}
    resumed = settings_of_run(parser, _merged(files) | typed)
    given = _merged(resumed) | _merged(files) | typed
    if "preset" in parser.kinds:
        name = given.get("preset", parser.defaults["preset"])
        refuse_overridden_preset(name, resumed | files)
        given = PRESETS[name] | given
    missing = [written for name, written in parser.needed.items() if name not in given]
    if missing:
        raise InputError(f"missing {', '.join(missing)}")
    values = parser.defaults | given
    args = argparse.Namespace(**values)
    if parser.config:
        args.settings = changed(parser.config(), {name: values[name] for name in parser.settings})
    return args


def _merged(files: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {name: value for settings in files.values() for name, value in settings.items()}


def settings_of_run(parser: Parser, given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings of the run to be resumed, by the name of its config.yaml; empty without --resume."""
    file = Path(given.get("output", "")) / "config.yaml"
    if not (given.get("resume") and "output" in given and file.is_file()):
        return {}
    return {str(file): settings_file(parser, str(file))}


def settings_file(parser: Parser, name: str) -> dict[str, Any]:
    """Settings of a YAML file, by dotted name."""
    import yaml

    path = Path(name)
    if not path.is_file():
        raise InputError(f"--config {name}: {'not a file' if path.exists() else 'no such file'}")
    try:
        settings = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        raise InputError(f"{name}: {f'line {mark.line + 1}: ' if mark else ''}not YAML") from error
    if not isinstance(settings, dict):
        raise InputError(f"{name}: expected settings, such as a line 'seed: 1'")
    return dict(_checked(parser, name, settings))


def _checked(parser: Parser, file: str, settings: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    groups = {known[:dot] for known in parser.kinds for dot, mark in enumerate(known) if mark == "."}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if name in parser.kinds:
            try:
                yield name, read(parser.kinds[name], value)
            except (ValueError, OverflowError):
                raise InputError(f"{file}: {name} {shown(value)}: expected {expected(parser.kinds[name])}") from None
        elif name not in groups:
            raise InputError(f"{file}: no setting {shown(name)}{did_you_mean(name, [*parser.kinds, *groups])}")
        elif isinstance(value, dict):
            yield from _checked(parser, file, value, f"{name}.")
        elif value is not None:
            raise InputError(f"{file}: {name} {shown(value)}: expected a group of settings, indented below it")


def refuse_overridden_preset(preset: str, files: dict[str, dict[str, Any]]) -> None:
    """Raise InputError for --preset with a file that sets every setting of another preset, such as RUN/config.yaml."""
    for file, settings in files.items():
        in_file = settings.get("preset", preset)
        if in_file != preset and (PRESETS[in_file] | PRESETS[preset]).keys() <= settings.keys():
            raise InputError(f"--preset {preset}: {file} sets every setting of preset {in_file}; expected one of the two")


def as_yaml(parser: Parser, args: argparse.Namespace) -> str:
    """The arguments as the text of a settings file."""
    import yaml

    nested: dict[str, Any] = {}
    for name in parser.kinds:
        *groups, last = name.split(".")
        inner = nested
        for group in groups:
            inner = inner.setdefault(group, {})
        value = getattr(args, name)
        inner[last] = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(nested, sort_keys=False, allow_unicode=True)
