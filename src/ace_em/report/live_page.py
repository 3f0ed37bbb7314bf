"""The frame of the live page: places that live.js fills."""

from html import escape
from pathlib import Path

from ace_em.report.live_guard import POLICY
from ace_em.report.live_parts import PARTS
from ace_em.report.page import BELOW, GRID, TOP, document, title_of
from ace_em.report.parts import in_columns
from ace_em.report.volume_view import viewer_card

_STATUS = """<section class="live" id="status">
<p class="headline" role="status"></p><p class="task"></p>
<progress max="1" hidden aria-label="share of the present task"></progress>
<p class="time"></p><p class="message"></p>
<button type="button" id="stop" hidden>Stop the run …</button>
</section>
<p class="silent" id="silent" role="alert" hidden></p>
<dialog id="ask" aria-labelledby="ask-title"><h2 id="ask-title">Stop the run?</h2>
<p>It saves a checkpoint and ends. The same command with <code>--resume</code> continues it.</p>
<form method="dialog"><button value="stop" id="stop-now">Stop the run</button>
<button value="" autofocus>Keep running</button></form></dialog>"""
# frame-ancestors means nothing in a meta element, and browsers complain
_META_POLICY = POLICY.partition("; frame-ancestors")[0]


def live_page(run: Path, csrf: str) -> str:
    """The page; ``csrf`` is what its stop button must send."""
    title = title_of(run)
    places = {name: f"<div id='part-{name}'></div>" for name in PARTS}
    body = [
        f"<header><h1>{escape(title)}</h1><p class='what'>ace-em, a run as it goes</p></header>",
        f"<noscript><p class='silent'>This page follows the run by JavaScript, which is off.</p></noscript>{_STATUS}",
        *(places[part.name] for part in TOP if part.name in places),
        in_columns([f"<div id='maps' hidden>{viewer_card(None)}</div>", *(places[part.name] for part in GRID)]),
        *(places[part.name] for part in BELOW),
        places["files"],
        f"<div id='keys' data-stop='{escape(csrf)}' hidden></div>",
        "<script src='/plotly.js'></script><script src='/viewer.js'></script><script src='/live.js'></script>",
    ]
    return document(title, "\n".join(body), _META_POLICY)
