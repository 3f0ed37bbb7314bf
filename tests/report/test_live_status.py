"""What the live page says of a run: its status, and those parts of the page that there are by now."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ace_em.report.live_status import LIVE_PARTS, LiveParts, read_status


def test_the_status_says_how_the_run_stands(going: Path, say: Callable[..., None]) -> None:
    status = read_status(going)
    assert (
        status["state"] == "running" and status["task"] == "ACE training, start 1: 420 of 600" and status["words"] == "band 30 A"
    )
    assert status["share"] == pytest.approx(0.7) and status["left_s"] == pytest.approx(212, abs=1)
    assert status["time"].startswith("1 min 23 s so far, about 3 min 3") and status["stoppable"]
    say(going, elapsed_s=400.0)
    assert read_status(going)["time"] == "6 min 40 s so far, longer than expected"
    say(going, updated=time.time() - 59)
    assert read_status(going)["state"] == "running"
    say(going, updated=time.time() - 90)
    status = read_status(going)
    assert status["state"] == "lost" and status["headline"] == "The run seems to have crashed: no update for 1 min 30 s"
    assert "same command with --resume" in status["message"] and not status["stoppable"]
    (going / "stop").touch()
    say(going)
    assert read_status(going)["stop_asked"] and not read_status(going)["stoppable"]
    say(going, state="stopped", message="asked to stop")
    assert read_status(going)["message"] == "Asked to stop. To continue, use the same command with --resume."
    say(going, state="failed", message="no memory; --resume goes on")
    assert read_status(going)["headline"] == "The run failed" and read_status(going)["message"] == "No memory; --resume goes on."


def test_a_process_that_is_gone_or_busy_is_told_apart(going: Path, say: Callable[..., None]) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    say(going, host=socket.gethostname(), pid=gone.pid, updated=time.time() - 20)
    assert read_status(going)["state"] == "lost"
    say(going, host=socket.gethostname(), pid=os.getpid(), updated=time.time() - 90)
    status = read_status(going)
    assert status["state"] == "silent" and status["stoppable"] and "the process still exists" in status["headline"]


@pytest.mark.parametrize(
    "text", ["", "rubbish", "[1]", '{"state": "odd"}', '{"state": "running", "done": "x", "total": [], "pid": 1e99}']
)
def test_a_status_that_is_none_is_no_error(run: Path, text: str) -> None:
    (run / "status.json").write_text(text)
    status = read_status(run)
    assert status["state"] in ("unknown", "running") and status["share"] is None
    json.dumps(status, allow_nan=False)
    (run / "status.json").unlink()
    assert read_status(run)["state"] == "unknown"


def test_parts_are_made_again_only_when_their_files_change(going: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    monkeypatch.setattr("ace_em.report.page.loss_figure", lambda records: drawn.append(len(records)) or b"")
    parts = LiveParts(going, pause_s=0.3)
    before: Any = parts.state()["versions"]
    assert parts.part("losses") == parts.part("losses") and len(drawn) == 1
    with open(going / "metrics.jsonl", "a") as file:
        file.write('{"stage": "ace", "start": 1, "step": 150}\n')
    assert parts.state()["versions"] == before, "not before the pause is over"
    time.sleep(0.35)
    after: Any = parts.state()["versions"]
    assert after["losses"] != before["losses"] and after["map"] == before["map"] == parts.state()["versions"]["map"]  # type: ignore[index]
    parts.part("losses")
    assert len(drawn) == 2 and drawn[1] == drawn[0] + 1


def test_what_is_still_to_come_is_not_called_missing(going: Path, run: Path) -> None:
    parts = LiveParts(going)
    assert all("Not shown" not in parts.part(name) for name in LIVE_PARTS)
    assert parts.part("outcome") == "" and parts.part("views") == "" and "<img" in parts.part("rounds")
    assert "<dt>stable poses</dt><dd>100 %</dd>" in parts.part("tiles")
    assert [m["name"] for m in json.loads(parts.maps())] == ["current"]
    assert LiveParts(going / "gone").part("tiles") == ""


def test_a_link_out_of_the_run_is_not_drawn(run: Path, tmp_path: Path) -> None:
    shutil.move(run / "volume.mrc", tmp_path / "volume.mrc")
    (run / "volume.mrc").symlink_to(tmp_path / "volume.mrc")
    (run / "volume_sharp.mrc").unlink()
    assert LiveParts(run).maps() == "[]"
    assert "a link out of the run folder" in LiveParts(run).part("map")
