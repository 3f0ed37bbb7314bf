"""The 3-D view as a browser shows it: report.html opened from disk, with nobody to ask for anything."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from ace_em.io.mrc import write_volume
from ace_em.report.page import write_report
from ace_em.report.volume_view import Region, default_level

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from .conftest import Look

# the directive that a request to another place violates; 'sent' when none stops it
FETCH_ELSEWHERE = """() => new Promise((told) => {
  document.addEventListener("securitypolicyviolation", (event) => told(event.effectiveDirective));
  fetch("http://127.0.0.1:9/").catch(() => setTimeout(told, 500, "sent"));
})"""


def _report(run: Path) -> str:
    return f"file://{write_report(run)}"


@pytest.fixture(scope="module")
def report(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of the finished run's page."""
    return _report(Path(shutil.copytree(finished / "run", tmp_path_factory.mktemp("viewed") / "run")))


def _drawn(seen: "Look") -> "Look":
    seen.page.locator(".scene canvas").first.wait_for()
    # the first picture comes a moment after its canvas
    for _ in range(50):
        if seen.colours() > 20:
            break
        seen.page.wait_for_timeout(100)
    return seen


def _overflow(page: "Page") -> int:
    return int(page.evaluate("() => document.documentElement.scrollWidth - window.innerWidth"))


def _camera(page: "Page") -> list[float]:
    eye = page.evaluate("() => document.querySelector('.scene').layout.scene.camera.eye")
    return [eye["x"], eye["y"], eye["z"]]


@pytest.mark.parametrize(
    ("width", "scheme", "page_colour"), [(1280, "light", "rgb(244, 245, 246)"), (390, "dark", "rgb(19, 21, 22)")]
)
def test_the_report_opens_from_disk_alone(
    report: str, look: Callable[..., "Look"], width: int, scheme: str, page_colour: str
) -> None:
    seen = _drawn(look(report, width, color_scheme=scheme))
    assert seen.colours() > 20
    assert _overflow(seen.page) <= 0
    for name in (".scene", ".controls", "select", "input", ".viewer button"):
        box = seen.page.locator(name).bounding_box()
        assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width, name
    assert seen.page.evaluate("() => getComputedStyle(document.body).backgroundColor") == page_colour
    corner = seen.picture()[3, 3]
    # the view has no ground of its own: that of the card shows
    assert corner.tolist() == ([255] * 3 if scheme == "light" else [31] * 3)
    assert seen.asked == [report] and seen.said == []


def test_slider_and_choice_change_the_surface(report: str, look: Callable[..., "Look"]) -> None:
    seen = _drawn(look(report))
    slider, choice, shown = (seen.page.locator(name) for name in (".controls input", "select", "output"))
    first, level = seen.picture(), shown.inner_text()
    slider.press("End")
    high = seen.changes(first)
    # a higher level encloses less
    assert (high != high[0, 0]).any(-1).sum() < 0.8 * (first != first[0, 0]).any(-1).sum()
    assert float(shown.inner_text().split()[0]) > float(level.split()[0]) and shown.inner_text().endswith(" sd")
    assert slider.get_attribute("aria-valuetext") == shown.inner_text().replace("sd", "standard deviations")
    assert choice.locator("option").all_inner_texts() == [
        "map (volume.mrc)",
        "map, sharpened and masked (volume_sharp.mrc)",
        "half-map 1 (half1.mrc)",
        "half-map 2 (half2.mrc)",
    ]
    choice.select_option("half2")
    second = seen.changes(high)
    choice.select_option("half1")
    moved = seen.changes(second)
    assert not np.array_equal(second, moved), "half1 stands 5 voxels higher"
    assert "half-map 1" in str(seen.page.locator(".scene").get_attribute("aria-label"))
    choice.select_option("volume")
    assert np.array_equal(seen.changes(moved), high), "a map's level is remembered"
    assert seen.said == []


def test_the_view_turns_and_zooms(report: str, look: Callable[..., "Look"]) -> None:
    seen = _drawn(look(report, has_touch=True))
    page, start = seen.page, _camera(seen.page)
    box = page.locator(".scene").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 80, y + 10, steps=4)
    page.mouse.up()
    page.wait_for_timeout(200)
    turned = _camera(page)
    assert np.linalg.norm(turned) == pytest.approx(np.linalg.norm(start), rel=0.02)
    assert np.abs(np.subtract(turned, start)).max() > 0.1
    page.mouse.wheel(0, -300)
    page.wait_for_timeout(400)
    near = _camera(page)
    assert np.linalg.norm(near) < 0.9 * np.linalg.norm(turned)
    page.locator(".controls input").press("ArrowRight")
    page.wait_for_timeout(400)
    drawn = page.evaluate("() => document.querySelector('.scene')._fullLayout.scene._scene.getCamera().eye")
    assert list(drawn.values()) == pytest.approx(near), "a new level must leave the camera alone"
    page.locator(".viewer button").click()
    page.wait_for_timeout(200)
    assert _camera(page) == pytest.approx(start)
    page.locator(".scene").press("ArrowLeft")
    page.wait_for_timeout(200)
    around = np.arctan2(_camera(page)[1], _camera(page)[0]) - np.arctan2(start[1], start[0])
    assert around == pytest.approx(-0.2, abs=1e-3) and _camera(page)[2] == pytest.approx(start[2])
    before, box = _camera(page), page.locator(".scene").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    _touch(page, [[(x + 20 * n, y)] for n in range(5)])
    swiped = _camera(page)
    assert np.abs(np.subtract(swiped, before)).max() > 0.1
    assert np.linalg.norm(swiped) == pytest.approx(np.linalg.norm(before), rel=0.02)
    _touch(page, [[(x - d, y), (x + d, y)] for d in (40, 60, 80)])
    assert np.linalg.norm(_camera(page)) == pytest.approx(np.linalg.norm(swiped) / 2, rel=0.05)
    assert seen.said == []


