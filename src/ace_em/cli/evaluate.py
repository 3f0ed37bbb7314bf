"""``ace-em evaluate``."""

from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from ace_em.cli.options import Parser

DESCRIPTION = "Compare a run with the truth of a simulated data set."


def add_arguments(parser: Parser) -> None:
    parser.add_positional("run", "folder of a finished run")
    parser.add_option("truth", str, ..., "folder made by `ace-em simulate`")
    devices = Literal["auto", "cpu", "cuda", "mps"]
    parser.add_option("device", devices, "auto", "device for the reconstruction at true poses")


def run(args: Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from ace_em.report.page import write_report
    from ace_em.run.evaluation import evaluate, insertion_device
    from ace_em.run.reporter import Reporter

    result = evaluate(Path(args.run), Path(args.truth), insertion_device(args.device), Reporter())
    table = Table("measure", "value", title=f"{args.run} against {args.truth}")
    for name, value in asdict(result).items():
        if not isinstance(value, list):
            table.add_row(name, value if isinstance(value, str) else f"{value:.5g}")
    Console().print(table)
    # update the report of a finished run with the curve against the truth
    if (Path(args.run) / "report.html").is_file():
        print(f"{write_report(Path(args.run))} now includes the comparison")
    return 0
