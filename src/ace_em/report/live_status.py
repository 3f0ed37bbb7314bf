"""Content of the live page: the state of the run from status.json, and the parts of the page, rendered when files change."""

import hashlib
import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ace_em.errors import InputError
from ace_em.report import load
from ace_em.report.load import Record, RunFiles, is_outside, number
from ace_em.report.numbers import show_time
from ace_em.report.page import PARTS, PROBLEMS, Part
from ace_em.report.summary import summarise
from ace_em.report.volume_view import view_maps

SILENT_S, GONE_S = 60.0, 10.0
"""Seconds without an update after which a run counts as dead; the second if its process does not exist."""
PAUSE_S = 12.0
"""Minimum seconds between two drawings of a figure, because drawing takes processor time from the run."""
SERVED = {
    load.REPORT: "text/html; charset=utf-8",
    load.FSC: "text/csv; charset=utf-8",
    load.METRICS: "application/jsonl; charset=utf-8",
    **dict.fromkeys((*load.MAPS, load.MASK, load.POSES), "application/octet-stream"),
}
_HEADLINES = {
    "running": "Running",
    "silent": "Running, but no update for {age}; the process still exists",
    "lost": "The run seems to have crashed: no update for {age}",
    "finished": "The run is finished",
    "stopped": "The run was stopped",
    "failed": "The run failed",
    "unknown": "No run is active in this folder",
}
_ADVICE = {
    "lost": "To continue from the last checkpoint, use the same command with --resume.",
    "stopped": "To continue, use the same command with --resume.",
    "unknown": "This page shows the files in the folder and will follow a run when one starts.",
}


def served_file(run: Path, name: str) -> Path | None:
    """Path of a file that may be downloaded; None for other names, missing files and links out of the folder."""
    allowed = name in SERVED and not is_outside(run, name) and (run / name).is_file()
    return (run / name).resolve() if allowed else None


FILES = Part("files", tuple(SERVED), lambda run, summary: [name for name in SERVED if served_file(run.path, name)])
LIVE_PARTS = {part.name: part for part in (*PARTS, FILES) if part is not PROBLEMS}
"""Parts of the live page, without the list of missing files."""


def read_status(run: Path) -> dict[str, Any]:
    """State of the run from RUN/status.json, for the script of the page."""
    record = _record(run)
    state, age = _state(record)
    active = state in ("running", "silent")
    elapsed, done, total = (number(record, key) for key in ("elapsed_s", "done", "total"))
    left = number(record, "expected_s") - elapsed - age if active else math.nan
    task, message = str(record.get("task") or ""), str(record.get("message") or "") if state != "finished" else ""
    message = message[:1].upper() + message[1:] + ("." if message and not message.endswith((".", "!", "?")) else "")
    time_text = "" if math.isnan(elapsed) else f"{show_time(elapsed)} so far" if active else f"after {show_time(elapsed)}"
    if time_text and not math.isnan(left):
        time_text += f", about {show_time(left)} left" if left > 0 else ", longer than expected"
    asked = active and (run / load.STOP).exists()
    return {
        "state": state,
        "headline": _HEADLINES[state].format(age=show_time(age)),
        "task": "" if not active else f"{task}: {done:,.0f} of {total:,.0f}" if task and total > 0 else task,
        "words": str(record.get("status") or "") if active else "",
        "share": min(max(done / total, 0.0), 1.0) if total > 0 else None,
        "time": time_text,
        # the browser converts it to local time
        "left_s": round(left) if left > 0 else None,
        "message": " ".join(filter(None, [message, "" if "--resume" in message else _ADVICE.get(state, "")])),
        "stop_asked": asked,
        "stoppable": active and not asked,
    }


def _record(run: Path) -> Record:
    try:
        value = {} if is_outside(run, load.STATUS) else json.loads((run / load.STATUS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        value = {}
    return value if isinstance(value, dict) else {}


def _state(record: Record) -> tuple[str, float]:
    """A key of ``_HEADLINES``, and seconds since the last update."""
    state, age = str(record.get("state")), time.time() - number(record, "updated")
    age = max(age, 0.0) if age == age else 0.0
    if state not in ("running", "finished", "stopped", "failed"):
        return "unknown", age
    if state != "running" or age < GONE_S:
        return state, age
    exists = _process_exists(record)
    if exists is False or (exists is None and age > SILENT_S):
        return "lost", age
    return ("silent" if age > SILENT_S else "running"), age


def _process_exists(record: Record) -> bool | None:
    """Whether the process of the run exists; None if it is on another machine."""
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


class LiveParts:
    """Parts of the live page, rendered on request and again only if their files have changed.

    Attributes
    ----------
    pause_s : minimum seconds before a part is rendered again.
    """

    def __init__(self, run: Path, pause_s: float = PAUSE_S) -> None:
        self.run, self.pause_s = run, pause_s
        # matplotlib's settings are global: only one thread may draw at a time
        self._drawing = threading.Lock()
        self._versions: dict[str, tuple[float, str]] = {}
        self._made: dict[str, tuple[str, str]] = {}
        self._read: tuple[str, RunFiles] | None = None

    def state(self) -> dict[str, Any]:
        """Status, and versions of the maps and all parts; the page requests what has changed, maps first."""
        files = {"maps": load.MAPS} | {name: part.files for name, part in LIVE_PARTS.items()}
        return {"status": read_status(self.run), "versions": {name: self._version(name, of) for name, of in files.items()}}

    def part(self, name: str) -> str:
        """HTML of a part, empty if there is nothing to show yet. Outcome and limits are shown only after the end of the run."""

        def make(run: RunFiles) -> str:
            ended = bool(run.stage("end"))
            early = not ended and name in ("outcome", "limits")
            return "" if early else LIVE_PARTS[name].html(run, summarise(run), so_far=not ended)

        return self._make(name, make)

    def maps(self) -> str:
        """JSON list of the maps for the 3-D view."""
        return self._make("maps", lambda run: json.dumps(view_maps(run))) or "[]"

    def _version(self, name: str, files: tuple[str, ...]) -> str:
        now, signature = time.monotonic(), _signature(self.run, files)
        since, version = self._versions.get(name, (-math.inf, ""))
        if signature != version and now - since >= self.pause_s:
            self._versions[name] = now, signature
        return self._versions[name][1]

    def _make(self, name: str, make: Callable[[RunFiles], str]) -> str:
        with self._drawing:
            version = self._versions.get(name, (0.0, ""))[1]
            if not version or self._made.get(name, ("", ""))[0] != version:
                try:
                    self._made[name] = version, make(self._run_files())
                except InputError:
                    # the folder was removed
                    return ""
            return self._made[name][1]

    def _run_files(self) -> RunFiles:
        signature = _signature(self.run, (*SERVED, load.CONFIG, load.EVALUATION))
        if self._read is None or self._read[0] != signature:
            self._read = signature, load.read_run(self.run, inside_only=True)
        return self._read[1]


def _signature(run: Path, files: tuple[str, ...]) -> str:
    """Hash of times, sizes and inodes of files; changes if one of them changes."""
    seen: list[tuple[int, ...]] = []
    for file in files:
        try:
            found = (run / file).stat()
            seen.append((found.st_mtime_ns, found.st_size, found.st_ino))
        except OSError:
            seen.append(())
    return hashlib.sha256(repr(seen).encode()).hexdigest()[:16]
