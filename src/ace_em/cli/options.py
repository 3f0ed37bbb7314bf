"""Command-line options from settings classes: each field is an option, and the string below it its help."""

import argparse
import ast
import dataclasses
import difflib
import functools
import inspect
import math
import re
import sys
import textwrap
import typing
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from ace_em.errors import InputError, option

WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
NEGATIVE_NUMBER = re.compile(r"-\.?\d")
EPILOG = "A switch (true|false) needs no value: --NAME turns it on, --no-NAME off."


def read(kind: Any, given: Any) -> Any:
    """Parse a value of type ``kind`` from the command line or a settings file.

    Raises
    ------
    ValueError, OverflowError
        if it is not such a value.
    """
    parts = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return given if given in parts else _refuse()
    if type(None) in parts:
        if given in (None, "none", "null"):
            return None
        return read(next(part for part in parts if part is not type(None)), given)
    if typing.get_origin(kind) is tuple:
        if isinstance(given, str):
            inside = given.strip().removeprefix("[").removesuffix("]").strip()
            given = inside.split(",") if inside else []
        return tuple(read(parts[0], item) for item in given) if isinstance(given, list | tuple) else _refuse()
    if kind is bool:
        return given if isinstance(given, bool) else WORDS[given.lower()] if str(given).lower() in WORDS else _refuse()
    if kind is str:
        return given if isinstance(given, str) else _refuse()
    if isinstance(given, bool) or not isinstance(given, str | int | kind):
        _refuse()
    number = kind(given)
    return number if math.isfinite(number) else _refuse()


def _refuse() -> typing.NoReturn:
    raise ValueError


def expected(kind: Any) -> str:
    """Description of the values of a type, for messages."""
    parts = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        *most, last = [str(choice) for choice in parts if choice != ""]
        return f"{', '.join(most)} or {last}" if most else last
    if type(None) in parts:
        return f"{expected(next(part for part in parts if part is not type(None)))} or none"
    if typing.get_origin(kind) is tuple:
        return "numbers separated by commas"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]


