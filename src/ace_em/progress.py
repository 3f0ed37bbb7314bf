"""What a run says while it runs: a progress bar on a terminal, a plain line at least every ten seconds elsewhere."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

EVERY_S = 10.0


def clock(seconds: float) -> str:
    """``3:07`` or ``1:02:05``."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


class Reporter:
    """Messages and progress on standard output, records in a JSON-lines file.

    Attributes
    ----------
    started : time of construction; every record carries the seconds since then.
    """

    def __init__(self, records: Path | None = None, stream: Any = None) -> None:
        from rich.console import Console

        self.console = Console(file=stream or sys.stdout, highlight=False, soft_wrap=True)
        self.records = records
        self.started = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started

    def say(self, text: str) -> None:
        """One line for the user."""
        stamp = "" if self.console.is_terminal else f"[{clock(self.elapsed_s)}] "
        self.console.print(stamp + text, markup=False)
        self.console.file.flush()

    def record(self, stage: str, **values: Any) -> None:
        """Append one object to the records; whole lines only, so that a reader never sees half of one."""
        if self.records is not None:
            line = json.dumps({"stage": stage, "time_s": round(self.elapsed_s, 2), **values})
            with open(self.records, "a") as file:
                file.write(line + "\n")

    @contextmanager
    def task(self, name: str, total: int) -> Iterator["Task"]:
        """A counted piece of work."""
        if not self.console.is_terminal:
            yield Task(self, name, total)
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[status]}"))
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self.console) as bar:
            yield Task(self, name, total, bar)


class Task:
    """A piece of work in progress; ``update`` as often as you like."""

    def __init__(self, reporter: Reporter, name: str, total: int, bar: Any = None) -> None:
        self.reporter, self.name, self.total, self.bar = reporter, name, total, bar
        self.last_line = time.monotonic()
        self.row = bar.add_task(name, total=total, status="") if bar is not None else None

    def update(self, done: int, status: str = "") -> None:
        """``done`` of ``total`` are finished; ``status`` is a few words about how it goes."""
        if self.bar is not None:
            self.bar.update(self.row, completed=done, status=status)
        elif time.monotonic() - self.last_line >= EVERY_S:
            self.last_line = time.monotonic()
            self.reporter.say(f"{self.name}: {done} of {self.total} {status}".rstrip())
