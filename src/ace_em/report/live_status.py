"""What RUN/status.json says of a run that goes on, in the words of the live page."""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from ace_em.report.run_files import Record, leads_out, number
from ace_em.report.sentences import show_time

# without a word for so long, a run is taken for dead, and sooner when its process is known to be gone
SILENT_S = 60.0
_GONE_S = 10.0
_HEADLINES = {
    "running": "Running",
    "silent": "Running, but without an update for {age}; its process is there",
    "lost": "The run seems to have died: no update for {age}",
    "finished": "The run is finished",
    "stopped": "The run was stopped",
    "failed": "The run failed",
    "unknown": "No run is active in this folder",
}
_ADVICE = {
    "lost": "The same command with --resume continues it from its last checkpoint.",
    "stopped": "The same command with --resume continues it.",
    "unknown": "The page shows what the folder holds, and follows a run as soon as one begins here.",
}


def read_status(run: Path) -> dict[str, Any]:
    """The status for the page's script: everything it shows, as text and numbers that were checked."""
    record = _record(run)
    state, age = _state(record)
    elapsed, expected = number(record, "elapsed_s"), number(record, "expected_s")
    done, total = number(record, "done"), number(record, "total")
    asked = state in ("running", "silent") and (run / "stop").exists()
    going = state in ("running", "silent")
    left = expected - elapsed - age if going and expected == expected else float("nan")
    # the outcome says it of a run that is finished
    message = "" if state == "finished" else _sentence(str(record.get("message") or ""))
    return {
        "state": state,
        "headline": _HEADLINES[state].format(age=show_time(age)),
        "task": _task(record, done, total) if going else "",
        "words": str(record.get("status") or "") if going else "",
        "share": min(max(done / total, 0.0), 1.0) if total > 0 else None,
        "time": _time(going, elapsed, left),
        # the page says it as a time of day where its reader is
        "left_s": round(left) if left > 0 else None,
        "message": " ".join(filter(None, [message, "" if "--resume" in message else _ADVICE.get(state, "")])),
        "stop_asked": asked,
        "stoppable": going and not asked,
    }


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) or not text else ".")


def _record(run: Path) -> Record:
    try:
        value = json.loads((run / "status.json").read_text(encoding="utf-8")) if not leads_out(run, "status.json") else None
    except (OSError, ValueError):
        value = None
    return value if isinstance(value, dict) else {}


def _state(record: Record) -> tuple[str, float]:
    """A key of ``_HEADLINES``, and seconds since the run's last word."""
    state = str(record.get("state"))
    age = time.time() - number(record, "updated")
    age = max(age, 0.0) if age == age else 0.0
    if state not in ("running", "finished", "stopped", "failed"):
        return "unknown", age
    if state != "running" or age < _GONE_S:
        return state, age
    there = _process_is_there(record)
    if there is False or (there is None and age > SILENT_S):
        return "lost", age
    return ("silent" if age > SILENT_S else "running"), age


def _process_is_there(record: Record) -> bool | None:
    """Whether the run's process lives; None where only another machine could tell."""
    pid = number(record, "pid")
    if record.get("host") != socket.gethostname() or not pid > 0:
        return None
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _task(record: Record, done: float, total: float) -> str:
    task = str(record.get("task") or "")
    return f"{task}: {done:,.0f} of {total:,.0f}" if task and total > 0 else task


def _time(going: bool, elapsed: float, left: float) -> str:
    if elapsed != elapsed:
        return ""
    if not going:
        return f"after {show_time(elapsed)}"
    if left != left:
        return f"{show_time(elapsed)} so far"
    if left <= 0:
        return f"{show_time(elapsed)} so far, longer than expected"
    return f"{show_time(elapsed)} so far, about {show_time(left)} left"
