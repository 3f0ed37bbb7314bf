"""What each command takes on its line, and how a line is read: hyphens, bare switches, settings files, presets."""

import argparse
import itertools
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from ace_em.config import PRESETS, RunConfig, SimulationConfig
from ace_em.errors import InputError, option

# the text below every field of a settings class is its help
set_parsing_settings(docstring_parse_attribute_docstrings=True)


class Parser(ArgumentParser):
    """Shows options as they are written everywhere else: --pixel-size, though the parser knows it as --pixel_size."""

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        return hyphenated(super().format_help(formatter))


def hyphenated(text: str) -> str:
    """Options in a text with hyphens."""
    return re.sub(r"--[a-z][\w.]*", lambda found: found[0].replace("_", "-"), text)


def simulate_parser() -> Parser:
    parser = Parser(description="Simulate a particle stack from a structure or a map.", exit_on_error=False)
    parser.add_argument("structure", type=str, help=".pdb, .cif (.gz too), .npz with coords and Z, or .mrc")
    parser.add_argument("-o", "--output", type=str, required=True, help="folder for particles.star, truth.star, volume.mrc")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier simulated set in that folder")
    parser.add_argument("--poses", type=str, default="", help="STAR file whose angles and origins are used, row by row")
    parser.add_argument("--ctf", type=str, default="", help="STAR file whose CTF columns are used, row by row")
    parser.add_class_arguments(SimulationConfig, None)
    parser.add_argument("--config", action="config", help="settings from a YAML file")
    return parser


def reconstruct_parser() -> Parser:
    parser = Parser(description="Particles to a map and poses, with no reference.", exit_on_error=False)
    parser.add_argument("particles", type=str, help="RELION .star file (3.0, 3.1 or later) or cryoSPARC .cs file")
    parser.add_argument("-o", "--output", type=str, required=True, help="folder for the run")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier run in that folder")
    parser.add_argument("--resume", action="store_true", help="go on with the run in that folder where it stopped")
    parser.add_argument("--quiet", action="store_true", help="say nothing but how it ended")
    parser.add_argument("--json", action="store_true", help="say everything as one JSON object a line")
    parser.add_class_arguments(RunConfig, None)
    parser.add_argument("--config", action="config", help="settings from a YAML file, such as RUN/config.yaml")
    return parser


def predict_parser() -> Parser:
    description = "Poses of particles that a run has not seen, from its encoder and a local step; nothing is trained."
    parser = Parser(description=description, exit_on_error=False)
    parser.add_argument("particles", type=str, help="RELION .star or cryoSPARC .cs file, box and pixel size as in the run")
    parser.add_argument("--run", type=str, required=True, help="folder of a finished run")
    parser.add_argument("-o", "--output", type=str, default="", help="file to write, .star or .cs; default: NAME_poses here")
    parser.add_argument("--overwrite", action="store_true", help="replace the output")
    parser.add_argument("--contrast", type=Literal["auto", "white", "black"], default="auto", help="of the protein on disk")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: the cores this process may use")
    for name in ("subset", "exclude", "project"):
        parser.add_argument(f"--{name}", type=str, default="", help="as for reconstruct")
    parser.add_argument("--max_particles", type=int, default=0, help="as for reconstruct")
    parser.add_argument("--seed", type=int, default=0, help="which particles --max-particles draws")
    parser.add_argument("--passthrough", type=str, default="", help="as for reconstruct")
    parser.add_argument("--quiet", action="store_true", help="say nothing")
    parser.add_argument("--json", action="store_true", help="say everything as one JSON object a line")
    return parser


def evaluate_parser() -> Parser:
    parser = Parser(description="Score a run against the truth of a simulated set.", exit_on_error=False)
    parser.add_argument("run", type=str, help="folder of a finished run")
    parser.add_argument("--truth", type=str, required=True, help="folder made by `ace-em simulate`")
    devices = Literal["auto", "cpu", "cuda", "mps"]
    parser.add_argument("--device", type=devices, default="auto", help="where the images are put into the map of the bound")
    return parser


def fsc_parser() -> Parser:
    parser = Parser(description="Fourier shell correlation of two maps.", exit_on_error=False)
    parser.add_argument("map1", type=str, help=".mrc")
    parser.add_argument("map2", type=str, help=".mrc of the same box and pixel size")
    parser.add_argument("--mask", type=str, default="", help=".mrc between 0 and 1; adds masked and corrected curves")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the phase randomisation")
    return parser


def report_parser() -> Parser:
    parser = Parser(description="Write RUN/report.html anew.", exit_on_error=False)
    parser.add_argument("run", type=str, help="folder of a run")
    return parser


def watch_parser() -> Parser:
    parser = Parser(description="Serve the page of a run, which follows it while it goes on.", exit_on_error=False)
    parser.add_argument("run", type=str, help="folder of a run")
    parser.add_argument("--port", type=int, default=8050, help="of the address to open in a browser; 0 takes any that is free")
    parser.add_argument("--host", type=str, default="127.0.0.1", help="address to listen on; beyond this machine with a token")
    return parser


