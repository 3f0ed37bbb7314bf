"""``ace-em presets``."""

import sys
from argparse import Namespace

from ace_em.cli.options import Parser
from ace_em.presets import PRESETS, differences

DESCRIPTION = "Show the settings in which the presets differ."


def add_arguments(parser: Parser) -> None:
    """No arguments."""


def run(args: Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    table = Table("setting", *PRESETS, title="ace-em reconstruct --preset NAME")
    for name, values in differences():
        table.add_row(name, *(str(value) for value in values))
    # wide enough that no number is wrapped
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    return 0
