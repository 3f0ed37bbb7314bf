"""The report of a run: one HTML file that holds everything and asks for nothing."""

import math
import re
from html import escape
from pathlib import Path

from ace_em.errors import InputError
from ace_em.io.atomic import replace_atomically
from ace_em.report.cards import RUN_CARDS
from ace_em.report.limits import limits
from ace_em.report.particle_cards import PARTICLE_CARDS
from ace_em.report.parts import Part, in_columns
from ace_em.report.provenance import provenance
from ace_em.report.run_files import RunFiles, number, read_run
from ace_em.report.scripts import VIEWER_JS, plotly_js, script_hash
from ace_em.report.sentences import AUTOENCODER_RUN, EVERY_RUN, STAGES, Summary, last, outcome, show_share, summarise, tiles
from ace_em.report.style import CSS
from ace_em.report.volume_view import view_maps, viewer_card

# nothing may be fetched, whatever text a run brings, and no script run but the page's own
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
NO_BREAK = "\N{NO-BREAK SPACE}"
_SCORES = {
    "fsc05_px": "FSC 0.5 against the truth (px of the map)",
    "fsc05_angstrom": "FSC 0.5 against the truth (Å)",
    "bound_px": "the same for the true poses in C1, the bound (px of the map)",
    "rot_mean": "Rot. error, mean (squared Frobenius)",
    "rot_median": "Rot. error, median (squared Frobenius)",
    "trans": "Trans. error, mean squared (px² of the images)",
    "within_10deg": "poses within 10°",
    "coverage": "view sphere reached",
    "hand": "hand, compared with the truth",
}


