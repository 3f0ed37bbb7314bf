"""README and docs: relative links point to files that exist, and Python blocks compile."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("README.md"), *ROOT.glob("CONTRIBUTING.md"), *(ROOT / "docs").glob("*.md")])

FENCE = re.compile(r"^(?P<mark>```+|~~~+)(?P<language>[^\n`]*)\n(?P<body>.*?)^(?P=mark)[ \t]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)")
ELSEWHERE = re.compile(r"^([a-z][a-z0-9+.-]*:|#)", re.IGNORECASE)


def broken_links(page: Path) -> list[str]:
    """Relative link targets of a Markdown page, outside code, that do not exist."""
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text()))
    targets = [t for t in LINK.findall(prose) if not ELSEWHERE.match(t)]
    return [t for t in targets if not (page.parent / t.split("#")[0]).exists()]


def python_blocks(page: Path) -> list[tuple[int, str]]:
    """First line number and body of every fenced Python block."""
    text = page.read_text()
    found = [m for m in FENCE.finditer(text) if m["language"].strip().lower() in ("python", "py")]
    return [(text.count("\n", 0, m.start()) + 2, m["body"]) for m in found]


def bad_blocks(page: Path) -> list[str]:
    """What the compiler says of the Python blocks of a page that do not compile."""
    found = []
    for line, body in python_blocks(page):
        try:
            compile("\n" * (line - 1) + body, str(page), "exec")
        except SyntaxError as error:
            found.append(str(error))
    return found


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def test_the_pages_are_there() -> None:
    names = {page_name(page) for page in PAGES}
    assert {"README.md", "docs/conventions.md", "docs/paper-notes.md"} <= names


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_point_to_files(page: Path) -> None:
    assert broken_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_python_blocks_compile(page: Path) -> None:
    assert bad_blocks(page) == []


def test_a_broken_link_and_a_bad_block_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "[good](page.md#part) [bad](gone.md) ![bad](img/gone.png) [web](https://example.org) `[code](no.md)`\n"
        "```python\nx = (\n```\n```\n[code](no.md)\n```\n"
    )
    assert broken_links(page) == ["gone.md", "img/gone.png"]
    assert [line for line, _ in python_blocks(page)] == [3]
    assert len(bad_blocks(page)) == 1


def test_the_notes_on_the_paper_name_tests_that_exist() -> None:
    """Every reading is held by a test: `folder/file.py::name` below tests/."""
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", (ROOT / "docs" / "paper-notes.md").read_text())
    assert len(named) > 30
    missing = [f"{file}::{name}" for file, name in named if f"def {name}(" not in _source(ROOT / "tests" / file)]
    assert missing == []


def _source(path: Path) -> str:
    return path.read_text() if path.is_file() else ""
