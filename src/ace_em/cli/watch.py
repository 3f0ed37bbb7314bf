"""``ace-em watch``."""

from argparse import Namespace
from pathlib import Path

from ace_em.cli.options import Parser

DESCRIPTION = "Serve a live page of a run in progress."


def add_arguments(parser: Parser) -> None:
    parser.add_positional("run", "folder of a run")
    parser.add_option("port", int, 8050, "port of the page; 0 picks a free one")
    parser.add_option("host", str, "127.0.0.1", "address to listen on; other machines need a token")


def run(args: Namespace) -> int:
    from ace_em.report.live import watch

    watch(Path(args.run), args.host, args.port)
    return 0
