"""`ace-em watch`: who may see what, what the page says of a run, and the page in a browser."""

import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed")

from ace_em import cli  # noqa: E402
from ace_em.io.mrc import read_volume, write_volume  # noqa: E402
from ace_em.report.live import Access, access_of, address_of, build_app, listen  # noqa: E402
from ace_em.report.live_status import LIVE_PARTS, LiveParts  # noqa: E402

if TYPE_CHECKING:
    from .conftest import Look

# as in test_viewer.py: the directive that a request to another place violates
FETCH_ELSEWHERE = """() => new Promise((told) => {
  document.addEventListener("securitypolicyviolation", (event) => told(event.effectiveDirective));
  fetch("http://127.0.0.1:9/").catch(() => setTimeout(told, 500, "sent"));
})"""


@dataclass
class Answer:
    """Of the server: status, headers by lower-case name, body."""

    status: int
    headers: dict[str, str]
    body: str


@dataclass
class Served:
    """A run that is being served."""

    run: Path
    access: Access

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.access.port}/"

    @property
    def origin(self) -> str:
        return self.address.rstrip("/")

    def ask(self, path: str, method: str = "GET", **headers: str) -> Answer:
        """Send a path as it stands: other clients tidy it first."""
        connection = http.client.HTTPConnection("127.0.0.1", self.access.port, timeout=30)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.putrequest(method, path, skip_host="Host" in named)
        for name, value in named.items():
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        body = response.read().decode("utf-8", errors="replace")
        connection.close()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, body)


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Serve a run; ``loopback=False`` gives the rules that hold when others could reach the server."""
    running = []

    def start(run: Path, loopback: bool = True) -> Served:
        bound = listen("127.0.0.1", 0)
        access = access_of(bound) if loopback else Access(False, bound.getsockname()[1])
        config = uvicorn.Config(build_app(run, access, LiveParts(run, pause_s=0.0)), log_level="warning", access_log=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        running.append((server, thread, bound))
        return Served(run, access)

    yield start
    for server, thread, bound in running:
        server.should_exit = True
        thread.join(10)
        bound.close()


def test_files_outside_the_run_are_refused(going: Path, tmp_path: Path, serve: Callable[..., Served]) -> None:
    (tmp_path / "secret").write_text("of another")
    (going / "poses.star").symlink_to(tmp_path / "secret")
    (going / "half2.mrc").symlink_to("current.mrc")
    (going / "checkpoint.pt").write_bytes(b"weights")
    site = serve(going)
    assert site.ask("/files/metrics.jsonl").body == (going / "metrics.jsonl").read_text()
    assert site.ask("/files/half2.mrc").status == 200, "a link that stays inside"
    for path in (
        *("/files/../secret", "/files/..%2fsecret", "/files/%2e%2e/secret", "/files/%2e%2e%2fsecret", "/../secret", "/files/.."),
        *("/files//etc/passwd", "/files/%2fetc%2fpasswd", "/files/poses.star", "/files/checkpoint.pt", "/files/config.yaml"),
        *("/files/status.json", "/files/", "/files/volume.mrc", "/docs", "/openapi.json", "/api/part/nothing"),
        *("/files/metrics.jsonl%00.star", "/files/..%5csecret"),
    ):
        answer = site.ask(path)
        assert answer.status == 404 and "of another" not in answer.body, path
    # nor does what the page makes of the files follow the link
    assert all("of another" not in site.ask(f"/api/part/{name}").body for name in LIVE_PARTS)


def test_names_that_point_here_by_a_trick_are_refused(going: Path, serve: Callable[..., Served]) -> None:
    site = serve(going)
    for host in ("127.0.0.1", "localhost", "LOCALHOST:80", f"127.0.0.1:{site.access.port}", "[::1]:8050", "[::1]"):
        assert site.ask("/api/state", Host=host).status == 200, host
    for host in ("evil.example", "evil.example:8050", "127.0.0.1.evil.example", "localhost.evil.example:80", "", "[::2]"):
        assert site.ask("/api/state", Host=host).status == 400, host
    assert site.ask("/stop", "POST", Host="evil.example", Origin="http://evil.example").status == 400
    assert not (going / "stop").exists()


def test_others_need_the_token(going: Path, serve: Callable[..., Served]) -> None:
    site = serve(going, loopback=False)
    for path in (
        "/",
        "/api/state",
        "/api/maps",
        "/scripts/plotly.js",
        "/files/metrics.jsonl",
        "/?token=",
        "/?token=wrong",
        "/?token=%C3%A9",
    ):
        answer = site.ask(path)
        assert answer.status == 401 and "set-cookie" not in answer.headers, path
    assert site.ask("/stop", "POST", Origin=site.origin).status == 401
    first = site.ask(f"/?token={site.access.token}")
    assert first.status == 200
    cookie, *flags = first.headers["set-cookie"].split("; ")
    assert {"httponly", "samesite=strict"} <= {flag.lower() for flag in flags}
    assert cookie == f"ace_em_{site.access.port}={site.access.token}"
    assert site.ask("/api/state", Cookie=cookie).status == 200
    assert site.ask("/api/state", Cookie=cookie[:-1]).status == 401
    assert site.access.token in address_of(site.access, "0.0.0.0") and site.access.token not in repr(site.access)
    assert address_of(Access(True, 8050), "127.0.0.1") == "http://127.0.0.1:8050/"


def test_only_the_page_itself_stops_the_run(
    going: Path, say: Callable[..., None], tmp_path: Path, serve: Callable[..., Served]
) -> None:
    site, stop = serve(going), going / "stop"
    assert site.ask("/stop", Origin=site.origin).status == 405
    for headers in ({}, {"Origin": ""}, {"Origin": "null"}, {"Origin": "http://evil.example"}, {"Origin": "http://127.0.0.1:1"}):
        assert site.ask("/stop", "POST", **headers).status == 403
    assert not stop.exists()
    stop.symlink_to(tmp_path / "elsewhere")
    assert site.ask("/stop", "POST", Origin=site.origin).status == 409
    assert not (tmp_path / "elsewhere").exists()
    stop.unlink()
    answer = site.ask("/stop", "POST", Origin=site.origin)
    assert answer.status == 200 and json.loads(answer.body)["status"]["stop_asked"] is True
    assert stop.read_bytes() == b""
    stop.unlink()
    for state in ("finished", "stopped", "failed"):
        say(going, state=state)
        assert site.ask("/stop", "POST", Origin=site.origin).status == 409
    say(going, updated=time.time() - 300)
    assert site.ask("/stop", "POST", Origin=site.origin).status == 409, "a dead run sees no such file"
    assert not stop.exists()


def test_every_answer_forbids_framing_and_sniffing(going: Path, serve: Callable[..., Served]) -> None:
    (going / "report.html").write_text("<script>1</script>")
    site = serve(going)
    for path in ("/", "/api/state", "/scripts/live.js", "/files/metrics.jsonl", "/nothing"):
        headers = site.ask(path).headers
        assert (
            "frame-ancestors 'none'" in headers["content-security-policy"]
            and "script-src 'self'" in headers["content-security-policy"]
        )
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in headers
    # a report has scripts of its own: they run, but not as this site's
    assert site.ask("/files/report.html").headers["content-security-policy"].startswith("sandbox allow-scripts;")


def test_the_page_follows_the_run(
    going: Path, say: Callable[..., None], serve: Callable[..., Served], look: Callable[..., "Look"]
) -> None:
    site = serve(going)
    seen = look(site.address, color_scheme="dark")
    page = seen.page
    page.locator(".scene canvas").first.wait_for()
    page.locator("#part-rounds img").wait_for()
    assert page.locator("#part-views").inner_html() == ""
    for _ in range(50):
        if seen.colours() > 20:
            break
        page.wait_for_timeout(100)
    assert seen.colours() > 20
    say(going, done=510, status="band 20 A")
    page.locator(".task", has_text="510 of 600").wait_for(timeout=6000)
    assert page.locator("progress").get_attribute("value") is not None and "85 %" in page.title()
    # a new map leaves the camera, turned meanwhile, where it is
    page.locator(".scene").press("ArrowLeft")
    page.wait_for_timeout(300)
    eye = "() => document.querySelector('.scene')._fullLayout.scene._scene.getCamera().eye"
    points = "() => document.querySelector('.scene').data[0].x.reduce((sum, x) => sum + x, 0)"
    camera, before, picture = page.evaluate(eye), page.evaluate(points), seen.picture()
    _roll(going / "current.mrc")
    seen.changes(picture)
    assert page.evaluate(points) != before and page.evaluate(eye) == pytest.approx(camera)
    _stop(page, going)
    say(going, state="stopped", message="stopped")
    (going / "stop").unlink()
    page.locator(".headline", has_text="The run was stopped").wait_for(timeout=6000)
    assert not page.locator("#stop").is_visible()
    assert all(address.startswith(site.address) for address in seen.asked)
    assert seen.said == []
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("() => document.documentElement.scrollWidth - window.innerWidth") <= 0
    assert page.evaluate(FETCH_ELSEWHERE) == "connect-src"


def _roll(path: Path) -> None:
    """Another map in place of the first."""
    volume, pixel_size = read_volume(path)
    write_volume(path, np.roll(volume, 4, axis=2), pixel_size)


def _stop(page: Any, run: Path) -> None:
    """The button asks first."""
    page.locator("#stop").click()
    page.get_by_role("button", name="Keep running").click()
    page.wait_for_timeout(300)
    assert not (run / "stop").exists()
    page.locator("#stop").click()
    page.locator("#ask").get_by_role("button", name="Stop the run").click()
    page.locator(".headline", has_text="Stopping").wait_for(timeout=6000)
    assert (run / "stop").exists()


def test_the_token_leaves_the_address_and_the_page_works(
    going: Path, serve: Callable[..., Served], look: Callable[..., "Look"]
) -> None:
    site = serve(going, loopback=False)
    seen = look(f"{site.address}?token={site.access.token}", 390)
    seen.page.locator(".task", has_text="420 of 600").wait_for()
    assert seen.page.url == site.address
    assert seen.page.evaluate("() => document.cookie") == ""
    seen.page.reload()
    seen.page.locator(".task", has_text="420 of 600").wait_for()
    assert seen.said == []


def test_the_command_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["watch", *arguments])
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return int(str(ended.value.code)), said

    assert ends(str(tmp_path / "nowhere")) == (
        2,
        f"ace-em watch: {tmp_path / 'nowhere'}: no such folder, expected a run of ace-em\n",
    )
    with listen("127.0.0.1", 0) as taken:
        code, said = ends(str(tmp_path), "--port", str(taken.getsockname()[1]))
    assert code == 2 and "Address already in use" in said and "another --port" in said
    assert ends(str(tmp_path), "--port", "70000")[0] == 2
    assert ends(str(tmp_path), "--host", "")[0] == 2
    assert ends(str(tmp_path), "--host", "a..b") == (2, "ace-em watch: --host a..b: expected a name or an address\n")
    assert ends(str(tmp_path), "--host", "no.such.host.invalid")[0] == 2
    for name in [name for name in sys.modules if name.startswith("ace_em.report.live")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    code, said = ends(str(tmp_path))
    assert code == 2 and "fastapi, which is not installed: pip install 'ace-em[watch]'" in said


def test_the_command_serves_until_interrupted_and_holds_no_model(going: Path) -> None:
    code = (
        "import sys\nfrom ace_em.cli import main\ntry:\n    main(sys.argv[1:])\nfinally:\n"
        "    heavy = {f'ace_em.{part}' for part in ('models', 'tasks', 'training', 'refinement', 'pipeline')}\n"
        "    print('HELD', *heavy.intersection(sys.modules))\n"
    )
    # what is no checkpoint at all would not load
    (going / "checkpoint.pt").write_text("rubbish")
    command = [sys.executable, "-c", code, "watch", str(going), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None and server.stderr is not None
        line = server.stdout.readline()
        assert line.startswith("http://127.0.0.1:") and line.endswith("/  (Ctrl-C stops this server, not the run)\n")
        site = Served(going, Access(True, int(line.split("/")[2].rpartition(":")[2])))
        assert site.ask("/api/state").status == 200
        assert all(site.ask(f"/api/part/{name}").status == 200 for name in ("tiles", "map", "rounds"))
        server.send_signal(2)
        out, err = server.communicate(timeout=20)
    assert server.returncode == 0 and err == "" and out.split() == ["HELD"]
