"""The scripts of the page: our own, beside this file, and plotly's, from the installed package."""

import base64
import hashlib
from functools import cache
from pathlib import Path

VIEWER_JS = Path(__file__).with_name("viewer.js").read_text(encoding="utf-8")
LIVE_JS = Path(__file__).with_name("live.js").read_text(encoding="utf-8")
# plotly reads back what it drew on a canvas not made for that, of which browsers warn on the console
_READ_BACK = """HTMLCanvasElement.prototype.getContext = ((get) => function (kind, options) {
  return get.call(this, kind, kind === "2d" ? { willReadFrequently: true, ...options } : options);
})(HTMLCanvasElement.prototype.getContext);
"""


@cache
def plotly_js() -> str:
    """plotly's JavaScript, 5 MB; the package says that it may stand in a script element as it is."""
    from plotly.offline import get_plotlyjs

    return _READ_BACK + str(get_plotlyjs())


def script_hash(script: str) -> str:
    """What a Content-Security-Policy calls an inline script that may run: the quoted hash of its text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
