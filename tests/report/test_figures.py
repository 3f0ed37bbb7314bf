"""What the report's figures show: that it is the run's, where it is due."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import roma
import torch
import yaml
from matplotlib.figure import Figure

from ace_em.data.pose_columns import with_content
from ace_em.io.star import read_particle_star, write_star
from ace_em.maths.rotations import healpix_centres
from ace_em.physics.image_content import Content
from ace_em.report.charts import fsc_figure, round_figure
from ace_em.report.figures import histogram_figure, nice_length, png, smoothed_views
from ace_em.report.load import read_run
from ace_em.report.page import render
from ace_em.report.particles import Triplet, evenly, extremes, particle_numbers, rejected_card, triplets
from ace_em.report.summary import shared


def test_symmetry_fills_the_views(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    monkeypatch.setattr("ace_em.report.page.view_figure", lambda rotation, spread: seen.append(rotation) or b"")
    assert "Every image is counted at its 4 equivalent views in D2." in render(read_run(run))
    views = seen[0].unflatten(0, (4, -1))[..., 2]
    signs = (views / views[0]).round().long()
    assert signs.unique(dim=1).shape[1] == 1
    assert {tuple(s) for s in signs[:, 0].tolist()} == {(1, 1, 1), (-1, -1, 1), (1, -1, -1), (-1, 1, -1)}


def _drawn(monkeypatch: pytest.MonkeyPatch, make: Callable[[], bytes]) -> Figure:
    """The figure behind a picture."""
    made: list[Figure] = []
    for module in ("charts", "figures"):
        monkeypatch.setattr(f"ace_em.report.{module}.png", lambda figure: made.append(figure) or png(figure))
    make()
    return made[0]


def test_rounds_stand_in_columns_in_the_order_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = read_run(run)
    phases = {"ab initio search": files.stage("ab_initio"), "search": files.stage("search"), "refinement": files.stage("refine")}
    panels = _drawn(monkeypatch, lambda: round_figure(phases, files.stage("start"), 192.0)).axes
    columns = {axes.get_title(): axes.get_position().x0 for axes in panels if axes.get_title()}
    assert list(columns) == ["ab initio search", "search", "refinement"] == sorted(columns, key=lambda name: columns[name])
    explained = next(axes for axes in panels if axes.get_ylabel() == "explained (%)")
    diamonds = {line.get_xydata()[0, 1]: line.get_color() for line in explained.lines if line.get_marker() == "D"}
    assert sorted(diamonds) == pytest.approx([43.0, 86.0]) and len(set(diamonds.values())) == 2
    assert all(line.get_xydata()[0, 0] == 2 for line in explained.lines if line.get_marker() == "D")


@pytest.mark.parametrize("phases", [("ab_initio",), ("search",), ("refine",), ("search", "refine"), ("ab_initio", "search")])
def test_rounds_of_an_older_or_unfinished_run_are_drawn(run: Path, phases: tuple[str, ...]) -> None:
    """Earlier versions searched from every start and did not explore; nothing may have moved, or boxes be unknown."""
    still = {"stable": 1.0, "moved_median_deg": 0.0, "band_angstrom": 20.0}
    records = [{"stage": phase, "start": start} | still for phase in phases for start in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    # the words beside a picture; a card without one has none
    assert "pose change, stable share" in render(read_run(run))


def test_every_fsc_curve_and_the_shared_band_are_drawn(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = read_run(run)
    assert files.curve is not None
    curve, common = files.curve, shared(files)
    figure = _drawn(monkeypatch, lambda: fsc_figure(curve, {0.143: float("nan"), 0.5: 19.2}, {0.143: 17.5}, None, common))
    lines = {str(line.get_label()): line for line in figure.axes[0].lines}
    for name, values in (("spherical mask", curve.fsc), ("masked", curve.masked), ("masked, corrected", curve.corrected)):
        assert lines[name].get_ydata() == pytest.approx(values[1:])
    assert lines["masked, phases randomised"].get_xdata() == pytest.approx(curve.frequency_per_angstrom[1:])
    uprights = [line.get_xdata()[0] for line in figure.axes[0].lines if len(set(line.get_xdata())) == 1 < len(line.get_xdata())]
    assert uprights == pytest.approx([1 / 20])
    words = [text.get_text() for text in figure.axes[0].texts]
    assert any("shared: coarser than 20 Å" in text for text in words)
    # the lines are read off on the curve of the ball (0.5) and on the corrected one (0.143)
    assert {"19.2 Å", "17.5 Å"} <= set(words)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_predictions_match_images_made_from_turned_atoms(finished: Path, sign: float) -> None:
    found = _compared(finished / "run", evenly(5, 20), sign)
    assert [t.row for t in found] == [1, 6, 11, 15, 20] and found[1].name == "6@stack.mrcs"
    # wrong shifts, CTF or rotations give less than 0.7
    assert all(sign * t.correlation > 0.93 for t in found), [t.correlation for t in found]
    assert all(t.clean.shape == (32, 32) for t in found)


def _compared(run: Path, rows: np.ndarray, sign: float = 1.0) -> list[Triplet]:
    files = read_run(run)
    assert files.particles is not None and files.map is not None
    return triplets(files.particles, files.map, sign, rows)


def test_the_worst_particles_are_those_at_wrong_poses(run: Path) -> None:
    text = (run / "poses.star").read_text()
    wrong = {3, 17}
    for n in wrong:
        (line,) = (line for line in text.splitlines() if line.startswith(f"{n}@stack.mrcs"))
        cells = line.split()
        where = [name.split()[0] for name in re.findall(r"^_rln\S+", text.partition("data_particles")[2], re.M)].index(
            "_rlnAngleTilt"
        )
        cells[where] = str(float(cells[where]) + 90)
        text = text.replace(line, " ".join(cells))
    (run / "poses.star").write_text(text)
    found = _compared(run, np.arange(20))
    best, worst = extremes(found, shown=2)
    assert {t.row for t in worst} == wrong
    agreement = sorted((t.correlation for t in found), reverse=True)
    assert [t.correlation for t in (*best, *worst)] == agreement[:2] + agreement[-2:]
    assert worst[0].correlation < 0.7 < best[-1].correlation
    page = render(read_run(run))
    assert re.search(r"<td>worst</td><td>(3|17)</td><td>(3|17)@stack.mrcs</td>", page)


def test_correlations_do_not_depend_on_the_block(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _compared(run, np.arange(7))
    monkeypatch.setattr("ace_em.report.particles._BLOCK", 3)
    blocks = _compared(run, np.arange(7))
    assert [t.row for t in blocks] == [t.row for t in whole] == [1, 2, 3, 4, 5, 6, 7]
    assert [t.correlation for t in blocks] == pytest.approx([t.correlation for t in whole], abs=1e-5)


def test_histograms_hold_the_columns_of_poses_star(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = read_particle_star(run / "poses.star")
    table.particles["aceConfidence"] = [str(0.1 + 0.04 * n) for n in range(20)]
    for axis in "XY":
        table.particles[f"rlnOrigin{axis}Angst"] = [str(n if axis == "X" else -2 * n) for n in range(20)]
    write_star(run / "poses.star", table)
    defocus, confidence, shift = particle_numbers(read_particle_star(run / "poses.star"))
    assert shift is not None and defocus is not None
    # the particle lies where the origin, its opposite, says
    assert shift[3] == pytest.approx([-3.0, 6.0], abs=1e-4)
    assert defocus[0] == pytest.approx(
        (float(table.particles["rlnDefocusU"][0]) + float(table.particles["rlnDefocusV"][0])) / 2e4
    )
    figure = _drawn(monkeypatch, lambda: histogram_figure(defocus, confidence, shift))
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "defocus (µm)",
        "largest pose probability",
        "in-plane shift (Å)",
        "shift in x (Å)",
    ]
    assert all(sum(bar.get_height() for bar in axes.patches) == 20 for axes in figure.axes[:3])
    # 0.82 and 0.86 of twenty
    settings = yaml.safe_load((run / "config.yaml").read_text()) | {"predict": {"confident": 0.8}}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    assert "at least 0.8 for 10.0 % of the particles" in render(read_run(run))


def test_images_without_the_particle_are_shown(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of noise and three of something else; none where every image shows the particle."""
    assert rejected_card(read_run(run)) is None
    table = read_particle_star(run / "poses.star")
    kinds = torch.tensor([[1.0, 0, 0]] * 15 + [[0.1, 0.9, 0.0]] * 2 + [[0.2, 0.0, 0.8]] * 3)
    write_star(run / "poses.star", with_content(table, Content(*kinds.T)))
    card = rejected_card(read_run(run))
    assert card is not None and "10.0 % of all show noise alone, 15.0 % something else" in card.caption
    assert [row[:2] for row in card.table[1:]] == [("something else", str(n)) for n in (18, 19, 20)] + [
        ("noise alone", str(n)) for n in (16, 17)
    ]
    assert {row[3] for row in card.table[1:]} == {"0.200", "0.100"}
    assert "Images without the particle" in render(read_run(run))
    # and are in no other figure of the views
    views: list[int] = []
    monkeypatch.setattr("ace_em.report.page.view_figure", lambda rotation, spread: views.append(len(rotation)) or b"")
    assert "Without the images that show no particle." in render(read_run(run)) and views == [4 * 15]
    # all of one kind
    write_star(run / "poses.star", with_content(table, Content(*torch.tensor([[0.0, 1.0, 0.0]] * 20).T)))
    card = rejected_card(read_run(run))
    assert card is not None and len(card.table) == 5


def test_smoothed_views_are_one_when_uniform_and_peak_where_all_look() -> None:
    uniform = roma.random_rotmat(20000, generator=torch.Generator().manual_seed(0))
    assert smoothed_views(uniform, 15.0) == pytest.approx(1.0, abs=0.25)
    one = uniform[:1].expand(50, 3, 3)
    density = smoothed_views(one, 10.0)
    assert density.mean() == pytest.approx(1.0, abs=0.02)
    peak = healpix_centres(16)[int(density.argmax())].numpy()
    assert peak @ one[0, :, 2].numpy() > 0.995


@pytest.mark.parametrize(("extent", "length"), [(100.0, 20.0), (416.0, 100.0), (150.0, 50.0), (3.0, 1.0)])
def test_scale_bars_are_round_lengths(extent: float, length: float) -> None:
    assert nice_length(extent) == length
