"""The import order of ``src/ace_em``: a file imports its own folder or folders to its left."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SRC = Path(__file__).parents[1] / "src" / "ace_em"

# a folder or top-level module -> its rank; a part imports parts of lower rank only, and never a neighbour
RANK = {
    "__init__": 0,
    "errors": 0,
    "config": 0,
    "presets": 1,
    "progress": 1,
    "arguments": 2,
    "memory": 1,
    "maths": 2,
    "physics": 3,
    "data": 4,
    "models": 4,
    "simulation": 4,
    "metrics": 4,
    "report": 4,
    "tasks": 5,
    "training": 6,
    "refinement": 6,
    "run_folder": 6,
    "plan": 6,
    "reading": 7,
    "run_log": 7,
    "verdict": 7,
    "journal": 7,
    "prediction": 7,
    "amortised": 8,
    "job": 8,
    "predictor": 8,
    "results": 9,
    "stages": 9,
    "teaching": 9,
    "predict_command": 9,
    "pipeline": 10,
    "fsc_command": 9,
    "convert": 9,
    "evaluation": 10,
    "cli": 11,
    "__main__": 12,
}
NEIGHBOURS_ALLOWED = {("simulation", "data"), ("report", "data")}


def part_of(path: str) -> str:
    """Folder or top-level module of a path below ``ace_em``: ``maths/fourier.py`` -> ``maths``."""
    return path.split("/")[0].removesuffix(".py")


def imported_modules(source: str, path: str) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of every import in the file, those inside functions too."""
    package = ["ace_em", *path.split("/")[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module == "ace_em":
                yield from ((node.lineno, f"ace_em.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, module


def violations(source: str, path: str) -> list[str]:
    """What a file (path below ``ace_em``) imports against the order."""
    part = part_of(path)
    if part not in RANK:
        return [f"{path}: '{part}' has no rank; add it to RANK"]
    found = []
    for line, module in imported_modules(source, path):
        top, _, rest = module.partition(".")
        target = rest.split(".")[0]
        if top != "ace_em":
            if part == "config" and top not in sys.stdlib_module_names:
                found.append(f"{path}:{line}: config imports {module}, which is not in the standard library")
        elif target in ("", "__version__", part):
            continue
        elif target not in RANK:
            found.append(f"{path}:{line}: '{target}' has no rank; add it to RANK")
        elif RANK[target] >= RANK[part] and (part, target) not in NEIGHBOURS_ALLOWED:
            found.append(f"{path}:{line}: {part} must not import {target}")
    return found


def test_every_file_obeys_the_order() -> None:
    files = sorted(SRC.rglob("*.py"))
    assert len(files) > 5
    found = [v for file in files for v in violations(file.read_text(), file.relative_to(SRC).as_posix())]
    assert not found, "\n".join(found)


def test_the_walker_sees_violations() -> None:
    bad = {
        "maths/x.py": "from ace_em.physics.pose import Pose",
        "physics/x.py": "def f():\n    import ace_em.models.decoder",
        "models/x.py": "from ace_em.data import particles",
        "data/x.py": "from ..simulation import dataset",
        "training/x.py": "from ace_em import refinement",
        "pipeline.py": "from . import evaluation",
        "tasks/x.py": "if True:\n    from ace_em import cli",
        "config.py": "import torch",
        "errors.py": "from ace_em import config",
        "utils2.py": "",
        "maths/y.py": "import ace_em.unknown",
    }
    for path, source in bad.items():
        assert len(violations(source, path)) == 1, path


def test_the_walker_lets_the_order_pass() -> None:
    good = {
        "maths/x.py": "import torch\nfrom .fourier import HalfPlane\nfrom ace_em.errors import InputError",
        "simulation/x.py": "from ace_em.io.mrc import write\nfrom ..physics.pose import Pose",
        "report/x.py": "from ace_em import data, config",
        "config.py": "from dataclasses import dataclass",
        "cli.py": "def main():\n    from ace_em.run.pipeline import run\n    from ace_em import __version__, evaluation",
    }
    for path, source in good.items():
        assert violations(source, path) == [], path


def test_no_file_is_called_utils() -> None:
    assert not list(SRC.rglob("utils.py"))


def test_the_command_line_starts_without_torch() -> None:
    code = "import ace_em.cli, sys; assert 'torch' not in sys.modules, 'ace_em.cli imports torch'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
