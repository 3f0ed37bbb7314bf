"""The command line. Nothing heavy is imported before a command runs: ``ace-em --help`` must not wait for torch."""

import errno
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, Namespace

from ace_em import __version__
from ace_em.cli.arguments import PARSERS, config_first, in_plain_words, parsed, settings_of_run, switched_on, underscored
from ace_em.config import PRESETS, RunConfig, SimulationConfig
from ace_em.errors import Diverged, InputError
from ace_em.run.reporter import Mode

NOT_CONVERGED = 3
BAD_PATH = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP)
"""What the system says of a path that is the user's to mend."""
BAD_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE)
"""And of a disk: a run goes on once that is mended."""
INTERRUPTED = 130


def run_simulate(args: Namespace) -> int:
    from ace_em.simulation.write import simulate

    config = SimulationConfig(**_fields(args, SimulationConfig))
    simulate(Path(args.structure), Path(args.output), config, args.poses or None, args.ctf or None, args.overwrite)
    return 0


def run_presets(args: Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from ace_em.config import differences

    table = Table("setting", *PRESETS, title="ace-em reconstruct --preset NAME")
    for name, values in differences():
        table.add_row(name, *(str(value) for value in values))
    # as wide as it is: a folded number is no number
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    return 0


def run_reconstruct(args: Namespace) -> int:
    config = RunConfig(**_fields(args, RunConfig))
    from ace_em.run.pipeline import Request, reconstruct

    command = shlex.join(["ace-em", *args.typed])
    request = Request(Path(args.particles), Path(args.output), args.overwrite, args.resume, _mode(args), command)
    verdict = reconstruct(request, config)
    return 0 if verdict.converged else NOT_CONVERGED


def run_predict(args: Namespace) -> int:
    from ace_em.run.inputs import open_particles
    from ace_em.run.predict import predict
    from ace_em.run.reporter import Reporter

    source = Path(args.particles)
    chosen = {name: getattr(args, name) for name in ("subset", "exclude", "max_particles", "seed", "project")}
    particles = open_particles(source, RunConfig(**chosen, passthrough=args.passthrough))
    out = Path(args.output) if args.output else Path(f"{source.stem}_poses{source.suffix}")
    needed = [Path(name) for name in (args.subset, args.exclude, *args.passthrough.split(",")) if name]
    predict(particles, Path(args.run), out, args.overwrite, args.contrast, args.threads, Reporter(mode=_mode(args)), needed)
    return 0


def run_evaluate(args: Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from ace_em.run.evaluation import evaluate, insertion_device
    from ace_em.run.reporter import Reporter

    result = evaluate(Path(args.run), Path(args.truth), insertion_device(args.device), Reporter())
    table = Table("measure", "value", title=f"{args.run} against {args.truth}")
    for name, value in asdict(result).items():
        if not isinstance(value, list):
            table.add_row(name, value if isinstance(value, str) else f"{value:.5g}")
    Console().print(table)
    if (report := Path(args.run) / "report.html").is_file():
        print(f"{report} shows the truth beside")
    return 0


def run_fsc(args: Namespace) -> int:
    from ace_em.cli.fsc import compare_maps

    compare_maps(Path(args.map1), Path(args.map2), Path(args.mask) if args.mask else None, args.seed)
    return 0


def run_report(args: Namespace) -> int:
    from ace_em.report.page import write_report

    print(write_report(Path(args.run)))
    return 0


def run_watch(args: Namespace) -> int:
    from ace_em.report.live import watch

    watch(Path(args.run), args.host, args.port)
    return 0


def run_convert(args: Namespace) -> int:
    from ace_em.data.convert import convert

    passthrough = [Path(name) for name in args.passthrough or []]
    convert(Path(args.source), Path(args.target), passthrough, args.overwrite, box=args.box, contrast=args.contrast)
    return 0


COMMANDS = {
    "simulate": run_simulate,
    "reconstruct": run_reconstruct,
    "predict": run_predict,
    "presets": run_presets,
    "evaluate": run_evaluate,
    "fsc": run_fsc,
    "report": run_report,
    "convert": run_convert,
    "watch": run_watch,
}


def _mode(args: Namespace) -> Mode:
    return "json" if args.json else "quiet" if args.quiet else "text"


def _fields(args: Namespace, config: type) -> dict[str, Any]:
    return {name: getattr(args, name) for name in config.__dataclass_fields__}  # type: ignore[attr-defined]


def _usage() -> str:
    lines = [f"ace-em {__version__}: from cryo-EM particle images to a map and poses, with no reference", "", "commands:"]
    for name, build in PARSERS.items():
        lines.append(f"  {name:12s} {build().description}")
    return "\n".join([*lines, "", "`ace-em COMMAND --help` lists a command's options."])


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits with 0, 3 (a run that did not converge), 2 (input or option wrong), 1 (anything else) or 130
    (interrupted)."""
    # idle OpenMP threads that spin starve others on a shared machine; must be set before torch is imported
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
        print(f"ace-em: no command '{argv[0]}'; expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    parser = PARSERS[argv[0]]()
    parser.prog = f"ace-em {argv[0]}"
    try:
        # a batch system ends a job by SIGTERM: its state is to be kept as after Ctrl-C
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        typed = switched_on([underscored(a) for a in argv[1:]])
        args = parser.instantiate(parsed(parser, config_first(settings_of_run(argv[0], typed))))
        args.typed = argv
        return COMMANDS[argv[0]](args)
    except ArgumentError as error:
        print(f"ace-em {argv[0]}: {in_plain_words(str(error))}", file=sys.stderr)
        return 2
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
        hint = "; when that is mended, the same command with --resume goes on" if argv[0] == "reconstruct" else ""
        print(f"ace-em {argv[0]}: {where}{error.strerror}{hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"ace-em {argv[0]}: interrupted", file=sys.stderr)
        return INTERRUPTED
