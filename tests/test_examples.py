"""Every file of examples/ runs, says something, and is short enough to be read."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


def test_the_examples_are_there() -> None:
    assert {e.name for e in EXAMPLES} >= {"project_a_volume.py", "reconstruct_from_poses.py", "new_decoder.py"}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.stem)
def test_example(example: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # it must not depend on where it is started from
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out.strip()
    assert not list(tmp_path.iterdir())
    source = example.read_text()
    assert source.rstrip().splitlines()[-1].strip().startswith("assert ")
    assert 5 <= sum(bool(line.strip()) and not line.startswith(("import", "from", '"""')) for line in source.splitlines()) <= 40
