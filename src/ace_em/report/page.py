"""The report of a run: one HTML file that holds everything and asks for nothing."""

import base64
import math
from collections.abc import Callable
from html import escape
from pathlib import Path

from ace_em.data.atomic import replace_atomically
from ace_em.errors import InputError
from ace_em.report.charts import fsc_figure, loss_figure, round_figure
from ace_em.report.figures import map_figure, triplet_figure, view_figure
from ace_em.report.run_files import RunFiles, column, number, read_run, rotations
from ace_em.report.sentences import STAGES, Summary, last, limits, outcome, summarise, tiles
from ace_em.report.style import CSS
from ace_em.report.triplets import MAX_BOX, make_triplets

LOW_PASS_ANGSTROM = 20.0
# nothing may be fetched, whatever text a run brings
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_SCORES = {
    "fsc05_px": "FSC 0.5 against the truth (px)",
    "fsc05_angstrom": "FSC 0.5 against the truth (Å)",
    "bound_px": "the same for the true poses, the bound (px)",
    "rot_mean": "Rot. error, mean (squared Frobenius)",
    "rot_median": "Rot. error, median (squared Frobenius)",
    "trans": "Trans. error, mean squared (px²)",
    "within_10deg": "share of poses within 10°",
    "coverage": "share of the view sphere reached",
    "hand": "hand, compared with the truth",
}


def write_report(run: Path) -> Path:
    """Write ``RUN/report.html`` from what the run folder holds, finished or not; the path of the page."""
    files = read_run(run)
    page = render(files)
    path = run / "report.html"
    with replace_atomically(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def render(run: RunFiles) -> str:
    """The page as text."""
    summary = summarise(run)
    kind, sentence = outcome(run, summary)
    name = escape(run.path.resolve().name)
    message = last(run.stage("end")).get("message")
    body = [
        f"<header><h1>{name}</h1><p class='what'>ace-em, ab initio reconstruction</p>",
        f"<p class='outcome {kind}'>{escape(sentence)}</p>",
        f"<p class='message'>{escape(str(message))}</p>" if message else "",
        "</header>",
        _tiles(run, summary),
        _problems(run),
        "<main class='grid'>",
        *_figures(run, summary),
        _evaluation(run),
        "</main>",
        _limits(run),
        _settings(run),
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<link rel="icon" href="data:,"><title>{name} – ace-em</title><style>{CSS}</style>'
    )
    inside = "\n".join(filter(None, body))
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{inside}\n</body></html>\n'


def _tiles(run: RunFiles, summary: Summary) -> str:
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in tiles(run, summary))
    return f"<dl class='tiles'>{cells}</dl>"


def _problems(run: RunFiles) -> str:
    found = [f"<li><code>{escape(name)}</code>: {escape(what)}</li>" for name, what in run.problems]
    for stage, word in STAGES.items():
        if not run.stage(stage):
            found.append(f"<li><code>metrics.jsonl</code>: no entry of {word}</li>")
    return f"<section class='missing'><h2>What is missing</h2><ul>{''.join(found)}</ul></section>" if found else ""


def _figures(run: RunFiles, summary: Summary) -> list[str]:
    """The figures of the page from top to bottom; one that cannot be made leaves a card that says why."""
    return [
        _card("The map", "picture", "central slices and projections of the map", lambda: _map(run)),
        _card("Resolution", "chart", "Fourier shell correlation of the half-maps", lambda: _fsc(run, summary)),
        _card("Views", "picture", "distribution of viewing directions", lambda: _views(run)),
        _card("Stage 1: losses", "chart", "image loss and PIP loss over steps", lambda: _losses(run)),
        _card("Pose search and refinement", "chart", "pose change, stable share, resolution", lambda: _rounds(run)),
        _card("Images and predictions", "picture tall", "input, predicted, clean projection", lambda: _triplets(run)),
    ]


def _card(title: str, kind: str, alt: str, make: Callable[[], tuple[bytes, str]]) -> str:
    heading = f"<h2>{escape(title)}</h2>"
    try:
        png, caption = make()
    except (InputError, OSError, ValueError) as error:
        return f"<section class='card {kind}'>{heading}<p class='absent'>Not shown: {escape(str(error))}</p></section>"
    source = base64.b64encode(png).decode("ascii")
    image = f'<img src="data:image/png;base64,{source}" alt="{escape(alt)}">'
    return f"<section class='card {kind}'>{heading}<figure>{image}<figcaption>{escape(caption)}</figcaption></figure></section>"


