"""The import order of ``src/ace_em`` is the one that CONTRIBUTING states."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "ace_em"


def stated_order(text: str) -> dict[str, set[str]]:
    """What each part may import, from the fenced block of CONTRIBUTING that begins with ``errors, config <``."""
    (block,) = re.findall(r"```\n(errors, config <.*?)```", text, re.DOTALL)
    chain, *aside = re.split(r"\n(?=\w+:)", block.strip())
    allowed: dict[str, set[str]] = {}
    before: set[str] = set()
    for place in " ".join(chain.split()).split("<"):
        parts = {part.strip() for part in place.strip().strip("{}").split(",")}
        for part in parts:
            # errors and config stand side by side, and know nothing of each other
            allowed[part] = set(before)
        before |= parts
    for line in aside:
        name, _, rest = line.partition(":")
        uses, _, users = rest.partition("; called by ")
        allowed[name] = {part.strip() for part in uses.split(",")}
        for user in filter(None, (part.strip() for part in users.split(","))):
            allowed[user] |= {name}
    return allowed


ALLOWED = stated_order((ROOT / "CONTRIBUTING.md").read_text())


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
    if part == "__init__":
        return []  # the names that users import, when they use them
    if part not in ALLOWED:
        return [f"{path}: '{part}' is not in the order that CONTRIBUTING states"]
    found = []
    for line, module in imported_modules(source, path):
        top, _, rest = module.partition(".")
        target = rest.split(".")[0]
        if top != "ace_em":
            if part == "config" and top not in sys.stdlib_module_names:
                found.append(f"{path}:{line}: config imports {module}, which is not in the standard library")
        elif target in ("", "__version__", part):
            continue
        elif target not in ALLOWED[part]:
            found.append(f"{path}:{line}: {part} must not import {target}")
    return found


def test_the_order_is_read() -> None:
    assert ALLOWED["maths"] == {"errors", "config"} and ALLOWED["config"] == set()
    assert ALLOWED["data"] >= {"io", "models"} and "tasks" not in ALLOWED["data"] and "models" not in ALLOWED["io"]
    assert "report" in ALLOWED["cli"] and "report" not in ALLOWED["run"] and "run" not in ALLOWED["report"]


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
        "run/x.py": "from ace_em.report import page",
        "report/x.py": "from ace_em.run.folder import RunFolder",
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
        "maths/x.py": "import torch\nfrom .fourier import centred_fft\nfrom ace_em.errors import InputError",
        "simulation/x.py": "from ace_em.io.mrc import write\nfrom ..physics.pose import Pose",
        "report/x.py": "from ace_em import data, config",
        "config.py": "from dataclasses import dataclass",
        "cli/x.py": "def main():\n    from ace_em.run.pipeline import run\n    from ace_em import __version__, report",
    }
    for path, source in good.items():
        assert violations(source, path) == [], path


def test_no_file_is_called_utils() -> None:
    assert not list(SRC.rglob("utils.py"))


def test_the_command_line_and_the_package_start_without_torch() -> None:
    for module in ("ace_em.cli", "ace_em"):
        code = f"import {module}, sys; assert 'torch' not in sys.modules, '{module} imports torch'"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
