"""``ace-em report``."""

from argparse import Namespace
from pathlib import Path

from ace_em.cli.options import Parser

DESCRIPTION = "Write RUN/report.html again."


def add_arguments(parser: Parser) -> None:
    parser.add_positional("run", "folder of a run")


def run(args: Namespace) -> int:
    from ace_em.report.page import write_report

    print(write_report(Path(args.run)))
    return 0