def shown(value: Any) -> str:
    """A value as typed on the command line."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(shown, value))
    return "{...}" if isinstance(value, dict) else " ".join(str(value).split())


def did_you_mean(name: str, known: Sequence[str], mark: str = "") -> str:
    """Suggestion at the end of a message; ``mark`` precedes each name."""
    inside = [full for full in known if full.endswith(f".{name}")]
    near = inside or difflib.get_close_matches(name, known, 1, 0.65)
    return f"; did you mean {' or '.join(mark + full for full in near)}?" if near else ""


def placeholder(kind: Any, name: str) -> str:
    """Placeholder of the value in the help."""
    parts = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return "{" + ",".join(str(choice) for choice in parts if choice != "") + "}"
    if type(None) in parts:
        return placeholder(next(part for part in parts if part is not type(None)), name)
    if typing.get_origin(kind) is tuple:
        return "X,X,..."
    return {int: "N", float: "X", bool: "[true|false]"}.get(kind, name.upper().replace("_", "-"))


@dataclasses.dataclass(frozen=True)
class Setting:
    """A field of a settings class: dotted name, type, default, help, and the summary of the class."""

    name: str
    kind: Any
    default: Any
    help: str
    group: str


def settings_of(config: type, prefix: str = "") -> Iterator[Setting]:
    """All settings of a settings class, nested ones included."""
    kinds, defaults = typing.get_type_hints(config), config()
    summary, helps = _texts(config.__module__)[config.__name__]
    for field in dataclasses.fields(config):
        kind, name = kinds[field.name], prefix + field.name
        if dataclasses.is_dataclass(kind):
            yield from settings_of(typing.cast(type, kind), f"{name}.")
        else:
            yield Setting(name, kind, getattr(defaults, field.name), helps.get(field.name, ""), summary)


@functools.cache
def _texts(module: str) -> dict[str, tuple[str, dict[str, str]]]:
    """First line of the docstring, and the string below each field, for every class of a module."""
    found = {}
    for node in ast.parse(inspect.getsource(sys.modules[module])).body:
        if isinstance(node, ast.ClassDef):
            helps: dict[str, str] = {}
            for field, below in zip(node.body, node.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
                    helps[field.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
            found[node.name] = ((ast.get_docstring(node) or node.name).splitlines()[0].rstrip("."), helps)
    return found


class Value:
    """Parser of the value of one option."""

    def __init__(self, name: str, kind: Any) -> None:
        self.name, self.kind = name, kind

    def __call__(self, text: str) -> Any:
        try:
            return read(self.kind, text)
        except (ValueError, OverflowError):
            raise InputError(f"{self.name} {shown(text)}: expected {expected(self.kind)}") from None


class Formatter(argparse.HelpFormatter):
    """Does not break help text at the hyphens of options."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class Parser(argparse.ArgumentParser):
    """Argument parser of one command. Options may use hyphens or underscores; switches may have a value or none.

    Attributes
    ----------
    kinds : type of each argument, by name.
    defaults : default values of optional arguments.
    needed : names of required arguments, and how they are typed.
    positionals : names and help of positional arguments, in order.
    config : settings class of the command, or None.
    settings : names of its settings.
    """

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog, description=description, formatter_class=Formatter, allow_abbrev=False, exit_on_error=False, add_help=False
        )
        self.kinds: dict[str, Any] = {}
        self.defaults: dict[str, Any] = {}
        self.needed: dict[str, str] = {}
        self.positionals: dict[str, str] = {}
        self.config: type | None = None
        self.settings: set[str] = set()
        self._groups: dict[str, Any] = {}
        self.add_argument("-h", "--help", action="help", help="show this help and exit")

    def add_positional(self, name: str, help: str) -> None:
        self.positionals[name] = help.replace("%", "%%")
        self.kinds[name], self.needed[name] = str, name

    def add_flag(self, name: str, help: str) -> None:
        """Add an option without a value."""
        self.add_argument(option(name), dest=name, action="store_true", default=argparse.SUPPRESS, help=help)
        self.kinds[name], self.defaults[name] = bool, False

    def add_option(
        self, name: str, kind: Any, default: Any, help: str, *, short: str = "", many: bool = False, group: str = ""
    ) -> None:
        """Add an option with a value. ``default=...``: required; ``many``: may be repeated."""
        written, text = option(name), help.replace("%", "%%")
        if default is ...:
            self.needed[name] = written
        else:
            self.defaults[name] = default
        if default not in (..., "") and not many:
            off = f"; off: --no-{written[2:]}" if default is True else ""
            text = f"{text} (default: {shown(default)}{off})"
        if group and group not in self._groups:
            self._groups[group] = self.add_argument_group(group)
        self._groups.get(group, self).add_argument(
            *filter(None, (short, written)),
            dest=name,
            action="append" if many else "store",
            type=Value(written, kind),
            default=argparse.SUPPRESS,
            metavar=placeholder(kind, name.rpartition(".")[2]),
            help=text,
        )
        if not many:
            self.kinds[name] = kind

    def add_settings(self, config: type, only: Sequence[str] = ()) -> None:
        """Add an option for every setting of a settings class, or for ``only`` some of them."""
        if not only:
            self.config = config
            self.add_option(
                "config", str, None, "settings in YAML, as printed by --print-config; options take precedence", many=True
            )
            self.epilog = EPILOG
            self.add_argument(
                "--print-config", action="store_true", default=argparse.SUPPRESS, help="print the settings as YAML and exit"
            )
        for setting in settings_of(config):
            if not only or setting.name in only:
                group = "" if only else setting.group
                self.add_option(setting.name, setting.kind, setting.default, setting.help, group=group)
                self.settings.add(setting.name)

    def format_usage(self) -> str:
        must = [f"{a.option_strings[0]} {a.metavar}" for a in self._actions if a.dest in self.needed]
        return " ".join(["usage:", self.prog, *self.positionals, *must, "[options]"]) + "\n"

    def format_help(self) -> str:
        formatter = self._get_formatter()
        formatter.add_text(self.description)
        formatter.start_section("arguments")
        formatter.add_arguments([argparse.Action([], name, help=help) for name, help in self.positionals.items()])
        formatter.end_section()
        for group in self._action_groups:
            formatter.start_section(group.title)
            formatter.add_arguments(group._group_actions)
            formatter.end_section()
        formatter.add_text(self.epilog)
        return f"{self.format_usage()}\n{formatter.format_help()}"

    def typed(self, line: Sequence[str]) -> dict[str, Any]:
        """Arguments given on the command line, without defaults."""
        words, after = self._normalised(list(line))
        try:
            found, left = self.parse_known_args(words)
        except argparse.ArgumentError as error:
            name = str(error.argument_name).rpartition("/")[2]
            value = self._option_string_actions[name].type
            kind = value.kind if isinstance(value, Value) else None
            reason = "takes no value" if kind is None else "expected a value" if kind is str else f"expected {expected(kind)}"
            raise InputError(f"{name}: {reason}") from error
        for word in left:
            if word.startswith("-") and word != "-":
                name = word.partition("=")[0]
                raise InputError(f"{name}: no such option{did_you_mean(name.lstrip('-'), self._names(), '--')}")
        given = [*left, *after]
        if len(given) > len(self.positionals):
            raise InputError(f"{shown(given[len(self.positionals)])}: one argument too many")
        return vars(found) | dict(zip(self.positionals, given, strict=False))

    def _names(self) -> list[str]:
        known = [name[2:] for name in self._option_string_actions if name.startswith("--")]
        return known + [f"no-{name}" for name in known if self._is_switch(f"--{name}")]

    def _normalised(self, words: list[str]) -> tuple[list[str], list[str]]:
        """The line with hyphens in options and ``--name=value`` for switches and negative numbers; and the words after ``--``."""
        done: list[str] = []
        while words:
            word = words.pop(0)
            if word == "--":
                return done, words
            name, equals, value = word.partition("=")
            if not word.startswith("--"):
                done.append(word)
                continue
            name = option(name[2:])
            if self._is_switch(name):
                if not equals:
                    bare = not words or words[0].startswith("-") or "." in words[0] or "/" in words[0]
                    value = "true" if bare else words.pop(0)
                equals = "="
            elif name.startswith("--no-") and self._is_switch(f"--{name[5:]}"):
                if equals:
                    raise InputError(f"{name}: takes no value")
                name, equals, value = f"--{name[5:]}", "=", "false"
            elif not equals and words and NEGATIVE_NUMBER.match(words[0]):
                equals, value = "=", words.pop(0)
            done.append(name + equals + value)
        return done, []

    def _is_switch(self, name: str) -> bool:
        action = self._option_string_actions.get(name)
        return action is not None and isinstance(action.type, Value) and action.type.kind is bool

    def error(self, message: str) -> typing.NoReturn:
        raise InputError(message)


def add_mode(parser: Parser, quiet: str) -> None:
    """Add --quiet and --json."""
    parser.add_flag("quiet", quiet)
    parser.add_flag("json", "print everything as JSON, one object per line")


def mode(args: argparse.Namespace) -> Literal["text", "quiet", "json"]:
    return "json" if args.json else "quiet" if args.quiet else "text"
