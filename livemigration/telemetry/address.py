"""The URL of an MQTT broker: ``mqtt[s]://[user:password@]host[:port][/prefix]``."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import SplitResult, unquote, urlsplit

URL_FORM = "mqtt://[user:password@]host[:port][/prefix], or mqtts:// for TLS"
_PORTS = {"mqtt": 1883, "mqtts": 8883}
_LONGEST_PREFIX = 500
_CONTROL = re.compile(r"[\x00-\x20\x7f]")


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where a broker is. `str()` leaves the password out, for messages."""

    host: str
    port: int
    tls: bool = False
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    prefix: str = ""
    """Levels put before every topic, without a slash at either end."""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_broker_url(url: str) -> BrokerAddress:
    """The address that `url` names. Raises ValueError with one line that says what to change."""
    shown = re.sub(r"//.*@", "//***@", url)
    if _CONTROL.search(url):
        raise ValueError(f"broker URL {shown!r} has a blank or control character; write {URL_FORM}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"broker URL {shown!r}: {error}; write {URL_FORM}") from None
    if parts.scheme not in _PORTS:
        raise ValueError(f"broker URL {shown!r} does not start with mqtt://; write {URL_FORM}")
    if not parts.hostname:
        raise ValueError(f"broker URL {shown!r} names no host; write {URL_FORM}")
    if port == 0:
        raise ValueError(f"broker URL {shown!r}: port 0 cannot be connected to; write 1 to 65535")
    if parts.query or parts.fragment or url.endswith(("?", "#")):
        raise ValueError(f"broker URL {shown!r}: write ? and # as %3F and %23; {URL_FORM}")
    user, password = _credentials(parts, shown)
    return BrokerAddress(
        host=parts.hostname,
        port=port or _PORTS[parts.scheme],
        tls=parts.scheme == "mqtts",
        user=user,
        password=password,
        prefix=_prefix(parts, shown),
    )


def _credentials(parts: SplitResult, shown: str) -> tuple[str | None, str | None]:
    user = unquote(parts.username) if parts.username else None
    password = unquote(parts.password) if parts.password else None
    if password is not None and user is None:
        raise ValueError(f"broker URL {shown!r} has a password and no user; write {URL_FORM}")
    return user, password


def _prefix(parts: SplitResult, shown: str) -> str:
    prefix = unquote(parts.path).strip("/")
    if re.search(r"[+#\x00-\x1f\x7f]", prefix):
        raise ValueError(f"broker URL {shown!r}: the prefix {prefix!r} may not hold + or #")
    if len(prefix) > _LONGEST_PREFIX:
        raise ValueError(f"the prefix of the broker URL is longer than {_LONGEST_PREFIX} letters")
    if prefix.startswith("$"):
        raise ValueError(f"broker URL {shown!r}: the prefix may not start with $, brokers own it")
    return prefix
