"""Processing in blocks that become smaller when memory runs out."""

import pytest

from ace_em.maths.blocks import in_blocks


def test_blocks_are_halved_until_they_fit_in_memory(caplog: pytest.LogCaptureFixture) -> None:
    asked: list[int] = []

    def work(rows: slice) -> list[int]:
        asked.append(rows.stop - rows.start)
        if asked[-1] > 4:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return list(range(rows.start, rows.stop))

    found = in_blocks(11, 100, work)
    assert [n for part in found for n in part] == list(range(11))
    assert asked == [11, 5, 2, 2, 2, 2, 2, 1]
    assert [r.getMessage() for r in caplog.records] == [f"out of memory: continuing in blocks of {n} images" for n in (5, 2)]


def test_other_errors_are_raised() -> None:
    def wrong(rows: slice) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        in_blocks(8, 4, wrong)


def test_one_image_that_does_not_fit_is_an_error() -> None:
    def too_large(rows: slice) -> None:
        raise MemoryError

    for n, block in ((8, 4), (1, 250), (1, 1)):
        with pytest.raises(MemoryError):
            in_blocks(n, block, too_large)
