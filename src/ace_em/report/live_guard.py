"""Who may look at the live page, and who may stop the run."""

import secrets
from dataclasses import dataclass, field

from fastapi import Request, Response
from fastapi.responses import PlainTextResponse

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
CSRF_HEADER = "X-Ace-Em"
# scripts and data from this server alone, and never inside another site's page, where a click could be led astray
POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src data:; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def _secret() -> str:
    return secrets.token_urlsafe(32)


@dataclass(frozen=True)
class Guard:
    """The rules of one server.

    Attributes
    ----------
    loopback : whether only this machine reaches it. Then no token is asked for, but the name by which it is called must be
        one of this machine's: another site's name that was made to point here (DNS rebinding) is refused.
    port : it listens on; cookies do not tell ports apart, their names must.
    token : what a reader must bring otherwise, once in the address and from then on in a cookie.
    csrf : what the page must send to stop the run, so that no other site's page can.
    """

    loopback: bool
    port: int
    token: str = field(default_factory=_secret, repr=False)
    csrf: str = field(default_factory=_secret, repr=False)

    @property
    def cookie(self) -> str:
        return f"ace_em_{self.port}"

    def refusal(self, request: Request) -> Response | None:
        """Why a request is refused, None when it is not."""
        if self.loopback:
            name = _without_port(request.headers.get("host", ""))
            return None if name in LOOPBACK_NAMES else PlainTextResponse("unknown host", status_code=421)
        given = request.query_params.get("token") or request.cookies.get(self.cookie) or ""
        if _same(given, self.token):
            return None
        return PlainTextResponse("open the address, token and all, that `ace-em watch` printed", status_code=401)

    def may_stop(self, request: Request) -> bool:
        """Whether a request comes from a page of this server."""
        return _same(request.headers.get(CSRF_HEADER, ""), self.csrf)

    def finish(self, request: Request, response: Response) -> None:
        """Headers of every response, and the cookie for who brought the token in the address."""
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        if not self.loopback and response.status_code == 200 and "token" in request.query_params:
            response.set_cookie(self.cookie, self.token, httponly=True, samesite="strict")


def _same(given: str, expected: str) -> bool:
    """Compared in a time that does not tell how much was right."""
    return secrets.compare_digest(given.encode(), expected.encode())


def _without_port(host: str) -> str:
    head, colon, port = host.lower().rpartition(":")
    return head if colon and (port.isdecimal() or not port) else host.lower()
