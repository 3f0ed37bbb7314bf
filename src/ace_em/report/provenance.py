"""How a run was made: command, versions and machine, from the record with which it began."""

import math
from html import escape

from ace_em.report.run_files import Record, RunFiles, number
from ace_em.report.sentences import Summary, show, show_time

_KNOWN = ("stage", "time_s", "command", "versions")
_NAMES = {
    "folder": "in the folder",
    "date": "on",
    "platform": "platform",
    "device": "device",
    "threads": "threads",
    "expected_s": "time expected",
    "memory_gib": "memory expected",
}


def provenance(run: RunFiles, summary: Summary) -> str:
    """A card with a block for the start and for each time the run was resumed; nothing for a run without the record."""
    begins = run.stage("begin")
    if not begins:
        return ""
    blocks = []
    for n, begin in enumerate(begins):
        heading = ""
        if len(begins) > 1:
            at = number(begin, "time_s")
            when = f" at {show_time(at)}" if n and math.isfinite(at) else ""
            heading = f"<h3>{f'Resumed{when}' if n else 'Begun'}</h3>"
        blocks.append(heading + _block(begin))
    return f"<section class='card wide'><h2>How it was made</h2>{''.join(blocks)}</section>"


def _block(begin: Record) -> str:
    command = begin.get("command")
    line = f"<pre class='command'>{escape(str(command))}</pre>" if command else ""
    rows = [(_NAMES.get(key, key.replace("_", " ")), _value(key, begin)) for key in begin if key not in _KNOWN]
    versions = begin.get("versions")
    if isinstance(versions, dict):
        rows.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in rows)
    return f"{line}<dl class='facts'>{cells}</dl>"


def _value(key: str, begin: Record) -> str:
    if key.endswith("_s"):
        return show_time(number(begin, key))
    if key.endswith("_gib"):
        return show(number(begin, key), " GiB", 2)
    return str(begin[key])
