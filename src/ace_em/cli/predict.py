"""``ace-em predict``."""

from argparse import Namespace
from pathlib import Path
from typing import Literal

from ace_em.cli.options import Parser, add_mode, mode
from ace_em.config import RunConfig

DESCRIPTION = "Poses of new particles from the encoder of a run and local refinement, without training."
SELECTION = ("subset", "exclude", "max_particles", "passthrough", "project")
"""Settings of a run that select particles and locate their images."""


def add_arguments(parser: Parser) -> None:
    parser.add_positional("particles", "RELION .star or cryoSPARC .cs file, box and pixel size as in the run")
    parser.add_option("run", str, ..., "folder of a finished run")
    parser.add_option("output", str, "", "file to write, .star or .cs; default: NAME_poses in the current folder", short="-o")
    parser.add_flag("overwrite", "replace the output")
    parser.add_option("contrast", Literal["auto", "white", "black"], "auto", "of the protein on disk")
    parser.add_option("threads", int, 0, "CPU threads; 0: all cores available to this process")
    parser.add_settings(RunConfig, only=SELECTION)
    parser.add_option("seed", int, 0, "random seed of --max-particles")
    add_mode(parser, "say nothing")


def run(args: Namespace) -> int:
    from ace_em.run.inputs import open_particles
    from ace_em.run.predict import predict
    from ace_em.run.reporter import Reporter

    source = Path(args.particles)
    particles = open_particles(source, RunConfig(**{name: getattr(args, name) for name in (*SELECTION, "seed")}))
    out = Path(args.output) if args.output else Path(f"{source.stem}_poses{source.suffix}")
    needed = [Path(name) for name in (args.subset, args.exclude, *args.passthrough.split(",")) if name]
    predict(particles, Path(args.run), out, args.overwrite, args.contrast, args.threads, Reporter(mode=mode(args)), needed)
    return 0
