"""``ace-em watch``."""

from argparse import Namespace
from pathlib import Path

from ace_em.cli.options import Parser

DESCRIPTION = "Serve the page of a run, which follows it while it goes on."


def add_arguments(parser: Parser) -> None:
    parser.add_positional("run", "folder of a run")
    parser.add_option("port", int, 8050, "of the address to open in a browser; 0 takes any that is free")
    parser.add_option("host", str, "127.0.0.1", "address to listen on; beyond this machine with a token")


def run(args: Namespace) -> int:
    from ace_em.report.live import watch

    watch(Path(args.run), args.host, args.port)
    return 0
