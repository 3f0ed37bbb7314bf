"""The parts of the live page: made when asked for, and again only when the files that they show have changed."""

import hashlib
import json
import math
import threading
import time
from collections.abc import Callable
from html import escape
from pathlib import Path

from ace_em.errors import InputError
from ace_em.report.live_status import read_status
from ace_em.report.page import BELOW, GRID, TOP
from ace_em.report.parts import Part
from ace_em.report.run_files import RunFiles, leads_out, read_run
from ace_em.report.sentences import Summary, summarise
from ace_em.report.volume_view import view_maps

# drawing takes the run's processors: a chart that changes all the time is drawn anew so often and no more
PAUSE_S = 12.0
SERVED = {
    "report.html": "text/html; charset=utf-8",
    "fsc.csv": "text/csv; charset=utf-8",
    "metrics.jsonl": "application/jsonl; charset=utf-8",
    **dict.fromkeys(("volume.mrc", "volume_sharp.mrc", "half1.mrc", "half2.mrc", "mask.mrc"), "application/octet-stream"),
    **dict.fromkeys(("current.mrc", "poses.star"), "application/octet-stream"),
}
_READ = (*SERVED, "config.yaml", "evaluation.json")
_MAP_FILES = ("volume.mrc", "volume_sharp.mrc", "half1.mrc", "half2.mrc", "current.mrc")


def served_file(run: Path, name: str) -> Path | None:
    """The file of a name on the list; None for any other name, and for what is not there or lies outside of the run."""
    if name not in SERVED or leads_out(run, name) or not (run / name).is_file():
        return None
    return (run / name).resolve()


def _files(run: RunFiles, summary: Summary) -> str:
    names = [name for name in SERVED if served_file(run.path, name)]
    links = ", ".join(f"<a href='/files/{escape(name)}'>{escape(name)}</a>" for name in names)
    return f"<p class='files'>Files of the run: {links}</p>" if links else ""


# what is missing is no news of a run that goes on; the report says it of one that has ended
PARTS: dict[str, Part] = {
    part.name: part for part in (*TOP, *GRID, *BELOW, Part("files", tuple(SERVED), _files)) if part.name != "problems"
}


class LiveParts:
    """Parts of one run's page, for several readers at once: charts are drawn one at a time and kept.

    Attributes
    ----------
    pause_s : seconds for which a part is left as it is, however its files change.
    """

    def __init__(self, run: Path, pause_s: float = PAUSE_S) -> None:
        self.run = run
        self.pause_s = pause_s
        # matplotlib's settings are the process's own, so that two threads must not draw at once
        self._drawing = threading.Lock()
        self._versions: dict[str, tuple[float, str]] = {}
        self._made: dict[str, tuple[str, str]] = {}
        self._read: tuple[str, RunFiles] | None = None

    def state(self) -> dict[str, object]:
        """Status, and the version of every part and of the maps: the page asks for those that it has not."""
        # the page asks in this order: the map is what a reader waits for
        files = {"maps": _MAP_FILES} | {name: part.files for name, part in PARTS.items()}
        return {"status": read_status(self.run), "versions": {name: self._version(name, of) for name, of in files.items()}}

    def part(self, name: str) -> str:
        """HTML of a part; empty where there is nothing to show yet."""

        def make(run: RunFiles) -> str:
            html = PARTS[name].html(run, summarise(run))
            # until a run has ended its status stands in place of the outcome, and what will come is not missing
            early = not run.stage("end") and (name in ("outcome", "limits") or "class='absent'" in html)
            return "" if early else html

        return self._make(name, make)

    def maps(self) -> str:
        """JSON of the maps that there are."""

        def make(run: RunFiles) -> str:
            try:
                return json.dumps(view_maps(run))
            except InputError:
                return "[]"

        return self._make("maps", make)

    def _version(self, name: str, files: tuple[str, ...]) -> str:
        now, signature = time.monotonic(), _signature(self.run, files)
        since, version = self._versions.get(name, (-math.inf, ""))
        if signature == version or now - since < self.pause_s:
            return version
        self._versions[name] = now, signature
        return signature

    def _make(self, name: str, make: Callable[[RunFiles], str]) -> str:
        with self._drawing:
            version = self._versions.get(name, (0.0, ""))[1]
            if not version or self._made.get(name, ("", ""))[0] != version:
                try:
                    self._made[name] = version, make(self._run_files())
                except InputError:
                    # the folder has gone since
                    return ""
            return self._made[name][1]

    def _run_files(self) -> RunFiles:
        signature = _signature(self.run, _READ)
        if self._read is None or self._read[0] != signature:
            self._read = signature, read_run(self.run, inside_only=True)
        return self._read[1]


def _signature(run: Path, files: tuple[str, ...]) -> str:
    """Changes when a file does."""
    seen = []
    for file in files:
        try:
            found = (run / file).stat()
            seen.append((file, found.st_mtime_ns, found.st_size, found.st_ino))
        except OSError:
            seen.append((file, 0, 0, 0))
    return hashlib.sha256(repr(seen).encode()).hexdigest()[:16]
