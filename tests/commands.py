"""The command line, called from tests."""

from pathlib import Path

import pytest

from ace_em import cli

STRUCTURE = Path(__file__).parents[1] / "examples/data/5nrl_every10th_atom.npz"


def run_cli(*arguments: object, codes: tuple[int, ...] = (0,)) -> None:
    """``ace-em`` with these arguments; it must end with one of the exit codes."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(a) for a in arguments])
    assert ended.value.code in codes