def _touch(page: "Page", steps: list[list[tuple[float, float]]]) -> None:
    """Fingers put down, moved from step to step and lifted."""
    hand = page.context.new_cdp_session(page)
    for n, fingers in enumerate([*steps, []]):
        kind = "touchMove" if 0 < n < len(steps) else "touchStart" if fingers else "touchEnd"
        points = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(fingers)]
        hand.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        page.wait_for_timeout(50)
    page.wait_for_timeout(200)


def test_the_surface_stands_where_the_density_does(run: Path, look: Callable[..., "Look"]) -> None:
    """A Gaussian ball, whose every level is a sphere of known radius; x is the last axis of the file."""
    n, sd_px, centre = 32, 3.0, np.array([5.0, -3.0, 2.0])
    z, y, x = np.indices((n, n, n)) - n // 2
    distance = np.linalg.norm(np.stack([x, y, z], -1) - centre, axis=-1)
    volume = np.exp(-0.5 * (distance / sd_px) ** 2).astype(np.float32)
    for file in ("volume_sharp", "half1", "half2"):
        (run / f"{file}.mrc").unlink()
    write_volume(run / "volume.mrc", volume, 6.0)
    seen = _drawn(look(_report(run)))
    mesh: dict[str, Any] = seen.page.evaluate(
        "() => { const { x, y, z, i, j, k } = document.querySelector('.scene').data[0]; return { x, y, z, i, j, k }; }"
    )
    view = seen.page.evaluate("() => JSON.parse(document.querySelector('.viewer script').textContent)[0]")
    points = np.stack([mesh[axis] for axis in "xyz"], -1) * view["edge_angstrom"] / 6.0 / 2
    assert points.mean(0) == pytest.approx(centre, abs=0.1)
    level = volume.mean() + view["level_sd"] * volume.std()
    radius = sd_px * np.sqrt(-2 * np.log(level))
    assert np.linalg.norm(points - centre, axis=-1) == pytest.approx(np.full(len(points), radius), abs=0.15)
    # closed, and every triangle faces outwards: the volume within is that of the sphere
    corners = points[np.stack([mesh[axis] for axis in "ijk"], -1)] - centre
    enclosed = np.einsum("ni,ni->n", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])).sum() / 6
    assert abs(enclosed) == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.05)


def test_the_policy_lets_nothing_out_and_no_other_script_run(report: str, look: Callable[..., "Look"]) -> None:
    page = look(report).page
    assert page.evaluate(FETCH_ELSEWHERE) == "connect-src"
    page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s); }"
    )
    assert page.evaluate("() => typeof window.ran") == "undefined"


def test_without_javascript_the_page_says_so(report: str, look: Callable[..., "Look"]) -> None:
    page = look(report, java_script_enabled=False).page
    words = page.locator("noscript p")
    assert "The 3-D view needs JavaScript" in str(words.text_content()) and words.bounding_box() is not None
    assert page.get_by_text("The run converged").is_visible()


def test_the_first_level_parts_particle_from_noise() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 0.3, (24, 24, 24))
    scores[8:14, 8:14, 8:14] += 6
    assert 2 < default_level(scores) < 5
    # noise alone has no two kinds of values; at 2 there is not too much of it
    assert default_level(rng.normal(0, 1, (24, 24, 24))) == pytest.approx(2.0)
    assert default_level(np.array([0.0] * 50 + [1.0])) == pytest.approx(0.6)


@pytest.mark.parametrize("box", [16, 31, 64, 130])
def test_a_view_of_any_box_is_small_and_keeps_the_centre(box: int) -> None:
    z, y, x = np.indices((box, box, box)) - box // 2
    volume = np.exp(-0.5 * (x**2 + y**2 + z**2) / (box / 12) ** 2).astype(np.float32)
    cut = Region(0.7).cut(volume)
    edge = cut.shape[0]
    assert cut.shape == (edge,) * 3 and 16 <= edge <= 56
    assert np.unravel_index(cut.argmax(), cut.shape) == (edge // 2,) * 3
    assert cut.max() == pytest.approx(1, abs=0.05)


def test_a_constant_map_has_no_view(run: Path) -> None:
    for file in ("volume", "volume_sharp", "half1", "half2"):
        write_volume(run / f"{file}.mrc", np.zeros((32, 32, 32), np.float32), 6.0)
    page = write_report(run).read_text()
    assert "Map in 3-D" not in page and not re.search("<script", page)
