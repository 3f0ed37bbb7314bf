"""The report of a small run: one file, nothing fetched, and no gap in the run folder that stops it."""

import base64
import json
import re
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from ace_em.errors import InputError
from ace_em.report.load import read_run
from ace_em.report.page import write_report
from ace_em.report.summary import crossing_angstrom, shared

# particles of the run that conftest.py makes
N = 20
N_FIGURES = 8


def _page(run: Path) -> str:
    path = write_report(run)
    assert path == run / "report.html"
    assert not list(run.glob(".report*")), "a temporary file was left"
    return path.read_text(encoding="utf-8")


def test_a_finished_run_gives_one_self_contained_page(run: Path) -> None:
    page = _page(run)
    scripts = re.findall(r'<script(?: type="application/json")?>(.*?)</script>', page, re.DOTALL)
    assert len(scripts) == 3 and page.count("<script") == page.count("</script") == 3
    # the hashes, in quotes, of the scripts that may run: plotly's and ours, not what stands in JSON
    hashes = {f"'sha256-{base64.b64encode(sha256(s.encode()).digest()).decode()}'" for s in scripts[1:]}
    assert set(re.findall('script-src ([^"]*)"', page)[0].split()) == hashes
    assert len(page) < 8e6
    page = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert page.count('<img src="data:image/png;base64,') == page.count("<img") == N_FIGURES
    assert "Not shown" not in page and "Missing or damaged files" not in page
    addresses = re.findall(r"""(?:src|href|srcset|action)\s*=\s*["']?([^"'>]*)""", page) + re.findall(r"url\(([^)]*)", page)
    assert all(address.startswith("data:") for address in addresses)
    assert "@import" not in page
    assert f"The run converged: {N} particles gave a map at 17.5 Å (half-map FSC 0.143) in 1 min 15 s." in page
    # 1 - shell / 17 is 0.5 at shell 8.5 of 192 Angstrom, 1 - (shell / 20)^2 at shell 14.1
    assert "0.5 at 22.6 Å" in page and "corrected by phase randomisation: above 0.143 to the last shell; 0.5 at 13.6 Å" in page
    assert "All is well" in page and "seed: 7" in page and "0.125" in page


def _tiles(page: str) -> dict[str, str]:
    return dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", page.replace("\N{NO-BREAK SPACE}", " ")))


def test_tiles_hold_the_numbers_of_the_record(run: Path) -> None:
    tiles = _tiles(_page(run))
    assert tiles["resolution, FSC 0.143"] == "17.5 Å" and tiles["B factor"] == "−123 Å²" and tiles["symmetry"] == "D2"
    # the corrected curve ends above 0.143: the finest that the voxels hold is a bound
    assert tiles["masked, FSC 0.143"] == "≤ 15.5 Å"
    # where none could be measured
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(re.sub(r'"b_factor": [-\d.]+', '"b_factor": 0.0', text))
    assert _tiles(_page(run))["B factor"] == "none"
    (run / "metrics.jsonl").write_text(text)
    # of the better start
    assert tiles["held-out signal explained"] == "86 %" and tiles["z-score against random phases"] == "18"
    assert tiles["random starts"] == "2"


def test_a_map_that_is_as_fine_as_its_voxels_says_so(run: Path) -> None:
    pd.read_csv(run / "fsc.csv")[["shell", "frequency_per_angstrom"]].assign(fsc=0.9).to_csv(run / "fsc.csv", index=False)
    page = _page(run)
    assert "at 17.5 Å, the Nyquist limit" in page and _tiles(page)["resolution, FSC 0.143"] == "≤ 17.5 Å"


def test_the_page_says_what_the_halves_share(run: Path) -> None:
    files = read_run(run)
    common = shared(files)
    # 90 Angstrom over 4.5 cycles; shell 9.6 of 192 Angstrom, so 10 and three more
    assert common is not None and common.cut_angstrom == pytest.approx(20.0)
    assert common.reach_angstrom == pytest.approx(192 / 13)
    page = _page(run)
    assert "low-passed at 20 Å. After that" in page and "correlate even noise to about 14.8 Å" in page
    assert "D2 was imposed on both half-maps" in page and "was 0.31 (low" in page
    (run / "config.yaml").write_text("seed: 7\nflip_hand: true\n")
    page = _page(run)
    assert "is not recorded in this folder" in page and "Grey: both half-sets" not in page
    assert "The same command without <code>--flip-hand</code> gives the other hand" in page


def test_an_unfinished_run_gives_a_page_that_says_what_is_missing(tmp_path: Path) -> None:
    empty = tmp_path / "run"
    empty.mkdir()
    with pytest.raises(InputError, match="not the folder of a run: contains neither metrics.jsonl nor config.yaml"):
        write_report(empty)
    assert not list(empty.iterdir())
    (empty / "metrics.jsonl").touch()
    page = _page(empty)
    assert "The run has not finished: it has no entries yet" in page
    assert page.count("Not shown") == N_FIGURES and "<img" not in page
    assert "<script" not in page and len(page) < 20_000, "plotly for nothing"
    for file in ("volume.mrc", "half1.mrc", "fsc.csv", "poses.star", "config.yaml"):
        assert f"<code>{file}</code>: missing" in page
    with pytest.raises(InputError, match="not a folder"):
        write_report(tmp_path / "nowhere")


