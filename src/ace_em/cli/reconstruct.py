"""``ace-em reconstruct``."""

import shlex
from argparse import Namespace
from pathlib import Path

from ace_em.cli import NOT_CONVERGED
from ace_em.cli.options import Parser, add_mode, mode
from ace_em.config import RunConfig

DESCRIPTION = "Reconstruct a map and poses from particles, without a reference."


def add_arguments(parser: Parser) -> None:
    parser.add_positional("particles", "RELION .star file (3.0, 3.1 or later) or cryoSPARC .cs file")
    parser.add_option("output", str, ..., "folder for the run", short="-o")
    parser.add_flag("overwrite", "replace an earlier run in that folder")
    parser.add_flag("resume", "resume the run in that folder")
    add_mode(parser, "print only the outcome")
    parser.add_settings(RunConfig)


def run(args: Namespace) -> int:
    from ace_em.report.page import write_report
    from ace_em.run.pipeline import Request, reconstruct

    command = shlex.join(["ace-em", *args.typed])
    switches = args.overwrite, args.resume, mode(args)
    request = Request(Path(args.particles), Path(args.output), *switches, command, write_report)
    return 0 if reconstruct(request, args.settings).converged else NOT_CONVERGED
