"""The command line as a user meets it: what it accepts, what it says, and with which code it ends."""

import dataclasses
import errno
import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from ace_em import cli
from ace_em.cli.options import Parser
from ace_em.cli.settings import arguments
from ace_em.config import RunConfig, SimulationConfig, changed, flat
from ace_em.errors import InputError, option

Result = tuple[int, str, str]
PYTHON = r"Traceback|usage|class|NoneType|argument -|\b(int|float|str|bool|tuple|dict)\b"
HEAVY = (
    "torch",
    "numpy",
    "yaml",
    "rich",
    "roma",
    "lightning_fabric",
    "pandas",
    "matplotlib",
    "gemmi",
    "mrcfile",
    "astropy",
    "scipy",
)


@pytest.fixture
def ace_em(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a command line in an empty folder: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> Result:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(a) for a in args])
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, captured.out, captured.err

    return run


def in_a_new_process(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120)


def modules_loaded_by(args: list[str], cwd: Path) -> str:
    """Heavy modules that a command line has imported by the time it ends."""
    code = (
        f"import sys\nfrom ace_em.cli import main\ntry:\n    main({args!r})\nexcept SystemExit:\n    pass\n"
        f"print('LOADED', *(m for m in {HEAVY!r} if m in sys.modules))"
    )
    return in_a_new_process(code, cwd).stdout.splitlines()[-1]


@pytest.mark.parametrize("args", [["--help"], ["reconstruct", "--help"], ["simulate", "--help"], ["reconstruct", "p.star"]])
def test_help_and_refusal_import_nothing_heavy(args: list[str], tmp_path: Path) -> None:
    assert modules_loaded_by(args, tmp_path) == "LOADED"


def test_the_probe_for_heavy_modules_sees_torch(tmp_path: Path) -> None:
    assert "torch" in modules_loaded_by(["fsc", "a.mrc", "b.mrc"], tmp_path).split()


def test_console_script_is_main_and_its_exit_code_arrives(tmp_path: Path) -> None:
    (script,) = entry_points(group="console_scripts", name="ace-em")
    assert script.load() is cli.main
    result = in_a_new_process("import sys; sys.argv = ['ace-em', 'nope']; from ace_em.cli import main; main()", tmp_path)
    assert result.returncode == 2 and result.stdout == "" and len(result.stderr.splitlines()) == 1


