"""What the page is made of: parts that can be made one by one, each from some of the run's files."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from ace_em.errors import InputError, in_words
from ace_em.report.run_files import RunFiles
from ace_em.report.sentences import Summary


@dataclass(frozen=True)
class Part:
    """A part of the page.

    Attributes
    ----------
    name : the id of its place on the page.
    files : those of the run folder that it shows; while they stay as they are, so does the part.
    html : makes it; empty where there is nothing to show.
    """

    name: str
    files: tuple[str, ...]
    html: Callable[[RunFiles, Summary], str]


@dataclass(frozen=True)
class Drawn:
    """A picture as the bytes of a PNG, what stands below it, and the rows of a table, the first its head."""

    png: bytes
    caption: str
    table: Sequence[Sequence[str]] = ()


def figure_part(
    name: str, words: tuple[str, str, str], files: tuple[str, ...], draw: Callable[[RunFiles, Summary], Drawn]
) -> Part:
    """A card with a picture; one that cannot be made leaves a card that says why.

    ``words`` are its title, its kind ('picture' is light on black on every screen, 'chart' dark on white), and what a
    reader who does not see it is told.
    """

    def html(run: RunFiles, summary: Summary) -> str:
        title, kind, alt = words
        heading = f"<h2>{escape(title)}</h2>"
        try:
            drawn = draw(run, summary)
        except (InputError, OSError, ValueError) as error:
            return f"<section class='card {kind}'>{heading}<p class='absent'>Not shown: {escape(in_words(error))}</p></section>"
        source = base64.b64encode(drawn.png).decode("ascii")
        image = f'<img src="data:image/png;base64,{source}" alt="{escape(alt)}">'
        below = f"<figcaption>{escape(drawn.caption)}</figcaption>{table(drawn.table)}"
        return f"<section class='card {kind}'>{heading}<figure>{image}{below}</figure></section>"

    return Part(name, files, html)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, the first of them the head."""
    if not rows:
        return ""
    head = "".join(f"<th scope='col'>{escape(cell)}</th>" for cell in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:])
    return f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def absent(run: RunFiles, file: str) -> InputError:
    """Why a file cannot be shown."""
    return InputError(run.problem(file) or f"{file} is not there")


def in_columns(cells: Sequence[str]) -> str:
    """Cards in two columns that are filled from side to side, so that a short card leaves no gap beside a tall one.

    On a phone they stand below one another in the order given.
    """
    places = [f"<div class='cell' style='order:{n}'>{cell}</div>" if cell else "" for n, cell in enumerate(cells)]
    columns = "".join(f"<div class='column'>{''.join(places[side::2])}</div>" for side in (0, 1))
    return f"<main class='grid'>{columns}</main>"
