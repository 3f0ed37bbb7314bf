"""What the live page shows: the state of the run from status.json, and the parts of the page made again when files change."""

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
from ace_em.report.load import Record, RunFiles, leads_out, number
from ace_em.report.numbers import show_time
from ace_em.report.page import PARTS, PROBLEMS, Part
from ace_em.report.summary import summarise
from ace_em.report.volume_view import view_maps

SILENT_S, GONE_S = 60.0, 10.0
"""A run without an update for so long is taken for dead; after the second time if its process is known to be gone."""
PAUSE_S = 12.0
"""A figure whose files change all the time is drawn again so often: drawing takes processor time from the run."""
SERVED = {
    load.REPORT: "text/html; charset=utf-8",
    load.FSC: "text/csv; charset=utf-8",
    load.METRICS: "application/jsonl; charset=utf-8",
    **dict.fromkeys((*load.MAPS, load.MASK, load.POSES), "application/octet-stream"),
}
_HEADLINES = {
    "running": "Running",
    "silent": "Running, but no update for {age}; the process exists",
    "lost": "The run seems to have died: no update for {age}",
    "finished": "The run is finished",
    "stopped": "The run was stopped",
    "failed": "The run failed",
    "unknown": "No run is active in this folder",
}
_ADVICE = {
    "lost": "The same command with --resume continues it from its last checkpoint.",
    "stopped": "The same command with --resume continues it.",
    "unknown": "The page shows the files of the folder, and follows a run as soon as one begins here.",
}


def served_file(run: Path, name: str) -> Path | None:
    """Path of a file that may be downloaded; None for other names, absent files and links out of the folder."""
    allowed = name in SERVED and not leads_out(run, name) and (run / name).is_file()
    return (run / name).resolve() if allowed else None


FILES = Part("files", tuple(SERVED), lambda run, summary: [name for name in SERVED if served_file(run.path, name)])
LIVE_PARTS = {part.name: part for part in (*PARTS, FILES) if part is not PROBLEMS}
"""Parts of the live page. While a run goes on, files that do not exist yet are not missing."""


def read_status(run: Path) -> dict[str, Any]:
    """State of the run for the script of the page, from ``RUN/status.json``."""
    record = _record(run)
    state, age = _state(record)
    going = state in ("running", "silent")
    elapsed, done, total = (number(record, key) for key in ("elapsed_s", "done", "total"))
    left = number(record, "expected_s") - elapsed - age if going else math.nan
    task, message = str(record.get("task") or ""), str(record.get("message") or "") if state != "finished" else ""
    message = message[:1].upper() + message[1:] + ("." if message and not message.endswith((".", "!", "?")) else "")
    time_text = "" if math.isnan(elapsed) else f"{show_time(elapsed)} so far" if going else f"after {show_time(elapsed)}"
    if time_text and not math.isnan(left):
        time_text += f", about {show_time(left)} left" if left > 0 else ", longer than expected"
    asked = going and (run / load.STOP).exists()
    return {
        "state": state,
        "headline": _HEADLINES[state].format(age=show_time(age)),
        "task": "" if not going else f"{task}: {done:,.0f} of {total:,.0f}" if task and total > 0 else task,
        "words": str(record.get("status") or "") if going else "",
        "share": min(max(done / total, 0.0), 1.0) if total > 0 else None,
        "time": time_text,
        # the browser makes it a time of day in its own time zone
        "left_s": round(left) if left > 0 else None,
        "message": " ".join(filter(None, [message, "" if "--resume" in message else _ADVICE.get(state, "")])),
        "stop_asked": asked,
        "stoppable": going and not asked,
    }


def _record(run: Path) -> Record:
    try:
        value = {} if leads_out(run, load.STATUS) else json.loads((run / load.STATUS).read_text(encoding="utf-8"))
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
    """Whether the process of the run exists; None when it is on another machine."""
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
    """The parts of one page, made when a browser asks for them and again only when their files have changed.

    Attributes
    ----------
    pause_s : seconds for which a part is kept although its files change.
    """

    def __init__(self, run: Path, pause_s: float = PAUSE_S) -> None:
        self.run, self.pause_s = run, pause_s
        # the settings of matplotlib are global: one thread draws at a time
        self._drawing = threading.Lock()
        self._versions: dict[str, tuple[float, str]] = {}
        self._made: dict[str, tuple[str, str]] = {}
        self._read: tuple[str, RunFiles] | None = None

    def state(self) -> dict[str, Any]:
        """Status, and the version of the maps and of every part; the page asks for those that changed, the maps first."""
        files = {"maps": load.MAPS} | {name: part.files for name, part in LIVE_PARTS.items()}
        return {"status": read_status(self.run), "versions": {name: self._version(name, of) for name, of in files.items()}}

    def part(self, name: str) -> str:
        """HTML of a part, empty when there is nothing to show yet. Until the run ends, the status replaces the outcome."""

        def make(run: RunFiles) -> str:
            ended = bool(run.stage("end"))
            early = not ended and name in ("outcome", "limits")
            return "" if early else LIVE_PARTS[name].html(run, summarise(run), so_far=not ended)

        return self._make(name, make)

    def maps(self) -> str:
        """JSON list of the maps of the 3-D view."""
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
    """A text that changes when one of the files does."""
    seen: list[tuple[int, ...]] = []
    for file in files:
        try:
            found = (run / file).stat()
            seen.append((found.st_mtime_ns, found.st_size, found.st_ino))
        except OSError:
            seen.append(())
    return hashlib.sha256(repr(seen).encode()).hexdigest()[:16]
