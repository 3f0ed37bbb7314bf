"""What a run says while it runs: a progress bar on a terminal, a plain line at least every ten seconds elsewhere."""

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

EVERY_S = 10.0
STATUS_EVERY_S = 2.0

Mode = Literal["text", "quiet", "json"]
State = Literal["running", "finished", "stopped", "failed"]


def clock(seconds: float) -> str:
    """``3:07`` or ``1:02:05``."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


class Expectation:
    """How long the stages of a run take, set right by those that are done: the rest is expected to go at their pace.

    Attributes
    ----------
    planned : seconds of each stage on a machine that was timed.
    known : whether this machine is like that; otherwise the end is not known before a stage is done.
    """

    def __init__(self, planned: dict[str, float], known: bool) -> None:
        self.planned, self.known = planned, known
        self.ahead, self.behind_s = dict(planned), 0.0
        self.end_s = sum(planned.values()) if known else None

    def once_more(self, stage: str) -> None:
        """A stage is to be done again."""
        self.ahead[stage] = self.ahead.get(stage, 0.0) + self.planned[stage]

    def past(self, stage: str, elapsed_s: float) -> None:
        """A stage is done, ``elapsed_s`` after the start, and with it those planned before, which a resumed run passes over."""
        planned = list(self.planned)
        for earlier in planned[: planned.index(stage) + 1] if stage in planned else []:
            self.behind_s += self.ahead.pop(earlier, 0.0)
        # where the plan knew nothing, the finished stages ran on another device than those to come
        pace = min(max(elapsed_s / max(self.behind_s, 1e-9), 0.1), 10.0) if self.known else 1.0
        self.end_s = elapsed_s + pace * sum(self.ahead.values())


class Reporter:
    """Messages and progress on standard output, records in a JSON-lines file, the present state in a small JSON file.

    Attributes
    ----------
    mode : 'text' for people; 'quiet' for nothing but what must be known; 'json' for one object a line, messages, progress
        and records alike.
    records, status : where those two files are; None for nowhere.
    started : time of construction, less the time that a run which goes on has taken before; every record carries the seconds
        since then.
    expected : how long the whole is expected to take.
    """

    def __init__(self, records: Path | None = None, stream: Any = None, mode: Mode = "text") -> None:
        from rich.console import Console

        self.console = Console(file=stream or sys.stdout, highlight=False, soft_wrap=True)
        self.mode = mode
        self.records = records
        self.status: Path | None = None
        self.started = time.monotonic()
        self.expected = Expectation({}, known=False)
        self._task: dict[str, Any] = {"task": "", "done": 0, "total": 0, "status": ""}
        self._status_at = -STATUS_EVERY_S
        self._line_at = time.monotonic()
        self._writing = threading.Lock()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started

    def go_on_from(self, elapsed_s: float) -> None:
        """Count the time of a run that goes on from what it had taken."""
        self.started = time.monotonic() - elapsed_s

    def past(self, stage: str) -> None:
        """A stage of the plan is done."""
        self.expected.past(stage, self.elapsed_s)

    def say(self, text: str, always: bool = False) -> None:
        """One line for the user; ``always``: even one who asked for quiet."""
        self._line_at = time.monotonic()
        if self.mode == "json":
            self._print_json(message=text)
        elif always or self.mode == "text":
            stamp = "" if self.console.is_terminal else f"[{clock(self.elapsed_s)}] "
            self.console.print(stamp + text, markup=False)
            self.console.file.flush()

    def _print_json(self, **values: Any) -> None:
        print(json.dumps({"time_s": round(self.elapsed_s, 2), **values}), file=self.console.file, flush=True)

    def record(self, stage: str, **values: Any) -> None:
        """Append one object to the records; whole lines only, so that a reader never sees half of one."""
        if self.records is not None:
            line = json.dumps({"stage": stage, "time_s": round(self.elapsed_s, 2), **values})
            with open(self.records, "a") as file:
                file.write(line + "\n")
        if self.mode == "json":
            self._print_json(stage=stage, **values)

    @contextmanager
    def task(self, name: str, total: int) -> Iterator["Task"]:
        """A counted piece of work."""
        if not self.console.is_terminal or self.mode != "text":
            yield Task(self, name, total)
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[status]}"))
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console) as bar:
            yield Task(self, name, total, bar)

    def working(self, task: str, done: int, total: int, status: str) -> None:
        """Where the present piece of work stands; written down every other second."""
        self._task = {"task": task, "done": done, "total": total, "status": status}
        if time.monotonic() - self._status_at >= STATUS_EVERY_S:
            self.write_status("running")

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Keep status and log alive through a long step that says nothing of itself."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(min(STATUS_EVERY_S, EVERY_S) / 2):
                if time.monotonic() - self._status_at >= STATUS_EVERY_S:
                    self.write_status("running")
                self.line_when_due()

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def line_when_due(self) -> None:
        """Off a terminal, where the present piece of work stands, when nothing has been said for a while."""
        if self.console.is_terminal and self.mode == "text" or time.monotonic() - self._line_at < EVERY_S:
            return
        self._line_at = time.monotonic()
        if self.mode == "json":
            self._print_json(**self._task)
        elif self._task["task"]:
            self.say("{task}: {done} of {total} {status}".format(**self._task).rstrip())

    def write_status(self, state: State, message: str = "") -> None:
        """The state for whoever looks on from outside; nobody depends on it, so that a full disk may refuse it."""
        if self.status is None:
            return
        with self._writing:
            self._write_status(self.status, state, message)

    def _write_status(self, path: Path, state: State, message: str) -> None:
        self._status_at = time.monotonic()
        values = {"state": state, "pid": os.getpid(), "host": socket.gethostname(), **self._task}
        values |= {"elapsed_s": round(self.elapsed_s, 1), "expected_s": self.expected.end_s}
        values |= {"updated": time.time(), "message": message}
        temporary = path.with_name(".status.00000000.json")
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(values))
            os.replace(temporary, path)


class Task:
    """A piece of work in progress; ``update`` as often as you like."""

    def __init__(self, reporter: Reporter, name: str, total: int, bar: Any = None) -> None:
        self.reporter, self.name, self.total, self.bar = reporter, name, total, bar
        self.row = bar.add_task(name, total=total, status="") if bar is not None else None
        reporter.working(name, 0, total, "")

    def update(self, done: int, status: str = "") -> None:
        """``done`` of ``total`` are finished; ``status`` is a few words about how it goes."""
        self.reporter.working(self.name, done, self.total, status)
        if self.bar is not None:
            self.bar.update(self.row, completed=done, status=status)
        else:
            self.reporter.line_when_due()