def test_a_line_cut_short_is_left_out(run: Path) -> None:
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text[:-40])
    page = _page(run)
    assert "the last line is incomplete" in page
    assert "its last entry is from the refinement" in page
    assert page.count("<img") == N_FIGURES


def test_a_run_that_did_not_converge_says_why_and_what_to_try(run: Path) -> None:
    message = "not converged: only 9% of the poses are stable. Do not trust this map. Try: another --seed, more particles."
    end = {"stage": "end", "converged": False, "resolution_angstrom": None, "message": message}
    (run / "metrics.jsonl").write_text(json.dumps(end) + "\n")
    (run / "fsc.csv").unlink()
    page = _page(run)
    said = re.search(r'<div class="outcome bad">(.*?)</div>', page, re.DOTALL)
    assert said is not None
    assert [re.sub("<.*?>", "", text).strip() for text in re.findall("<p.*?>(.*?)</p>", said[1], re.DOTALL)] == [
        f"The run ended without converging ({N} particles).",
        "Not converged: only 9% of the poses are stable. Do not trust this map.",
        "Try: another --seed, more particles.",
    ]
    assert page.count("Not shown") == 3


def test_particles_that_are_gone_cost_their_figure_only(finished: Path, tmp_path: Path) -> None:
    project = Path(shutil.copytree(finished, tmp_path / "project"))
    (project / "stack.mrcs").unlink()
    (project / "run" / "config.yaml").write_text("particles: particles.star\n")
    page = _page(project / "run")
    assert page.count("<img") == N_FIGURES - 2
    assert re.search(r"Not shown: particle images: .*stack\.mrcs not found", page)


def test_particles_are_found_where_the_run_was_told(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished / "run", tmp_path / "run"))
    elsewhere = Path(shutil.copytree(finished, tmp_path / "elsewhere"))
    settings = {"particles": str(tmp_path / "lists/particles.star"), "project": str(elsewhere)}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    assert _page(run).count("<img") == N_FIGURES
    (elsewhere / "stack.mrcs").unlink()
    assert _page(run).count("<img") == N_FIGURES - 2


def test_files_that_are_not_what_they_seem_are_named(run: Path) -> None:
    for file in ("volume.mrc", "volume_sharp.mrc", "fsc.csv", "poses.star", "evaluation.json"):
        (run / file).write_text("rubbish")
    (run / "config.yaml").write_text("particles: [unclosed")
    page = _page(run)
    for file in ("volume.mrc", "volume_sharp.mrc", "fsc.csv", "poses.star", "evaluation.json", "config.yaml"):
        assert f"<code>{file}</code>" in page


def test_text_of_the_run_is_escaped(run: Path) -> None:
    evil = "<script>alert(1)</script>"
    (run / "config.yaml").write_text(f"particles: '{evil}'\nseed: \"{evil}\"\n")
    (run / "evaluation.json").write_text(json.dumps({evil: evil}))
    begin = {"stage": "begin", "command": evil, "versions": {evil: evil}, evil: evil}
    records = [begin, {"stage": "survey", "contrast": evil}, {"stage": "end", "message": evil}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    # without a map there is no script of the page's own
    for file in ("volume.mrc", "volume_sharp.mrc"):
        (run / file).unlink()
    page = _page(Path(shutil.move(run, run.with_name("<script>x"))))
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)") >= 11


def test_crossing_passes_over_the_first_shells_and_may_not_happen() -> None:
    frequency = np.arange(6) / 100.0
    assert crossing_angstrom(frequency, np.array([1, 0, 1, 0.8, 0.2, 0.1]), 0.5) == pytest.approx(100 / 3.5)
    assert np.isnan(crossing_angstrom(frequency, np.ones(6), 0.5))


def test_the_page_says_how_the_run_was_made(run: Path) -> None:
    tiles = _tiles(_page(run))
    assert tiles["versions"] == "ace-em 0.1.0, torch 2.13.0" and tiles["device"] == "cpu" and tiles["threads"] == "2"
    assert tiles["expected time"] == "1 min 35 s" and tiles["expected memory"] == "1.2 GiB"
    records = (run / "metrics.jsonl").read_text().splitlines()
    again = json.loads(records[0]) | {"time_s": 61.0, "command": "ace-em reconstruct particles.star -o run --resume"}
    (run / "metrics.jsonl").write_text("\n".join([records[0], json.dumps(again), *records[1:]]) + "\n")
    page = _page(run)
    assert re.findall("<h3>(.*?)</h3>", page) == ["Started", "Resumed at 1 min 1 s"]
    assert re.findall('<pre class="command">(.*?)</pre>', page)[1].endswith("-o run --resume")
    (run / "metrics.jsonl").write_text("\n".join(records[1:]) + "\n")
    assert "Provenance" not in _page(run), "an earlier version wrote no such record"


def test_a_run_that_goes_on_shows_its_map_so_far(run: Path) -> None:
    (run / "volume.mrc").rename(run / "current.mrc")
    records = [r for r in (run / "metrics.jsonl").read_text().splitlines() if '"end"' not in r]
    (run / "metrics.jsonl").write_text("\n".join(records) + "\n")
    page = _page(run)
    assert "Current map, current.mrc." in page and "current map (current.mrc)" in page and "half1.mrc)" not in page
    tiles = _tiles(page)
    assert tiles["stable poses"] == "100 %" and tiles["half-map FSC 0.143, so far"] == "20 Å" and "B factor" not in tiles
