"""The command line, one module per command. They import torch only when they run, so that ``--help`` is fast."""

import errno
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from ace_em import __version__
from ace_em.cli.options import Parser, did_you_mean
from ace_em.cli.settings import arguments, as_yaml
from ace_em.errors import Diverged, InputError

NOT_CONVERGED = 3
BAD_PATH = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP)
"""Errors of a path that the user can correct."""
BAD_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE)
"""Errors of a disk; a run can be resumed once they are resolved."""
INTERRUPTED = 130


COMMANDS = ("simulate", "reconstruct", "predict", "presets", "evaluate", "fsc", "report", "convert", "watch")


def module_of(command: str) -> ModuleType:
    return import_module(f"ace_em.cli.{command}")


def parser_of(command: str) -> Parser:
    module = module_of(command)
    parser = Parser(f"ace-em {command}", module.DESCRIPTION)
    module.add_arguments(parser)
    return parser


def _usage() -> str:
    lines = [f"ace-em {__version__}: from cryo-EM particle images to a map and poses, with no reference", "", "commands:"]
    lines += [f"  {name:12s} {module_of(name).DESCRIPTION}" for name in COMMANDS]
    return "\n".join([*lines, "", "`ace-em COMMAND --help` lists a command's options."])


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exit codes: 0, 2 (wrong input or option), 3 (run did not converge), 130 (interrupted), 1 (other errors)."""
    # spinning idle OpenMP threads slow down other processes; must be set before torch is imported
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(_run(list(sys.argv[1:] if argv is None else argv)))


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if argv[0] == "--version":
        print(__version__)
        return 0
    if argv[0] not in COMMANDS:
        hint = did_you_mean(argv[0], COMMANDS) or f"; expected one of {', '.join(COMMANDS)}"
        print(f"ace-em: no command '{argv[0]}'{hint}", file=sys.stderr)
        return 2
    try:
        # batch systems end jobs with SIGTERM: save the state as after Ctrl-C
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        parser = parser_of(argv[0])
        args = arguments(parser, argv[1:])
        if getattr(args, "print_config", False):
            print(as_yaml(parser, args), end="")
            return 0
        args.typed = argv
        return int(module_of(argv[0]).run(args))
    except InputError as error:
        print(f"ace-em {argv[0]}: {error}", file=sys.stderr)
        return 2
    except Diverged as error:
        print(f"ace-em {argv[0]}: {error}", file=sys.stderr)
        return NOT_CONVERGED
    except OSError as error:
        if error.errno in BAD_PATH and error.filename is not None:
            print(f"ace-em {argv[0]}: {error.filename}: {error.strerror}", file=sys.stderr)
            return 2
        if error.errno not in BAD_DISK:
            raise
        where = f"{error.filename}: " if error.filename else ""
        hint = "; once this is resolved, continue with the same command and --resume" if argv[0] == "reconstruct" else ""
        print(f"ace-em {argv[0]}: {where}{error.strerror}{hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"ace-em {argv[0]}: interrupted", file=sys.stderr)
        return INTERRUPTED
