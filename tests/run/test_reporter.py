"""What is expected of the time that is left, and what a run says in each mode."""

import io
import json
import time
from pathlib import Path

import pytest

from ace_em.run import reporter as reporter_module
from ace_em.run.eta import Expectation
from ace_em.run.reporter import Reporter, StatusFile

PLANNED = {"start": 60.0, "search": 30.0, "refinement": 10.0}


def test_the_rest_goes_at_the_pace_of_what_is_done() -> None:
    expected = Expectation(PLANNED, known=True)
    assert expected.end_s == 100
    expected.past("start", 120.0)
    assert expected.end_s == pytest.approx(120 + 2 * 40)
    expected.past("search", 135.0)
    assert expected.end_s == pytest.approx(135 + 1.5 * 10)
    expected.past("refinement", 150.0)
    assert expected.end_s == 150


def test_a_stage_that_a_resumed_run_skips_is_past() -> None:
    whole, resumed = Expectation(PLANNED, known=True), Expectation(PLANNED, known=True)
    whole.past("start", 120.0)
    for expected in (whole, resumed):
        expected.past("search", 180.0)
    assert resumed.end_s == whole.end_s == pytest.approx(180 + 2 * 10)


def test_another_start_is_no_slowness() -> None:
    expected = Expectation(PLANNED, known=True)
    expected.once_more("start")
    expected.past("start", 120.0)
    assert expected.end_s == pytest.approx(120 + 40)


def test_a_device_that_was_never_timed_has_no_end_before_a_stage_is_done() -> None:
    expected = Expectation(PLANNED, known=False)
    assert expected.end_s is None
    expected.past("start", 5.0)
    assert expected.end_s == pytest.approx(45)


def test_quiet_says_what_must_be_known_and_json_says_all() -> None:
    quiet, lines = io.StringIO(), io.StringIO()
    reporter = Reporter(stream=quiet, mode="quiet")
    reporter.say("by the way")
    reporter.say("converged", always=True)
    assert quiet.getvalue().strip().endswith("converged") and "by the way" not in quiet.getvalue()
    reporter = Reporter(stream=lines, mode="json")
    reporter.say("by the way")
    reporter.record("end", converged=True)
    said = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert said[0]["message"] == "by the way" and said[1]["stage"] == "end" and said[1]["converged"] is True


def test_a_step_that_says_nothing_is_heard_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporter_module, "EVERY_S", 0.05)
    monkeypatch.setattr(reporter_module, "STATUS_EVERY_S", 0.05)
    out = io.StringIO()
    reporter = Reporter(stream=out)
    reporter.status = StatusFile(tmp_path / "status.json")
    path = reporter.status.path
    with reporter.heartbeat(), reporter.task("back-projection", 7) as task:
        task.update(3, "of the first half")
        before = json.loads(path.read_text())["updated"]
        deadline = time.monotonic() + 20
        while out.getvalue().count("back-projection: 3 of 7 of the first half") < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert out.getvalue().count("back-projection: 3 of 7 of the first half") >= 2
    assert json.loads(path.read_text())["updated"] > before
    reporter.write_status("finished")
    time.sleep(0.2)
    # the heart has stopped with the work: nothing says "running" any more
    assert json.loads(path.read_text())["state"] == "finished"