def write_report(run: Path) -> Path:
    """Write ``RUN/report.html`` from what the run folder holds, finished or not; the path of the page."""
    files = read_run(run)
    if not any((run / file).exists() for file in _RECORDS):
        # another program's report.html may be here
        raise InputError(f"{run}: not the folder of a run: neither {' nor '.join(_RECORDS)} is in it")
    page = render(files)
    path = run / "report.html"
    with replace_atomically(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def render(run: RunFiles) -> str:
    """The page as text."""
    summary = summarise(run)
    try:
        maps = view_maps(run)
    except (InputError, OSError, ValueError):
        # the card of the slices says why
        maps = None
    made = {part.name: part.html(run, summary) for part in (*TOP, *GRID, *BELOW)}
    grid = [viewer_card(maps) if maps else "", *(made[part.name] for part in GRID)]
    # plotly is most of the page: without a map it would be so for nothing
    scripts = [plotly_js(), VIEWER_JS] if maps else []
    policy = "; ".join([_POLICY, *([f"script-src {' '.join(map(script_hash, scripts))}"] if scripts else [])])
    title = title_of(run.path)
    body = [
        f"<header><h1>{escape(title)}</h1><p class='what'>ace-em, ab initio reconstruction</p>",
        made["outcome"],
        "</header>",
        *(made[part.name] for part in TOP[1:]),
        in_columns(grid),
        *(made[part.name] for part in BELOW),
        *(f"<script>{script}</script>" for script in scripts),
    ]
    return document(title, "\n".join(filter(None, body)), policy)


def title_of(run: Path) -> str:
    """The run's folder and the one that it is in: many runs are called "run"."""
    return "/".join(run.resolve().parts[-2:]).lstrip("/")


def document(title: str, body: str, policy: str) -> str:
    """A whole page with its style; ``policy`` says what it may load."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<link rel="icon" href="data:,"><title>{escape(title)} – ace-em</title><style>{CSS}</style>'
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _prose(text: str) -> str:
    """Escaped text whose command-line options are set as code, never broken at their hyphens."""
    return re.sub(r"--\w[\w.-]*\w", lambda option: f"<code>{option[0]}</code>", escape(text))


def _outcome(run: RunFiles, summary: Summary) -> str:
    """How the run ended and the run's own words on it; reasons and advice stand out when it has not converged."""
    kind, sentence = outcome(run, summary)
    message = str(last(run.stage("end")).get("message") or "")
    reasons, advised, advice = message.partition(" Try: ")
    words = [reasons[:1].upper() + reasons[1:], f"Try: {advice}" if advised else ""]
    body = "".join(f"<p class='message'>{_prose(text)}</p>" for text in words if text)
    return f"<div class='outcome {kind}'><p>{escape(sentence)}</p>{body}</div>"


def _tiles(run: RunFiles, summary: Summary) -> str:
    cells = "".join(
        # a unit stays with its number
        f"<div><dt>{escape(name)}</dt><dd>{escape(value).replace(' Å', NO_BREAK + 'Å')}</dd></div>"
        for name, value in tiles(run, summary)
    )
    return f"<dl class='tiles'>{cells}</dl>"


def _problems(run: RunFiles, summary: Summary) -> str:
    found = [f"<li><code>{escape(name)}</code>: {escape(what)}</li>" for name, what in run.problems]
    stages = AUTOENCODER_RUN if run.autoencoder_only else EVERY_RUN
    absent = [stage for stage in stages if not run.stage(stage)]
    found += [f"<li><code>metrics.jsonl</code>: no entry of {STAGES[stage]}</li>" for stage in absent]
    return f"<section class='missing'><h2>What is missing</h2><ul>{''.join(found)}</ul></section>" if found else ""


def _evaluation(run: RunFiles, summary: Summary) -> str:
    if not run.evaluation:
        return ""
    names = [*(n for n in _SCORES if n in run.evaluation), *(n for n in run.evaluation if n not in _SCORES)]
    rows = []
    for name in names:
        value = run.evaluation[name]
        if not isinstance(value, list | dict):
            score = number(run.evaluation, name)
            text = f"{score:.4g}" if math.isfinite(score) else str(value)
            if name in ("within_10deg", "coverage"):
                text = show_share(score, 2)
            if name.startswith("fsc05") and _never_below_half(run):
                text = f"≤ {text}"
            rows.append(f"<tr><th scope='row'>{escape(_SCORES.get(name, name))}</th><td>{escape(text)}</td></tr>")
    return f"<section class='card'><h2>Against the truth</h2><table>{''.join(rows)}</table></section>"


def _never_below_half(run: RunFiles) -> bool:
    """Whether the curve against the truth stays above 0.5 to its last shell."""
    curve = (run.evaluation or {}).get("fsc_truth")
    return isinstance(curve, list) and all(number({"fsc": v}, "fsc") >= 0.5 for v in curve[2:])


def _limits(run: RunFiles, summary: Summary) -> str:
    items = "".join(f"<li><strong>{escape(name)}</strong> {_prose(text)}</li>" for name, text in limits(run))
    return f"<section class='card wide'><h2>What this run cannot tell you</h2><ul>{items}</ul></section>"


def _settings(run: RunFiles, summary: Summary) -> str:
    if run.config_text is None:
        return ""
    return f"<details class='card wide'><summary>Settings (config.yaml)</summary><pre>{escape(run.config_text)}</pre></details>"


_RECORDS = ("metrics.jsonl", "config.yaml")
_EVERY_FILE = (*_RECORDS, "volume.mrc", "volume_sharp.mrc", "half1.mrc", "half2.mrc", "fsc.csv", "poses.star", "evaluation.json")
TOP: tuple[Part, ...] = (
    Part("outcome", (*_RECORDS, "fsc.csv", "poses.star"), _outcome),
    Part("tiles", (*_RECORDS, "fsc.csv", "poses.star", "volume.mrc", "evaluation.json"), _tiles),
    Part("problems", _EVERY_FILE, _problems),
)
GRID: tuple[Part, ...] = (*RUN_CARDS, *PARTICLE_CARDS, Part("evaluation", ("evaluation.json",), _evaluation))
BELOW: tuple[Part, ...] = (
    Part("provenance", ("metrics.jsonl",), provenance),
    Part("limits", _RECORDS, _limits),
    Part("settings", ("config.yaml",), _settings),
)
