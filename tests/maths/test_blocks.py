"""What is left of the memory: the system's own count, and the least that the control groups about a process allow."""

from pathlib import Path

import pytest

from ace_em.maths.blocks import in_blocks
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
    assert memory._group_bytes(tmp_path) == 2000
    group(tmp_path / "jobs", "2500", 1000)
    assert memory._group_bytes(tmp_path) == 1500


def test_files_in_memory_can_be_taken_back(tmp_path: Path, inside: str) -> None:
    group(tmp_path / inside, "3000", 2900, of_files=400)
    assert memory._group_bytes(tmp_path) == 500


def test_groups_without_a_limit(tmp_path: Path, inside: str) -> None:
    group(tmp_path / inside, "max", 1000)
    assert memory._group_bytes(tmp_path) == float("inf")
    assert memory._group_bytes(tmp_path / "nowhere") == float("inf")


def test_something_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 2**28 < available_bytes() < 2**50
    monkeypatch.setattr(memory, "_group_bytes", lambda root: 12345.0)
    assert available_bytes() == 12345


def test_blocks_are_halved_until_there_is_memory(caplog: pytest.LogCaptureFixture) -> None:
    asked: list[int] = []

    def work(rows: slice) -> list[int]:
        asked.append(rows.stop - rows.start)
        if asked[-1] > 4:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return list(range(rows.start, rows.stop))

    found = in_blocks(11, 100, work)
    assert [n for part in found for n in part] == list(range(11))
    assert asked == [11, 5, 2, 2, 2, 2, 2, 1]
    assert [r.getMessage() for r in caplog.records] == [f"out of memory: going on in blocks of {n} images" for n in (5, 2)]


def test_another_error_is_not_taken_for_it() -> None:
    def wrong(rows: slice) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        in_blocks(8, 4, wrong)


def test_one_image_that_does_not_fit_is_the_end() -> None:
    def too_large(rows: slice) -> None:
        raise MemoryError

    for n, block in ((8, 4), (1, 250), (1, 1)):
        with pytest.raises(MemoryError):
            in_blocks(n, block, too_large)
