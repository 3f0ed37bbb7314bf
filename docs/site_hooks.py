"""For the site: the notebook as a page, links that leave it, words that stay whole, docstrings as mkdocstrings reads them."""

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

NOTEBOOK = Path(__file__).parents[1] / "examples" / "notebook.ipynb"

OUTSIDE = re.compile(r"(?<!!)\[([^\]]*)\]\(\.\./([^)\s]+)\)")
ROLE = re.compile(r":(?:func|class|meth|mod|attr):`~?([^`]+)`")
WORD = re.compile(r"<code>([^<\s]{1,30})</code>")
UNDERLINE = re.compile(r"^-{3,}\s*$")
ENTRY = re.compile(r"^(\w+(?:, \w+)*) : (.+)$")
PANDAS = re.compile(r"<style scoped>.*?</style>\s*|(?<=<table) border=\"1\" class=\"dataframe\"", re.DOTALL)


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """The notebook is a page, with the outputs that it holds."""
    named = {"unique_key": "notebook", "output_files_dir": "img"}
    markdown, found = MarkdownExporter().from_filename(str(NOTEBOOK), resources=named)
    # tables look as those of other pages
    markdown = PANDAS.sub("", markdown).replace("![png]", "![figure]")
    files.append(File.generated(config, "notebook.md", content=markdown))
    for name, content in found["outputs"].items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """``[the table](../benchmarks/results/t.md)`` is a link in the repository; on the site it says where the table is."""
    return OUTSIDE.sub(_named, markdown)


def _named(link: re.Match[str]) -> str:
    text, path = link[1], link[2]
    if path == "examples/notebook.ipynb":
        return f"[{text}](notebook.md)"
    return f"`{path}`" if text.strip("`").rstrip("/") == path.rstrip("/") else f"{text} (`{path}`)"


def on_page_content(html: str, **_: Any) -> str:
    """Short words of code are not broken at their hyphens and dots."""
    return WORD.sub(r'<code class="whole">\1</code>', html)


class PlainEntries(griffe.Extension):
    """Our ``name : what it is`` is numpydoc's ``name : type``; types stand in the signatures."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = described(obj.docstring.value)


def described(docstring: str) -> str:
    """The docstring with the words after a name on a line of their own, and without Sphinx's roles."""
    section, lines = "", []
    source = ROLE.sub(r"`\1`", docstring).split("\n")
    for line, following in zip(source, [*source[1:], ""], strict=True):
        if UNDERLINE.match(following):
            section = line.strip()
        entry = ENTRY.match(line) if section in ("Parameters", "Attributes") else None
        if section == "Returns":
            # taken for a type, which is set as code
            line = line.replace("``", "")
        lines += [entry[1], f"    {entry[2]}"] if entry else [line]
    return "\n".join(lines)
