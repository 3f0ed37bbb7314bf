"""For the site: links that leave it, words that stay whole, and docstrings as mkdocstrings understands them."""

import re
from typing import Any

import griffe

OUTSIDE = re.compile(r"(?<!!)\[([^\]]*)\]\(\.\./([^)\s]+)\)")
ROLE = re.compile(r":(?:func|class|meth|mod|attr):`~?([^`]+)`")
WORD = re.compile(r"<code>([^<\s]{1,30})</code>")
UNDERLINE = re.compile(r"^-{3,}\s*$")
ENTRY = re.compile(r"^(\w+(?:, \w+)*) : (.+)$")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """``[the table](../benchmarks/results/t.md)`` is a link in the repository; on the site it says where the table is."""
    return OUTSIDE.sub(_named, markdown)


def _named(link: re.Match[str]) -> str:
    text, path = link[1], link[2]
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
