"""The memory there is: free in the system, and the least that the control groups of a process leave."""

from pathlib import Path

import pytest

from ace_em.run import estimate
from ace_em.run.estimate import available_bytes


def group(folder: Path, most: str, used: int, of_files: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {of_files}\nactive_file 0\n")


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> str:
    """This process is in a job's control group, beside version 1 groups of another name."""
    read_text = Path.read_text

    def read(path: Path, *args: object) -> str:
        return "4:memory:/old\n0::/jobs/7\n1:cpu:/\n" if str(path) == "/proc/self/cgroup" else read_text(path)

    monkeypatch.setattr(Path, "read_text", read)
    return "jobs/7"


def test_the_narrowest_group_counts(tmp_path: Path, inside: str) -> None:
    group(tmp_path / inside, "3000", 1000)
    assert estimate._group_bytes(tmp_path) == 2000
    group(tmp_path / "jobs", "2500", 1000)
    assert estimate._group_bytes(tmp_path) == 1500


def test_files_in_memory_can_be_taken_back(tmp_path: Path, inside: str) -> None:
    group(tmp_path / inside, "3000", 2900, of_files=400)
    assert estimate._group_bytes(tmp_path) == 500


def test_groups_without_a_limit(tmp_path: Path, inside: str) -> None:
    group(tmp_path / inside, "max", 1000)
    assert estimate._group_bytes(tmp_path) == float("inf")
    assert estimate._group_bytes(tmp_path / "nowhere") == float("inf")


def test_something_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 2**28 < available_bytes() < 2**50
    monkeypatch.setattr(estimate, "_group_bytes", lambda root: 12345.0)
    assert available_bytes() == 12345
