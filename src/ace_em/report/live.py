"""``ace-em watch``: serves a live page of a run. It reads only the files of the run and loads no model."""

import ipaddress
import os
import secrets
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ace_em.errors import InputError
from ace_em.report.live_status import LIVE_PARTS, SERVED, LiveParts, read_status, served_file
from ace_em.report.load import REPORT, STOP
from ace_em.report.page import layout, script, templates

try:
    import uvicorn
    from fastapi import FastAPI, HTTPException, Request, Response
    from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse
    from starlette.middleware.trustedhost import TrustedHostMiddleware
except ImportError as error:
    raise InputError(f"ace-em watch needs {error.name}, which is not installed: pip install 'ace-em[watch]'") from error

SCRIPTS = ("plotly.js", "viewer.js", "live.js")
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_META_POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src data:; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)
HEADERS = {
    "Cache-Control": "no-store",
    # frame-ancestors is ignored in a meta element, so it is set here
    "Content-Security-Policy": f"{_META_POLICY}; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}
# scripts of report.html run in a sandbox with a separate origin
_REPORT_POLICY = {"Content-Security-Policy": "sandbox allow-scripts; frame-ancestors 'none'"}


@dataclass(frozen=True)
class Access:
    """Access rules of the server.

    Attributes
    ----------
    loopback : whether only this machine can reach the server. Then no token is needed, but the Host header must be one of
        ``LOOPBACK_NAMES``, which prevents DNS rebinding.
    port : of the server. Cookies are shared between ports, so their names contain the port.
    token : required if other machines can reach the server; first in the address, then in a cookie.
    """

    loopback: bool
    port: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    @property
    def cookie(self) -> str:
        """Name of the token cookie."""
        return f"ace_em_{self.port}"

    def has_token(self, request: Request) -> bool:
        """Whether the request has the token, or needs none."""
        given = request.query_params.get("token") or request.cookies.get(self.cookie) or ""
        return self.loopback or secrets.compare_digest(given.encode(), self.token.encode())


def build_app(run: Path, access: Access, parts: LiveParts) -> FastAPI:
    """The web application: page, scripts, state of the run, and files for download."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    if access.loopback:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOOPBACK_NAMES, www_redirect=False)

    @app.middleware("http")
    async def guarded(request: Request, following: Callable[[Request], Awaitable[Response]]) -> Response:
        if not access.has_token(request):
            response: Response = PlainTextResponse(
                "open the address printed by `ace-em watch`, including its token", status_code=401
            )
        else:
            response = await following(request)
            if not access.loopback and response.status_code == 200 and "token" in request.query_params:
                response.set_cookie(access.cookie, access.token, httponly=True, samesite="strict")
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    @app.get("/")
    def page() -> HTMLResponse:
        macros: Any = templates().get_template("parts.html.j2").module
        html = {name: macros.place(name) for name in LIVE_PARTS} | {"problems": ""}
        values = layout(run) | {"policy": _META_POLICY, "html": html, "scripts": SCRIPTS}
        return HTMLResponse(templates().get_template("live.html.j2").render(values))

    @app.get("/scripts/{name}")
    def scripts(name: str) -> Response:
        return Response(script(_known(name, SCRIPTS)), media_type="text/javascript")

    @app.get("/api/state")
    def state() -> dict[str, Any]:
        return parts.state()

    @app.get("/api/maps")
    def maps() -> Response:
        return Response(parts.maps(), media_type="application/json")

    @app.get("/api/part/{name}")
    def part(name: str) -> HTMLResponse:
        return HTMLResponse(parts.part(_known(name, LIVE_PARTS)))

    @app.get("/files/{name}")
    def file(name: str) -> FileResponse:
        path = served_file(run, name)
        if path is None:
            raise HTTPException(404)
        if name == REPORT:
            return FileResponse(path, media_type=SERVED[name], headers=_REPORT_POLICY)
        return FileResponse(path, media_type=SERVED[name], filename=name)

    @app.post("/stop")
    def stop(request: Request) -> dict[str, Any]:
        # browsers send the origin of the page with every POST, and other sites cannot forge it
        host = request.headers.get("host")
        if request.headers.get("origin") not in (f"http://{host}", f"https://{host}"):
            raise HTTPException(403, "only a page of this server may stop the run")
        ask_to_stop(run)
        return parts.state()

    return app


def _known(name: str, names: Any) -> str:
    if name not in names:
        raise HTTPException(404)
    return name


def ask_to_stop(run: Path) -> None:
    """Create RUN/stop, which makes the run save a checkpoint and end; HTTP error 409 if no run is active."""
    if not read_status(run)["stoppable"]:
        raise HTTPException(409, "no run is active here")
    try:
        # O_NOFOLLOW: a link could create a file outside the folder
        os.close(os.open(run / STOP, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644))
    except OSError as error:
        raise HTTPException(409, f"the stop request failed: {error.strerror}") from error


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; ``port`` 0 picks a free one."""
    if not 0 <= port <= 65535:
        raise InputError(f"--port {port}: expected 0 (any free port) to 65535")
    if not host:
        raise InputError("--host: expected a name or an address; 127.0.0.1 for this machine only")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=64)
    except socket.gaierror as error:
        raise InputError(f"--host {host}: {error.strerror}") from error
    except UnicodeError as error:
        raise InputError(f"--host {host}: expected a name or an address") from error
    except OSError as error:
        raise InputError(f"--port {port} on {host}: {error.strerror}; try another --port") from error


def access_of(bound: socket.socket) -> Access:
    """Access rules for a listening socket."""
    address, port = bound.getsockname()[:2]
    return Access(ipaddress.ip_address(address.partition("%")[0]).is_loopback, port)


def address_of(access: Access, host: str) -> str:
    """The address to open in a browser."""
    name = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"http://{name}:{access.port}/" + ("" if access.loopback else f"?token={access.token}")


def watch(run: Path, host: str = "127.0.0.1", port: int = 8050) -> None:
    """Serve the page of a run folder until interrupted."""
    import torch

    if not run.is_dir():
        raise InputError(f"{run}: {'not a folder' if run.exists() else 'no such folder'}, expected a run of ace-em")
    with listen(host, port) as bound:
        # the run has priority
        torch.set_num_threads(1)
        os.nice(5)
        access = access_of(bound)
        app = build_app(run, access, LiveParts(run))
        config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=2)
        print(f"{address_of(access, host)}  (Ctrl-C stops this server, not the run)", flush=True)
        try:
            uvicorn.Server(config).run(sockets=[bound])
        except KeyboardInterrupt:
            print()