def _absent(run: RunFiles, file: str) -> InputError:
    return InputError(run.problem(file) or f"{file} is not there")


def _map(run: RunFiles) -> tuple[bytes, str]:
    if run.map is None:
        raise _absent(run, "volume.mrc")
    caption = "Density is white. Seen along x: y to the right, z up; along y: x right, z up; along z: x right, y up."
    return map_figure(run.map), caption


def _fsc(run: RunFiles, summary: Summary) -> tuple[bytes, str]:
    if run.curve is None:
        raise _absent(run, "fsc.csv")
    truth = (run.evaluation or {}).get("fsc_truth")
    truth = column([{"fsc": value} for value in truth], "fsc") if isinstance(truth, list) and truth else None
    parts = [
        f"{threshold:g} at {angstrom:.3g} Å" if math.isfinite(angstrom) else f"above {threshold:g} to the last shell"
        for threshold, angstrom in summary.crossings.items()
    ]
    caption = f"Half-map FSC: {'; '.join(parts)}." + (" Dashed: the map against the known truth." if truth is not None else "")
    return fsc_figure(run.curve, summary.crossings, truth), caption


def _views(run: RunFiles) -> tuple[bytes, str]:
    if run.table is None:
        raise _absent(run, "poses.star")
    # some 25 views count at every point, so that chance alone makes it vary by a fifth
    spread = min(max(math.degrees(5 / len(run.table) ** 0.5), 5.0), 25.0)
    caption = f"Viewing directions in the map's own frame (Mollweide, equal areas), each spread over {spread:.0f}°."
    return view_figure(rotations(run.table), spread), caption


def _losses(run: RunFiles) -> tuple[bytes, str]:
    records = run.stage("ace")
    if not records:
        raise InputError("metrics.jsonl has no entry of stage 1")
    caption = (
        "The image loss counts more frequencies as the run goes on, so it need not fall. A PIP loss that stays high means "
        "that the map has no features to tell views apart."
    )
    return loss_figure(records), caption


def _rounds(run: RunFiles) -> tuple[bytes, str]:
    search, refine = run.stage("search"), run.stage("refine")
    if not search and not refine:
        raise InputError("metrics.jsonl has no rounds yet")
    caption = (
        "Top: how far the median pose turned in a round. Middle: share of poses that hardly turned. Bottom: half-map FSC 0.143, "
        "and in grey the finest detail the round looked at. Dotted: the refinement begins, or its box changes."
    )
    return round_figure(search, refine), caption


def _triplets(run: RunFiles) -> tuple[bytes, str]:
    if run.map is None:
        raise _absent(run, "volume.mrc")
    if run.particles is None:
        raise _absent(run, "particle images")
    contrast = last(run.stage("survey")).get("contrast", run.config.get("contrast"))
    sign = -1.0 if contrast == "black" else 1.0
    shown = make_triplets(run.particles, run.map, sign, LOW_PASS_ANGSTROM)
    box = run.map.volume.shape[0]
    caption = (
        f"Particles spread evenly over the set, not chosen by eye. Input: protein white, low-passed at {LOW_PASS_ANGSTROM:g} Å "
        "for display. Predicted: the map at the particle's pose, with CTF and shift; r is its correlation with the input. "
        "Clean projection: without CTF and shift. Each picture has its own grey scale."
    )
    return triplet_figure(shown, run.map.pixel_size_angstrom * box / min(box, MAX_BOX)), caption


def _evaluation(run: RunFiles) -> str:
    if not run.evaluation:
        return ""
    names = [*(n for n in _SCORES if n in run.evaluation), *(n for n in run.evaluation if n not in _SCORES)]
    rows = []
    for name in names:
        value = run.evaluation[name]
        if not isinstance(value, list | dict):
            score = number(run.evaluation, name)
            text = f"{score:.4g}" if math.isfinite(score) else str(value)
            rows.append(f"<tr><th scope='row'>{escape(_SCORES.get(name, name))}</th><td>{escape(text)}</td></tr>")
    return f"<section class='card'><h2>Against the truth</h2><table>{''.join(rows)}</table></section>"


def _limits(run: RunFiles) -> str:
    items = "".join(f"<li><strong>{escape(name)}</strong> {escape(text)}</li>" for name, text in limits(run))
    return f"<section class='card wide'><h2>What this run cannot tell you</h2><ul>{items}</ul></section>"


def _settings(run: RunFiles) -> str:
    if run.config_text is None:
        return ""
    return f"<details class='card wide'><summary>Settings (config.yaml)</summary><pre>{escape(run.config_text)}</pre></details>"
