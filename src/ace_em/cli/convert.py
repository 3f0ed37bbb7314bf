"""``ace-em convert``."""

from argparse import Namespace
from pathlib import Path
from typing import Literal

from ace_em.cli.options import Parser

DESCRIPTION = "Convert particles between RELION STAR and cryoSPARC .cs files."
PASSTHROUGH = """.cs file with fields that the source lacks: a passthrough file of its job or, for a STAR file from RELION, \
the original .cs file; may be given several times"""
CONTRAST = "of the protein on disk, for a STAR file, which does not record it; default white, RELION's convention"


def add_arguments(parser: Parser) -> None:
    parser.add_positional("source", "particles, .star or .cs; the images are not needed")
    parser.add_positional("target", "file to write, .star or .cs")
    parser.add_option("passthrough", str, None, PASSTHROUGH, many=True)
    parser.add_option("box", int, 0, "pixels per image edge, for a STAR file without rlnImageSize")
    parser.add_option("contrast", Literal["", "white", "black"], "", CONTRAST)
    parser.add_flag("overwrite", "replace the target")


def run(args: Namespace) -> int:
    from ace_em.data.convert import convert

    passthrough = [Path(name) for name in args.passthrough or []]
    convert(Path(args.source), Path(args.target), passthrough, args.overwrite, box=args.box, contrast=args.contrast)
    return 0
