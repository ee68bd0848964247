"""The door of the server: the token of the printed address, the name it is asked by, and the headers of every page.

The token comes once in the address and is then a cookie of this browser; other users of the machine, and pages of other
sites that ask this address, have neither.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

#: Names that this machine has for itself; by another one a site could make its own name point here.
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

#: Addresses that mean all of a machine's, so that it may have any name.
ALL_ADDRESSES = frozenset({"0.0.0.0", "::", ""})

HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

#: For pages that bring no policy of their own.
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)

Next = Callable[[Request], Awaitable[Response]]


class Door:
    """Lets a request in that has the token and asks for a name of this machine, to read."""

    def __init__(self, token: str, host: str, port: int) -> None:
        self._token = token
        self._names = None if host in ALL_ADDRESSES else LOCAL_NAMES | {host.lower()}
        self._cookie = f"nocturne_{port}"  # browsers give all ports of a host the same cookies

    async def __call__(self, request: Request, call_next: Next) -> Response:
        response = self._denial(request) or self._admission(request) or await call_next(request)
        for name, value in HEADERS.items():
            response.headers[name] = value
        return response

    def _denial(self, request: Request) -> Response | None:
        if self._names is not None and (request.url.hostname or "") not in self._names:
            return PlainTextResponse("This server answers to the names of its own machine alone.", 421)
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse("These pages are only read.", 405)
        given = request.query_params.get("token") or request.cookies.get(self._cookie) or ""
        if not secrets.compare_digest(given.encode(), self._token.encode()):
            return PlainTextResponse("Open the address that `producer view` has printed: it holds the token.", 403)
        return None

    def _admission(self, request: Request) -> Response | None:
        """For an address with the token: the same page without it, which then is in no history and no bookmark."""
        if "token" not in request.query_params:
            return None
        response = RedirectResponse(str(request.url.remove_query_params("token").replace(scheme="", netloc="")), 303)
        response.set_cookie(self._cookie, self._token, httponly=True, samesite="strict")
        return response
