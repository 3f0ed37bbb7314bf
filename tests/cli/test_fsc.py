"""``ace-em fsc``: resolutions of maps made so that they are known, and maps that cannot be compared."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ace_em import cli
from ace_em.io.mrc import write_volume
from ace_em.maths.fourier import centred_fft, centred_ifft, radius_grid
from ace_em.metrics.fsc import fourier_shell_correlation

BOX, PIXEL = 24, 3.0
Result = tuple[int, str, str]


@pytest.fixture
def fsc(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """``ace-em fsc`` in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> Result:
        with pytest.raises(SystemExit) as ended:
            cli.main(["fsc", *(str(a) for a in args)])
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, captured.out, captured.err

    return run


def noise(seed: int, box: int = BOX) -> Tensor:
    return torch.randn(box, box, box, generator=torch.Generator().manual_seed(seed))


def write(name: str, volume: Tensor, pixel: float = PIXEL) -> str:
    write_volume(name, volume.numpy(), pixel)
    return name


def same_up_to(shell: int) -> tuple[Tensor, Tensor]:
    """Two maps, equal up to a shell and independent beyond it."""
    one, other = noise(0), noise(1)
    inside = radius_grid(BOX, 3).round() <= shell
    return one, centred_ifft(torch.where(inside, centred_fft(one, 3), centred_fft(other, 3)), 3).real


def columns(out: str) -> list[list[str]]:
    """The cells of the printed table."""
    rows = [re.findall(r"[^│┃\s]+", line) for line in out.splitlines() if line.startswith(("│", "┃"))]
    assert len({len(row) for row in rows}) == 1
    return rows


def test_identical_maps_reach_nyquist(fsc: Callable[..., Result]) -> None:
    code, out, err = fsc(write("a.mrc", noise(0)), "a.mrc")
    assert (code, err) == (0, "")
    rows = columns(out)
    assert rows[0] == ["shell", "A", "FSC"] and len(rows) == 1 + BOX // 2
    assert rows[1] == ["1", f"{BOX * PIXEL:.2f}", "1.0000"] and {row[2] for row in rows[1:]} == {"1.0000"}
    for threshold in ("0.5", "0.143"):
        assert f"FSC = {threshold}: {2 * PIXEL:.2f} A, 2.00 px (Nyquist" in out


def test_known_resolution(fsc: Callable[..., Result]) -> None:
    one, other = same_up_to(6)
    code, out, _ = fsc(write("a.mrc", one), write("b.mrc", other))
    assert code == 0 and "Nyquist" not in out
    values = [float(row[2]) for row in columns(out)[1:]]
    assert values[:6] == [1.0] * 6 and max(abs(v) for v in values[6:]) < 0.2
    match = re.search(r"^FSC = 0\.5: ([\d.]+) A, ([\d.]+) px$", out, re.MULTILINE)
    assert match is not None
    # the curve falls from 1 at shell 6 to about 0 at shell 7
    assert float(match[2]) == pytest.approx(BOX / 6.5, rel=0.03)
    assert float(match[1]) == pytest.approx(PIXEL * BOX / 6.5, rel=0.03)


def test_mask_adds_its_curves(fsc: Callable[..., Result]) -> None:
    one, other = same_up_to(6)
    ball = (radius_grid(BOX, 3) <= 6).float()
    maps = write("a.mrc", one), write("b.mrc", other)
    plain = fsc(*maps)[1]
    code, out, err = fsc(*maps, "--mask", write("m.mrc", ball))
    assert (code, err) == (0, "")
    rows = columns(out)
    assert rows[0] == ["shell", "A", "FSC", "masked", "randomised", "corrected"]
    assert [row[:3] for row in rows[1:]] == columns(plain)[1:]
    _, _, _, masked, randomised, corrected = ([float(v) for v in column] for column in zip(*rows[1:], strict=True))
    assert masked == pytest.approx(fourier_shell_correlation(one * ball, other * ball)[1:].tolist(), abs=1e-4)
    # a sharp mask smears the common shells outwards; the randomised maps show how far, and the correction takes it away
    first = next(i for i, (m, c) in enumerate(zip(masked, corrected, strict=True)) if m != c)
    assert first > 3
    for m, r, c in list(zip(masked, randomised, corrected, strict=True))[first:]:
        assert c == pytest.approx((m - r) / (1 - r), abs=1e-3)
    for name in ("masked", "randomised", "corrected"):
        assert len(re.findall(rf"^{name} = 0\.(?:5|143): ", out, re.MULTILINE)) == 2


def test_seed_of_the_randomisation(fsc: Callable[..., Result]) -> None:
    one, other = same_up_to(6)
    args = (write("a.mrc", one), write("b.mrc", other), "--mask", write("m.mrc", (radius_grid(BOX, 3) <= 6).float()))
    assert fsc(*args) == fsc(*args, "--seed", 0) != fsc(*args, "--seed", 1)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (lambda: write("b.mrc", noise(1, 20)), ["b.mrc: box 20", "expected box 24", "a.mrc"]),
        (lambda: write("b.mrc", noise(1), 3.1), ["b.mrc", "3.1 A/px", "expected", "3 A/px"]),
        (lambda: write("b.mrc", noise(1)[:10]), ["b.mrc", "10 x 24 x 24", "cubic"]),
        (lambda: "no.mrc", ["no.mrc", "no such file"]),
    ],
    ids=["box", "pixel size", "not cubic", "missing"],
)
@pytest.mark.parametrize("as_mask", [False, True], ids=["map", "mask"])
def test_maps_that_do_not_fit(fsc: Callable[..., Result], second: Callable[[], str], words: list[str], as_mask: bool) -> None:
    first = write("a.mrc", noise(0))
    code, out, err = fsc(first, first, "--mask", second()) if as_mask else fsc(first, second())
    assert (code, out) == (2, "") and len(err.splitlines()) == 1
    for word in words:
        assert word in err


def test_text_is_no_map(fsc: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "b.mrc").write_text("data_particles\n" * 200)
    code, out, err = fsc(write("a.mrc", noise(0)), "b.mrc")
    assert (code, out) == (2, "") and len(err.splitlines()) == 1 and "b.mrc: not an MRC file" in err


@pytest.mark.parametrize("values", [(-3.0, 1.0), (0.0, 7.0), (0.0, 0.0)])
def test_a_mask_lies_between_0_and_1(fsc: Callable[..., Result], values: tuple[float, float]) -> None:
    mask = torch.zeros(BOX, BOX, BOX)
    mask[0, 0, 0], mask[5:9] = values
    code, _, err = fsc(write("a.mrc", noise(0)), "a.mrc", "--mask", write("m.mrc", mask))
    assert code == 2 and "m.mrc" in err and "between 0 and 1" in err
