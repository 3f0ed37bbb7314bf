"""``ace-em simulate``."""

from argparse import Namespace
from pathlib import Path

from ace_em.cli.options import Parser
from ace_em.config import SimulationConfig

DESCRIPTION = "Simulate a particle stack from a structure or a map."


def add_arguments(parser: Parser) -> None:
    parser.add_positional("structure", ".pdb, .cif (.gz too), .npz with coords and Z, or .mrc")
    parser.add_option("output", str, ..., "folder for particles.star, truth.star, volume.mrc", short="-o")
    parser.add_flag("overwrite", "replace an earlier simulated data set in that folder")
    parser.add_option("poses", str, "", "STAR file with angles and origins to use, row by row")
    parser.add_option("ctf", str, "", "STAR file with CTF columns to use, row by row")
    parser.add_settings(SimulationConfig)


def run(args: Namespace) -> int:
    from ace_em.run.reporter import Reporter
    from ace_em.simulation.write import simulate

    reporter, files = Reporter(), (args.poses or None, args.ctf or None)
    with reporter.task("simulating", args.settings.n) as task:
        simulate(
            Path(args.structure), Path(args.output), args.settings, *files, args.overwrite, reporter.say, on_block=task.update
        )
    return 0
