"""The documentation site builds without a warning, holds every page, and asks nothing of other machines."""

import os
import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.stem for path in (ROOT / "docs").glob("*.md"))
WANTED = {
    *("index", "tutorial", "from-relion", "from-cryosparc", "report", "files", "method"),
    *("refinement", "conventions", "paper-notes", "experiments", "new-decoder", "api"),
}
ELSEWHERE = re.compile(r"^\s*(https?:)?//", re.IGNORECASE)
STYLE_ELSEWHERE = re.compile(r"""(?:@import\s*|url\(\s*)["']?\s*(?:https?:)?//[^)\s]+""", re.IGNORECASE)


class Requests(HTMLParser):
    """What a browser asks for by itself when it opens a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        of = dict(attributes)
        names = {"link": ("href",), "object": ("data",), "use": ("href",)}.get(tag, ("src", "srcset", "poster"))
        # a canonical link is only told, not fetched
        self.found += [of[name] or "" for name in names if name in of and of.get("rel") != "canonical"]


def other_origins(html: str) -> list[str]:
    page = Requests()
    page.feed(html)
    return [address for address in page.found if ELSEWHERE.match(address)] + STYLE_ELSEWHERE.findall(html)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material", reason="pip install 'ace-em[docs]'")
    pytest.importorskip("mkdocstrings", reason="pip install 'ace-em[docs]'")
    folder = tmp_path_factory.mktemp("site") / "built"
    # from another folder: paths must not hang on where the command is given
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(ROOT / "mkdocs.yml"), "-d", str(folder)]
    done = subprocess.run(command, cwd=folder.parent, env=os.environ | {"NO_COLOR": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_there_and_in_the_menu(site: Path) -> None:
    assert WANTED <= set(PAGES)
    home = (site / "index.html").read_text()
    for page in PAGES:
        assert (site / f"{page}.html").is_file()
        assert f'href="{page}.html" class="md-nav__link"' in home or page == "index"


def test_no_page_asks_another_origin(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    assert {str(page): asked for page in pages if (asked := other_origins(page.read_text()))} == {}
    styles = [path for path in site.rglob("*.css") if STYLE_ELSEWHERE.search(path.read_text())]
    assert styles == []


def test_links_out_of_the_site_are_names_of_files(site: Path) -> None:
    for page in PAGES:
        assert 'href="../' not in (site / f"{page}.html").read_text()
    assert "<code>benchmarks/results/paper-2026-11-23.md</code>" in (site / "experiments.html").read_text()


def test_the_page_of_the_decoder_shows_the_example(site: Path) -> None:
    html = re.sub(r"<[^>]+>", "", (site / "new-decoder.html").read_text())
    source = (ROOT / "examples" / "new_decoder.py").read_text().strip()
    assert source in unescape(html)


def test_the_notebook_is_a_page_with_its_figures_and_tables(site: Path) -> None:
    html = (site / "notebook.html").read_text()
    figures = re.findall(r'<img alt="figure" src="(img/notebook_\w+\.png)"', html)
    assert len(figures) > 5
    for figure in figures:
        assert (site / figure).read_bytes().startswith(b"\x89PNG")
    assert "<th>explained</th>" in html and 'class="dataframe"' not in html
    assert "of the poses within 10 degrees; hand" in html
    assert 'href="notebook.html" class="md-nav__link"' in (site / "index.html").read_text()
    assert '<a href="notebook.html">A notebook</a>' in (site / "api.html").read_text()


def test_the_list_of_modules_is_filled(site: Path) -> None:
    html = (site / "api.html").read_text()
    for name in ("physics.ctf.CTFParameters", "tasks.losses", "metrics.fsc", "maths.half_plane.HalfPlane"):
        assert f'id="ace_em.{name}"' in html
    # a description that is taken for a type stands in code, its own marks in it
    assert "pixels per image edge." in html and "<code>pixels per image edge" not in html
    assert ":func:" not in html


def test_a_request_elsewhere_is_seen() -> None:
    html = '<script src="//a.org/x.js"></script><link rel="canonical" href="https://b.org"><a href="https://c.org">c</a>'
    assert other_origins(html) == ["//a.org/x.js"]
    assert other_origins('<link rel=stylesheet href="https://d.org/x.css"><style>@import "https://e.org/y.css"</style>') != []
