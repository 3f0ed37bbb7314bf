"""The target is its old self until the new one is complete."""

from pathlib import Path

import pytest

from ace_em.io.atomic import replace_atomically


def test_success_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "run.star"
    target.write_text("old")
    with replace_atomically(target) as temporary:
        assert temporary.suffix == ".star" and temporary.parent == tmp_path and temporary != target
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_error_keeps_the_old_file_and_removes_the_temporary(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "run.star"
    target.write_text("old")
    with pytest.raises(error), replace_atomically(target) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_error_before_anything_was_written(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replace_atomically(tmp_path / "a.star"):
        pass
    assert list(tmp_path.iterdir()) == []
