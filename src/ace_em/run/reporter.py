"""Progress of a run: text on a terminal or in a log, records in metrics.jsonl, and a status file."""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from ace_em.run.eta import Expectation, clock

EVERY_S = 10.0
"""Longest time between two lines of a log."""
STATUS_EVERY_S = 2.0

Mode = Literal["text", "quiet", "json"]
State = Literal["running", "finished", "stopped", "failed"]


class Console:
    """Messages on a stream: 'text', 'quiet' (important messages only) or 'json' (one object per line)."""

    def __init__(self, stream: Any = None, mode: Mode = "text") -> None:
        from rich.console import Console as RichConsole

        self.rich = RichConsole(file=stream or sys.stdout, highlight=False, soft_wrap=True)
        self.mode = mode
        self.line_at = time.monotonic()

    @property
    def has_bars(self) -> bool:
        """Whether to show progress bars: on a terminal in text mode."""
        return self.rich.is_terminal and self.mode == "text"

    @property
    def needs_line(self) -> bool:
        """Whether no line has been written for ``EVERY_S``."""
        return not self.has_bars and time.monotonic() - self.line_at >= EVERY_S

    def say(self, text: str, elapsed_s: float, always: bool = False) -> None:
        """Print a message, with the elapsed time if not on a terminal; ``always``: in quiet mode too."""
        self.line_at = time.monotonic()
        if self.mode == "json":
            self.print_json(elapsed_s, message=text)
        elif always or self.mode == "text":
            stamp = "" if self.rich.is_terminal else f"[{clock(elapsed_s)}] "
            self.rich.print(stamp + text, markup=False)
            self.rich.file.flush()

    def print_json(self, elapsed_s: float, **values: Any) -> None:
        self.line_at = time.monotonic()
        print(json.dumps({"time_s": round(elapsed_s, 2), **values}), file=self.rich.file, flush=True)


class RecordFile:
    """RUN/metrics.jsonl: one JSON object per line, each appended in one write."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, values: dict[str, Any]) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(values) + "\n")


class StatusFile:
    """RUN/status.json: current state of a run, for ``ace-em watch``. No result depends on it, so write errors are ignored."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.written_at = -STATUS_EVERY_S
        self._lock = threading.Lock()

    @property
    def needs_update(self) -> bool:
        """Whether the file is older than ``STATUS_EVERY_S``."""
        return time.monotonic() - self.written_at >= STATUS_EVERY_S

    def write(self, values: dict[str, Any]) -> None:
        with self._lock:
            self.written_at = time.monotonic()
            values = {"pid": os.getpid(), "host": socket.gethostname(), "updated": time.time(), **values}
            temporary = self.path.with_name(".status.00000000.json")
            with contextlib.suppress(OSError):
                temporary.write_text(json.dumps(values))
                os.replace(temporary, self.path)


class Reporter:
    """Sends messages, progress and records of a run to the console and its files.

    Attributes
    ----------
    console : for the user.
    records, status : files of the run; None before they exist.
    expected : expected time of the run.
    """

    def __init__(self, stream: Any = None, mode: Mode = "text") -> None:
        self.console = Console(stream, mode)
        self.records: RecordFile | None = None
        self.status: StatusFile | None = None
        self.expected = Expectation({}, known=False)
        self._started = time.monotonic()
        self._task: dict[str, Any] = {"task": "", "done": 0, "total": 0, "status": ""}

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started

    def resume_from(self, elapsed_s: float) -> None:
        """Add the time before a run was resumed."""
        self._started = time.monotonic() - elapsed_s

    def past(self, stage: str) -> None:
        """Mark a stage of the plan as done."""
        self.expected.past(stage, self.elapsed_s)

    def say(self, text: str, always: bool = False) -> None:
        """Print one line; ``always``: in quiet mode too."""
        self.console.say(text, self.elapsed_s, always)

    def record(self, stage: str, **values: Any) -> None:
        """Append a record of a stage."""
        if self.records is not None:
            self.records.append({"stage": stage, "time_s": round(self.elapsed_s, 2), **values})
        if self.console.mode == "json":
            self.console.print_json(self.elapsed_s, stage=stage, **values)

    @contextmanager
    def task(self, name: str, total: int) -> Iterator["Task"]:
        """A task with counted progress."""
        if not self.console.has_bars:
            yield Task(self, name, total)
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[status]}"))
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console.rich) as bar:
            yield Task(self, name, total, bar)

    def working(self, task: str, done: int, total: int, status: str) -> None:
        """Set the progress of the current task."""
        self._task = {"task": task, "done": done, "total": total, "status": status}
        self._update_status()

    @contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Update status and log during long steps that report no progress."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(min(STATUS_EVERY_S, EVERY_S) / 2):
                self._update_status()
                self.update_log()

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def update_log(self) -> None:
        """Without progress bars, print the progress of the current task if no line was written for ``EVERY_S``."""
        if not self.console.needs_line:
            return
        if self.console.mode == "json":
            self.console.print_json(self.elapsed_s, **self._task)
        elif self._task["task"]:
            self.say("{task}: {done} of {total} {status}".format(**self._task).rstrip())

    def _update_status(self) -> None:
        if self.status is not None and self.status.needs_update:
            self.write_status("running")

    def write_status(self, state: State, message: str = "") -> None:
        """Write state and progress to the status file."""
        if self.status is not None:
            times = {"elapsed_s": round(self.elapsed_s, 1), "expected_s": self.expected.end_s}
            self.status.write({"state": state, **self._task, **times, "message": message})


class Task:
    """A running task; ``update`` may be called often."""

    def __init__(self, reporter: Reporter, name: str, total: int, bar: Any = None) -> None:
        self.reporter, self.name, self.total, self.bar = reporter, name, total, bar
        self.row = bar.add_task(name, total=total, status="") if bar is not None else None
        reporter.working(name, 0, total, "")

    def update(self, done: int, status: str = "") -> None:
        """Set the number of finished items and a short status text."""
        self.reporter.working(self.name, done, self.total, status)
        if self.bar is not None:
            self.bar.update(self.row, completed=done, status=status)
        else:
            self.reporter.update_log()