def test_idle_threads_do_not_spin(tmp_path: Path) -> None:
    code = (
        "import os, sys\nos.environ.pop('OMP_WAIT_POLICY', None)\nfrom ace_em.cli import main\n"
        "try:\n    main(['--version'])\nexcept SystemExit:\n    print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    )
    assert in_a_new_process(code, tmp_path).stdout.split()[-2:] == ["PASSIVE", "False"]


def test_version(ace_em: Callable[..., Result]) -> None:
    assert ace_em("--version") == (0, version("ace-em") + "\n", "")


@pytest.mark.parametrize("args", [(), ("--help",), ("-h",)])
def test_usage_names_every_command(ace_em: Callable[..., Result], args: tuple[str, ...]) -> None:
    code, out, err = ace_em(*args)
    assert code == 0 and err == ""
    listed = {line.split()[0] for line in out.splitlines() if line.startswith("  ")}
    assert listed == set(cli.COMMANDS) >= {"simulate", "reconstruct", "evaluate", "fsc", "report"}


@pytest.mark.parametrize(("command", "config"), [("simulate", SimulationConfig), ("reconstruct", RunConfig)])
def test_help_of_a_command_names_every_setting(ace_em: Callable[..., Result], command: str, config: type) -> None:
    code, out, _ = ace_em(command, "--help")
    assert code == 0
    for name in flat(config()):
        assert f"  {option(name)} " in out
    # as it is typed everywhere else
    assert not re.search(r"--\w[\w.]*_", out)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["nope"], ["nope", "reconstruct"]),
        (["--frobnicate"], ["--frobnicate"]),
        (["repot", "run"], ["no command 'repot'; did you mean report?"]),
        (["reconstruct", "p.star", "-o", "run", "--frobnicate", "3"], ["--frobnicate: no such option\n"]),
        (["reconstruct", "p.star", "-o", "run", "--ace.frobnicate", "3"], ["--ace.frobnicate: no such option\n"]),
        (["simulate", "s.pdb", "-o", "sim", "--frobnicate"], ["frobnicate"]),
        (["evaluate", "run", "--truth", "sim", "--frobnicate", "1"], ["frobnicate"]),
        (["fsc", "a.mrc", "b.mrc", "--frobnicate", "1"], ["frobnicate"]),
        (["report", "run", "--frobnicate", "1"], ["frobnicate"]),
        (["reconstruct", "p.star"], ["missing --output\n"]),
        (["reconstruct"], ["missing particles, --output\n"]),
        (["reconstruct", "-o", "run"], ["missing particles\n"]),
        (["evaluate", "run"], ["missing --truth\n"]),
        (["fsc", "a.mrc"], ["missing map2\n"]),
        (["fsc", "a.mrc", "--seed", "1"], ["missing map2\n"]),
        (["reconstruct", "p.star", "-o", "run", "extra"], ["extra: one argument too many"]),
        (["presets", "--", "--fast"], ["--fast: one argument too many"]),
        (["reconstruct", "p.star", "-o", "run", "--ace.steps", "many"], ["--ace.steps many", "whole number"]),
        (["reconstruct", "p.star", "-o", "run", "--ace.steps", "1.5"], ["--ace.steps 1.5", "whole number"]),
        (["reconstruct", "p.star", "-o", "run", "--diameter", "wide"], ["--diameter wide", "a number"]),
        (
            ["reconstruct", "p.star", "-o", "run", "--ace.alternatives", "perhaps"],
            ["--ace.alternatives perhaps", "true or false"],
        ),
        (["reconstruct", "p.star", "-o", "run", "--b-factor", "sharp"], ["--b-factor sharp", "a number"]),
        (
            ["reconstruct", "p.star", "-o", "run", "--final-boxx", "3"],
            ["--final-boxx: no such option; did you mean --final-box?"],
        ),
        (
            ["reconstruct", "p.star", "-o", "run", "--steps", "3"],
            ["--steps: no such option; did you mean --ace.steps or --predict.steps?"],
        ),
        (["reconstruct", "p.star", "-o", "run", "--no-flip-hnd"], ["did you mean --no-flip-hand?"]),
        (["reconstruct", "p.star", "-o", "run", "--no-flip-hand=true"], ["--no-flip-hand: takes no value"]),
        (["reconstruct", "p.star", "-o", "run", "--no-ace.steps"], ["--no-ace.steps: no such option"]),
        (["reconstruct", "p.star", "-o", "run", "--resume=true"], ["--resume: takes no value"]),
        # no option may be cut short: a new one would change what it means
        (["reconstruct", "p.star", "--out", "run"], ["--out: no such option; did you mean --output?"]),
        (["reconstruct", "p.star", "-o", "run", "-x"], ["-x: no such option"]),
        (["reconstruct", "p.star", "-o", "run", "--ace.steps"], ["--ace.steps: expected a whole number"]),
        (["reconstruct", "p.star", "-o", "run", "--ace.steps", "--resume"], ["--ace.steps: expected a whole number"]),
        (["reconstruct", "p.star", "-o"], ["--output: expected a value"]),
        (["reconstruct", "p.star", "-o", "run", "--ace.steps", "many\nmore"], ["--ace.steps many more: expected"]),
        (["reconstruct", "p.star", "-o", "run", "--diameter", "inf"], ["--diameter inf", "a number"]),
        (["reconstruct", "p.star", "-o", "run", "--ace.milestones", "0.5,late"], ["0.5,late", "numbers separated by commas"]),
        (["reconstruct", "p.star", "-o", "run", "--predict.bands", "1,,2"], ["--predict.bands 1,,2: expected numbers"]),
        (["reconstruct", "p.star", "-o", "run", "--device", "gpu"], ["--device gpu: expected auto, cpu, cuda or mps"]),
        (["convert", "a.star", "b.cs", "--contrast", "grey"], ["--contrast grey: expected white or black"]),
        (["simulate", "s.pdb", "-o", "sim", "--n", "2x"], ["--n 2x", "whole number"]),
        (["simulate", "s.pdb", "-o", "sim", "--snr-db", "nan"], ["--snr-db nan", "a number"]),
        (["simulate", "s.pdb", "-o", "sim", "--seed"], ["seed"]),
        (["reconstruct", "p.star", "-o", "run", "--config", "no.yaml"], ["--config no.yaml: no such file"]),
        (["reconstruct", "p.star", "-o", "run", "--config", "."], ["--config .: not a file"]),
    ],
    ids=" ".join,
)
def test_refusal_is_one_line(ace_em: Callable[..., Result], tmp_path: Path, args: list[str], words: list[str]) -> None:
    code, out, err = ace_em(*args)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1 and err.startswith("ace-em") and not re.search(PYTHON, err)
    for word in words:
        assert word in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ace: {steps: x}", "ace.steps x: expected a whole number"),
        ("ace: {steps: 5.5}", "ace.steps 5.5: expected a whole number"),
        ("ace: {steps: true}", "ace.steps true: expected a whole number"),
        ("ace: {steps: {more: 3}}", "ace.steps {...}: expected a whole number"),
        ("seed: null", "seed none: expected a whole number"),
        ("seed: [1, 2]", "seed 1,2: expected a whole number"),
        ("diameter: .inf", "diameter inf: expected a number"),
        (f"diameter: 1{'0' * 400}", f"diameter 1{'0' * 400}: expected a number"),
        ("symmetry: 3", "symmetry 3: expected text"),
        ("flip_hand: 1", "flip_hand 1: expected true or false"),
        ("resume: 1", "resume 1: expected true or false"),
        ("device: [cpu]", "device cpu: expected auto, cpu, cuda or mps"),
        ("ace: {milestones: 0.5}", "ace.milestones 0.5: expected numbers separated by commas"),
        ("ac: {steps: 3}", "no setting ac; did you mean ace?"),
        ("steps: 3", "no setting steps; did you mean ace.steps or predict.steps?"),
        ("ace: {stepz: 3}", "no setting ace.stepz; did you mean ace.steps?"),
        ("final-box: 32", "no setting final-box; did you mean final_box?"),
        ("frobnicate: 1", "no setting frobnicate"),
        ("config: c.yaml", "no setting config"),
        ("ace: 3", "ace 3: expected a group of settings, indented below it"),
        ("seed: 1\n: [", "line 2: not YAML"),
        ("seed: \x00", "not YAML"),
        ("just words", "expected settings, such as a line 'seed: 1'"),
        ("", "expected settings, such as a line 'seed: 1'"),
    ],
)
def test_config_file_that_is_wrong(ace_em: Callable[..., Result], tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    code, out, err = ace_em("reconstruct", "p.star", "-o", "run", "--config", "c.yaml")
    assert (code, out, err) == (2, "", f"ace-em reconstruct: c.yaml: {said}\n")
    assert [p.name for p in tmp_path.iterdir()] == ["c.yaml"]


def test_hyphens_and_underscores(ace_em: Callable[..., Result]) -> None:
    common = ("simulate", "s-1.pdb", "-o", "my-out")
    hyphens = ace_em(*common, "--pixel-size", 3, "--snr-db=-20", "--shift_sd", 2, "--print-config")
    underscores = ace_em(*common, "--pixel_size", 3, "--snr_db=-20", "--shift-sd", 2, "--print_config")
    assert hyphens == underscores
    settings = yaml.safe_load(hyphens[1])
    assert (settings["pixel_size"], settings["snr_db"], settings["shift_sd"]) == (3.0, -20.0, 2.0)
    # only names are rewritten, not values
    assert (settings["structure"], settings["output"]) == ("s-1.pdb", "my-out")
    nested = ace_em("reconstruct", "p.star", "-o", "run", "--ace.pip-weight=0.25", "--print_config")
    assert yaml.safe_load(nested[1])["ace"]["pip_weight"] == 0.25


@pytest.mark.parametrize(
    ("command", "config", "positional"), [("simulate", SimulationConfig, "structure"), ("reconstruct", RunConfig, "particles")]
)
def test_printed_defaults_are_those_of_the_dataclass(
    ace_em: Callable[..., Result], command: str, config: type, positional: str
) -> None:
    settings = yaml.safe_load(ace_em(command, "in", "-o", "out", "--print_config")[1])
    assert (settings[positional], settings["output"]) == ("in", "out")
    # through text, as a settings file has it: a tuple becomes a list
    for name, value in json.loads(json.dumps(dataclasses.asdict(config()))).items():
        assert settings[name] == value, name


CHANGED = {
    "simulate": ["--n", "17", "--snr-db", "-3.5", "--ctf", "c.star", "--seed", "4"],
    "reconstruct": [
        "--ace.steps",
        "5",
        "--ace.alternatives",
        "false",
        "--search.spacing",
        "2.5",
        "--contrast",
        "black",
        "--seed",
        "9",
    ],
}


@pytest.mark.parametrize("command", list(CHANGED))
def test_printed_config_reads_back(ace_em: Callable[..., Result], tmp_path: Path, command: str) -> None:
    code, printed, err = ace_em(command, "in", "-o", "out", *CHANGED[command], "--print_config")
    assert (code, err) == (0, "")
    assert printed != ace_em(command, "in", "-o", "out", "--print_config")[1]
    (tmp_path / "c.yaml").write_text(printed)
    assert ace_em(command, "--config", "c.yaml", "--print_config") == (0, printed, "")
    # what follows the file on the command line wins
    again = yaml.safe_load(ace_em(command, "--config", "c.yaml", "--seed", "77", "-o", "other", "--print_config")[1])
    assert again == yaml.safe_load(printed) | {"seed": 77, "output": "other"}


def test_particles_on_the_command_line_win_over_those_of_a_config(ace_em: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("particles: theirs.star\nseed: 3\n")
    settings = yaml.safe_load(ace_em("reconstruct", "mine.star", "-o", "out", "--config", "c.yaml", "--print_config")[1])
    assert (settings["particles"], settings["seed"]) == ("mine.star", 3)


def test_a_config_may_say_what_the_line_says_otherwise(ace_em: Callable[..., Result], tmp_path: Path) -> None:
    """The line wins over the last file, and that over the first."""
    (tmp_path / "a.yaml").write_text(
        "particles: a.star\noutput: a\noverwrite: true\nquiet: true\njson: true\nseed: 1\nstarts: 1\n"
    )
    (tmp_path / "b.yaml").write_text("output: b\nseed: 2\nace:\nace.steps: 7\nmemory: 1e-3\n")
    code, out, _ = ace_em("reconstruct", "--config", "a.yaml", "--seed", 3, "--config=b.yaml", "--print-config")
    settings = yaml.safe_load(out)
    assert code == 0 and (settings["particles"], settings["output"]) == ("a.star", "b")
    assert all(settings[name] for name in ("overwrite", "quiet", "json")) and settings["resume"] is False
    assert (settings["seed"], settings["starts"], settings["memory"], settings["ace"]["steps"]) == (3, 1, 1e-3, 7)


def test_a_run_that_goes_on_has_its_own_settings(ace_em: Callable[..., Result], tmp_path: Path) -> None:
    """Defaults < preset < the run < a settings file < the line."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(
        "particles: theirs.star\npreset: cryoai\nseed: 1\nthreads: 1\nmemory: 1\nace: {batch: 7}\n"
    )
    (tmp_path / "c.yaml").write_text("threads: 2\nmemory: 2\n")
    line = ["--resume", "--config", "c.yaml", "--memory", "3", "--print-config"]
    for place in (["-o", "run"], ["-orun"], ["--output=run"]):
        settings = yaml.safe_load(ace_em("reconstruct", *place, *line)[1])
        assert settings["particles"] == "theirs.star"
        assert [settings[name] for name in ("seed", "threads", "memory", "starts")] == [1, 2, 3.0, 1]
        assert (settings["ace"]["batch"], settings["ace"]["steps"]) == (7, 40000)
    # a run that is not to go on lends nothing
    assert yaml.safe_load(ace_em("reconstruct", "p.star", "-o", "run", "--print-config")[1])["seed"] == 0
    (tmp_path / "run/config.yaml").write_text("stepz: 1\n")
    assert ace_em("reconstruct", "-o", "run", "--resume")[2] == "ace-em reconstruct: run/config.yaml: no setting stepz\n"


def test_interrupt(ace_em: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("ace_em.cli.report.run", interrupted)
    assert ace_em("report", "run") == (130, "", "ace-em report: interrupted\n")


def test_what_is_not_the_users_fault_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(args: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("ace_em.cli.report.run", broken)
    # an uncaught exception ends Python with code 1 and its traceback
    with pytest.raises(ZeroDivisionError):
        cli.main(["report", "run"])


def test_a_path_that_the_system_refuses(ace_em: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def forbidden(args: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", "locked/p.star")

    code, _, err = ace_em("convert", f"{'x' * 300}.star", tmp_path / "o.star")
    assert code == 2 and "File name too long" in err and len(err.splitlines()) == 1
    monkeypatch.setattr("ace_em.cli.report.run", forbidden)
    assert ace_em("report", "run") == (2, "", "ace-em report: locked/p.star: Permission denied\n")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["a.star", "--flip-hand", "-o", "run"], True),
        (["--flip_hand", "a.star", "-o", "run"], True),
        (["--flip-hand", "false", "a.star", "-o", "run"], False),
        (["--flip-hand=false", "a.star", "-o", "run"], False),
        (["--flip-hand", "true", "a.star", "-o", "run"], True),
        (["a.star", "-o", "run", "--flip-hand"], True),
        (["--no-flip-hand", "a.star", "-o", "run"], False),
        (["--no_flip_hand", "a.star", "-o", "run"], False),
        (["--flip-hand", "--no-flip-hand", "a.star", "-o", "run"], False),
        (["-o", "run", "--flip-hand", "--", "a.star"], True),
        (["a.star", "-o", "run", "--refine.defocus"], False),
    ],
)
def test_a_switch_needs_no_value(given: list[str], expected: bool) -> None:
    args = arguments(cli.parser_of("reconstruct"), given)
    assert args.settings.flip_hand is expected and args.particles == "a.star" and args.output == "run"
    assert args.settings.refine.defocus is ("--refine.defocus" in given)


@pytest.mark.parametrize("off", ["--no-ace.blank", "--no-ace_blank", "--ace.blank=false", "--ace.blank=no", "--ace.blank=OFF"])
def test_a_switch_that_is_on_is_turned_off(off: str) -> None:
    line = ["a.star", "-o", "run", off]
    if "_" in off:
        # an underscore is no dot
        with pytest.raises(InputError, match=r"--no-ace-blank: no such option; did you mean --no-ace\.blank\?"):
            arguments(cli.parser_of("reconstruct"), line)
    else:
        assert arguments(cli.parser_of("reconstruct"), line).settings == changed(RunConfig(), {"ace.blank": False})


def test_negative_numbers_are_values() -> None:
    for number in ("-80", "-.5", "-1e-3"):
        for given in (["--b-factor", number], [f"--b-factor={number}"]):
            line = ["a.star", *given, "-o", "run"]
            assert arguments(cli.parser_of("reconstruct"), line).settings.b_factor == float(number)
    assert arguments(cli.parser_of("reconstruct"), ["a.star", "-o", "run", "--b-factor", "none"]).settings.b_factor is None


def test_numbers_with_commas_between() -> None:
    for given, wanted in (
        ("0.25,0.5", (0.25, 0.5)),
        ("[0.25, 0.5]", (0.25, 0.5)),
        ("0.5", (0.5,)),
        ("[]", ()),
        ("1,1.", (1.0, 1.0)),
    ):
        args = arguments(cli.parser_of("reconstruct"), ["a.star", "-o", "run", "--ace.milestones", given])
        assert args.settings.ace.milestones == wanted


def test_help_says_what_every_setting_is(ace_em: Callable[..., Result]) -> None:
    shown = " ".join(ace_em("reconstruct", "--help")[1].split())
    assert "point group (Cn, Dn, T, O, I; RELION's axes), imposed after the ab initio search (default: C1)" in shown
    assert "--ace.hypotheses N rotations per image; only the best one has a gradient (paper: 1) (default: 4)" in shown
    assert "(default: true; off: --no-ace.blank)" in shown and "(default: 0.6,0.85)" in shown
    assert shown.startswith("usage: ace-em reconstruct particles -o OUTPUT [options] Reconstruct a map")


@dataclasses.dataclass(frozen=True)
class Inner:
    """The innermost."""

    lr: float = 0.1
    """AdamW learning rate, 5 % at most"""
    kind: Literal["a", "b"] | None = None
    names_no_text: str = "x"


@dataclasses.dataclass(frozen=True)
class Middle:
    """In between."""

    inner: Inner = dataclasses.field(default_factory=Inner)
    """the innermost"""
    active: bool = True
    """a
    switch"""


@dataclasses.dataclass(frozen=True)
class Outer:
    """All."""

    middle: Middle = dataclasses.field(default_factory=Middle)
    """what is in between"""
    seed: int = 0
    """random seed"""


def nested(*line: str) -> Any:
    parser = Parser("ace-em nested", "Settings inside settings.")
    parser.add_settings(Outer)
    return arguments(parser, line)


def test_settings_at_any_depth_are_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert nested().settings == Outer()
    line = ("--middle.inner.lr", "0.5", "--middle.inner.kind=b", "--no-middle.active", "--middle.inner.names_no_text", "")
    assert nested(*line).settings == Outer(Middle(Inner(0.5, "b", ""), False), 0)
    (tmp_path / "c.yaml").write_text("middle:\n  inner:\n    lr: 0.25\n    kind: none\n  active: no\n")
    assert nested("--config", str(tmp_path / "c.yaml")).settings == Outer(Middle(Inner(0.25), False), 0)
    (tmp_path / "c.yaml").write_text("middle:\n  inner:\n    lr: high\n")
    with pytest.raises(InputError, match=r"c\.yaml: middle\.inner\.lr high: expected a number"):
        nested("--config", str(tmp_path / "c.yaml"))
    with pytest.raises(SystemExit):
        nested("--help")
    shown = " ".join(capsys.readouterr().out.split())
    for words in (
        "The innermost: --middle.inner.lr X AdamW learning rate, 5 % at most (default: 0.1)",
        "--middle.inner.kind {a,b} (default: none)",
        "In between: --middle.active [true|false] a switch (default: true; off: --no-middle.active)",
        "All: --seed N random seed (default: 0)",
    ):
        assert words in shown


def test_evaluate_takes_a_device(
    ace_em: Callable[..., Result], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "--device {auto,cpu,cuda,mps}" in ace_em("evaluate", "--help")[1]
    code, out, err = ace_em("evaluate", "run", "--truth", "sim", "--device", "cuda")
    assert (code, out) == (2, "") and "--device cuda: this device is not available" in err and len(err.splitlines()) == 1
    code, _, err = ace_em("evaluate", "run", "--truth", "sim", "--device", "tpu")
    assert code == 2 and "--device tpu" in err


def test_a_time_that_is_not_known_is_no_promise(tmp_path: Path) -> None:
    import io

    from ace_em.run.pipeline import open_particles
    from ace_em.run.plan import announce, make_plan
    from ace_em.run.reporter import Reporter
    from ace_em.simulation.write import simulate

    structure = Path(__file__).parents[2] / "examples/data/5nrl_every10th_atom.npz"
    simulate(structure, tmp_path, SimulationConfig(n=100, box=24, pixel_size=22.0, resolution=40.0))
    config = RunConfig(device="cpu", threads=1)
    plan = make_plan(open_particles(tmp_path / "particles.star", config), config)
    cases: list[tuple[str, Any, str]] = [
        ("cuda", "all", "; time not known on this device; "),
        ("cuda", "ace", "; time not known on this device; "),
        ("cpu", "all", " on idle server cores if the first start is good; "),
        ("cpu", "ace", " on idle server cores; "),
    ]
    for device, stages, words in cases:
        lines = io.StringIO()
        announce(dataclasses.replace(plan, device=device), RunConfig(threads=1, stages=stages), Reporter(stream=lines))
        (line,) = (line for line in lines.getvalue().splitlines() if "seed 0" in line)
        assert words in line