def convert_parser() -> Parser:
    parser = Parser(description="Convert particles between RELION STAR and cryoSPARC .cs files.", exit_on_error=False)
    parser.add_argument("source", type=str, help="particles, .star or .cs; the images need not be there")
    parser.add_argument("target", type=str, help="file to write, .star or .cs")
    parser.add_argument(
        "--passthrough",
        type=str,
        action="append",
        help=".cs file with fields that the source lacks: a passthrough file of its job or, for a STAR file that RELION wrote, "
        "the .cs file that it came from; may be given several times",
    )
    parser.add_argument("--box", type=int, default=0, help="pixels per image edge, for a STAR file that does not say")
    parser.add_argument(
        "--contrast",
        type=Literal["", "white", "black"],
        default="",
        help="of the protein on disk, for a STAR file, which does not say; default: white, as RELION wants it",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the target")
    return parser


def presets_parser() -> Parser:
    return Parser(description="Show in which settings the presets differ.", exit_on_error=False)


PARSERS = {
    "simulate": simulate_parser,
    "reconstruct": reconstruct_parser,
    "predict": predict_parser,
    "presets": presets_parser,
    "evaluate": evaluate_parser,
    "fsc": fsc_parser,
    "report": report_parser,
    "convert": convert_parser,
    "watch": watch_parser,
}


_WRONG_VALUE = re.compile(r'Parser key "([\w.]+)": (?:Expected an? (.+?)\. Got value: (.*)|(.*))')
_TYPES = {"<class 'int'>": "a whole number", "<class 'float'>": "a number", "<class 'bool'>": "true or false"}


def in_plain_words(error: str) -> str:
    """What the parser says of an argument, without Python's names of types."""
    error = " ".join(error.split())
    found = _WRONG_VALUE.fullmatch(error)
    if found is None:
        return hyphenated(error)
    name, kind, value, other = found.groups()
    if kind is None:
        one_or_none = re.fullmatch(r"Does not validate .*Expected a (<class '\w+'>).*'NoneType'.* Given value: (.*)", other)
        if one_or_none is None:
            return f"{option(name)}: {other}"
        kind, value = one_or_none.groups()
    kind = re.sub(r"^typing\.Literal\[(.*)\]$", r"one of \1", _TYPES.get(kind, kind))
    return f"{option(name)} {value}: expected {kind}"


def underscored(argument: str) -> str:
    """Options may be written with hyphens: --pixel-size is --pixel_size."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _switches(config: type, prefix: str = "--") -> set[str]:
    """Options of a settings class that are on or off."""
    found = set()
    for field in fields(config):
        group: Any = field.default_factory
        if field.type in (bool, "bool"):
            found.add(prefix + field.name)
        elif isinstance(group, type) and is_dataclass(group):
            found |= _switches(group, f"{prefix}{field.name}.")
    return found


def switched_on(arguments: list[str]) -> list[str]:
    """A switch without a value, so before another option, a file or the end, means true: --flip_hand is --flip_hand true."""
    switches = _switches(RunConfig)
    done = []
    for argument, following in itertools.pairwise([*arguments, "-"]):
        bare = following.startswith("-") or "." in following or "/" in following
        done.append(f"{argument}=true" if argument in switches and bare else argument)
    return done


def config_first(arguments: list[str]) -> list[str]:
    """A settings file comes before everything else on the line, so that what the user types wins over it."""
    first: list[str] = []
    rest = list(arguments)
    for i in range(len(arguments) - 1, -1, -1):
        if rest[i] == "--config":
            first, rest = [*rest[i : i + 2], *first], rest[:i] + rest[i + 2 :]
        elif rest[i].startswith("--config="):
            first, rest = [rest[i], *first], rest[:i] + rest[i + 1 :]
    return first + rest


def settings_of_run(command: str, arguments: list[str]) -> list[str]:
    """A run that goes on has the settings that it was begun with, before those of the line."""
    if command != "reconstruct" or "--resume" not in arguments:
        return arguments
    # every way to write an option: -o RUN, -oRUN, --output=RUN
    reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    reader.add_argument("-o", "--output", default="")
    try:
        output = reader.parse_known_args(arguments)[0].output
    except argparse.ArgumentError:
        output = ""  # the command's own parser will say what is wrong
    settings = Path(output) / "config.yaml"
    return [f"--config={settings}", *arguments] if output and settings.is_file() else arguments


def _refuse_idle_preset(args: Namespace) -> None:
    """Refuse a preset beside a file, such as RUN/config.yaml, that sets all that presets set: it would be no more than a name."""
    for file in args.get("config") or []:
        settings = yaml.safe_load(Path(str(file)).read_text())
        held = settings.get("preset") if isinstance(settings, dict) else None
        if held not in PRESETS or held == args.preset:
            continue
        names = (name.split(".") for name in PRESETS[held] | PRESETS[args.preset])
        if all(name[-1] in ((settings.get(name[0]) or {}) if len(name) > 1 else settings) for name in names):
            raise InputError(f"--preset {args.preset}: {file} holds every setting of preset {held}; expected one of the two")


def parsed(parser: ArgumentParser, arguments: list[str]) -> Namespace:
    """Parse, and once more with the preset's values as the defaults when one is named: what the user sets wins over it."""
    # printing ends the parsing, so that it must wait for the preset
    args = parser.parse_args([a for a in arguments if not a.startswith("--print_config")])
    _refuse_idle_preset(args)
    parser.set_defaults(PRESETS[args.get("preset", "fast")])
    return parser.parse_args(arguments)
