"""`ace-em watch`: the page of a run, served while the run goes on. It reads the run's files and holds no model."""

import ipaddress
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

from ace_em.errors import InputError
from ace_em.report.live_status import read_status

try:
    import uvicorn
    from fastapi import FastAPI, HTTPException, Request, Response
    from fastapi.responses import FileResponse, HTMLResponse

    from ace_em.report.live_guard import Guard
    from ace_em.report.live_page import live_page
except ImportError as error:
    raise InputError(f"ace-em watch needs {error.name}, which is not installed: pip install 'ace-em[watch]'") from error

from ace_em.report.live_parts import PARTS, SERVED, LiveParts, served_file
from ace_em.report.scripts import LIVE_JS, VIEWER_JS, plotly_js

# a report that was served is one file with scripts of its own; here it gets an origin of its own, so that these reach nothing
_REPORT_POLICY = "sandbox allow-scripts; frame-ancestors 'none'"


def build_app(run: Path, guard: Guard, parts: LiveParts) -> FastAPI:
    """The server's answers: a page, its scripts, the state of the run, and the files of a short list."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def guarded(request: Request, following: Callable[[Request], Awaitable[Response]]) -> Response:
        response = guard.refusal(request) or await following(request)
        guard.finish(request, response)
        return response

    _add_scripts(app)

    @app.get("/")
    def page() -> HTMLResponse:
        return HTMLResponse(live_page(run, guard.csrf))

    @app.get("/api/state")
    def state() -> dict[str, object]:
        return parts.state()

    @app.get("/api/maps")
    def maps() -> Response:
        return Response(parts.maps(), media_type="application/json")

    @app.get("/api/part/{name}")
    def part(name: str) -> HTMLResponse:
        if name not in PARTS:
            raise HTTPException(404)
        return HTMLResponse(parts.part(name))

    @app.get("/files/{name}")
    def file(name: str) -> FileResponse:
        path = served_file(run, name)
        if path is None:
            raise HTTPException(404)
        if name == "report.html":
            return FileResponse(path, media_type=SERVED[name], headers={"Content-Security-Policy": _REPORT_POLICY})
        return FileResponse(path, media_type=SERVED[name], filename=name)

    @app.post("/stop")
    def stop(request: Request) -> dict[str, object]:
        if not guard.may_stop(request):
            raise HTTPException(403, "only this server's own page may stop the run")
        ask_to_stop(run)
        return parts.state()

    return app


def _add_scripts(app: FastAPI) -> None:
    scripts: dict[str, Callable[[], str]] = {
        "/plotly.js": plotly_js,
        "/viewer.js": lambda: VIEWER_JS,
        "/live.js": lambda: LIVE_JS,
    }
    for path, text in scripts.items():

        def script(text: Callable[[], str] = text) -> Response:
            return Response(text(), media_type="text/javascript")

        app.get(path)(script)


def ask_to_stop(run: Path) -> None:
    """Make the empty file RUN/stop, which the run looks for; only while there is a run to see it."""
    if not read_status(run)["stoppable"]:
        raise HTTPException(409, "no run is going on here that could be stopped")
    try:
        # a link in its place must not make a file elsewhere
        os.close(os.open(run / "stop", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644))
    except OSError as error:
        raise HTTPException(409, f"the run could not be asked to stop: {error.strerror}") from error


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, so that a busy port is known before anything is promised."""
    if not 0 <= port <= 65535:
        raise InputError(f"--port {port}: expected 0 (any that is free) to 65535")
    if not host:
        raise InputError("--host: expected a name or an address; 127.0.0.1 is this machine alone")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=64)
    except socket.gaierror as error:
        raise InputError(f"--host {host}: {error.strerror}") from error
    except UnicodeError as error:
        raise InputError(f"--host {host}: expected a name or an address") from error
    except OSError as error:
        raise InputError(f"--port {port} on {host}: {error.strerror}; another --port may be free") from error


def guard_of(bound: socket.socket) -> Guard:
    """The rules for a socket: a token unless nobody but this machine reaches it."""
    address, port = bound.getsockname()[:2]
    return Guard(ipaddress.ip_address(address.partition("%")[0]).is_loopback, port)


def address_of(guard: Guard, host: str) -> str:
    """What to open in a browser."""
    name = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{name}:{guard.port}/" + ("" if guard.loopback else f"?token={guard.token}")


def watch(run: Path, host: str = "127.0.0.1", port: int = 8050) -> None:
    """Serve the page of a run folder until interrupted."""
    if not run.is_dir():
        raise InputError(f"{run}: {'not a folder' if run.exists() else 'no such folder'}, expected a run of ace-em")
    with listen(host, port) as bound:
        _step_back()
        guard = guard_of(bound)
        app = build_app(run, guard, LiveParts(run))
        config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=2)
        print(f"{address_of(guard, host)}  (Ctrl-C ends it; the run goes on)", flush=True)
        try:
            uvicorn.Server(config).run(sockets=[bound])
        except KeyboardInterrupt:
            print()


def _step_back() -> None:
    """Whoever looks on must not slow the run."""
    import torch

    torch.set_num_threads(1)
    os.nice(5)
