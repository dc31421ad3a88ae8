"""Who may ask for what.

The page can start migrations, so no other page that a browser has open may: requests that act need
the token that only our own page can read, and come from our own origin. A name that somebody else
points to this machine (DNS rebinding) is refused by the Host header, since addresses and
`localhost` cannot be pointed anywhere.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN_HEADER = "x-predump-token"

HEADERS: Mapping[str, str] = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address, or the name `localhost`."""
    host = host.removeprefix("[").removesuffix("]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Guard:
    """`names`: under which this machine may be asked for, beside addresses and `localhost`."""

    names: Sequence[str] = ()
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    def knows(self, host: str) -> bool:
        """Whether a Host header names this machine."""
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        name = name.removeprefix("[").removesuffix("]").lower()
        if name == "localhost" or name in {known.lower() for known in self.names}:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def may_read(self, headers: Headers) -> bool:
        """Whether a request comes from our own page, or from no browser at all.

        Another site's page could not read the answer; it must not hold streams open either.
        """
        return headers.get("sec-fetch-site", "none") in ("none", "same-origin")

    def may_act(self, headers: Headers) -> bool:
        """Whether a request comes from our own page."""
        origin, host = headers.get("origin"), headers.get("host")
        ours = origin is None or origin in {f"http://{host}", f"https://{host}"}
        given = headers.get(TOKEN_HEADER, "")
        return ours and hmac.compare_digest(given.encode(), self.token.encode())


class Guarded:
    """An application behind a guard: strange hosts are refused, answers get security headers."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self._app = app
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        app = self._app
        host = Headers(scope=scope).get("host", "")
        if not self._guard.knows(host):
            app = PlainTextResponse(
                "This name is not known here: use the address, or start the dashboard with "
                "--name NAME\n",
                status_code=421,
            )
        await app(scope, receive, send_with_headers)
