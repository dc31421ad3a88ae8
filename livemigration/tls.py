"""TLS for the nodes and for those who call them, from PEM files.

gRPC says nothing useful about files it cannot use: a server with another certificate's key starts
and refuses every caller. So the files are looked at here first, with Python's own `ssl`.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
# How OpenSSL says it, the last for a key of another kind (RSA, EC).
_MISMATCH = frozenset({"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"})


class TlsError(ValueError):
    """TLS files that cannot be used; ``str()`` is one line that says what to change."""


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """A caller's side: the authority it trusts, and its own certificate for mutual TLS."""

    ca: Path
    cert: Path | None = None
    key: Path | None = None


def channel_credentials(tls: TlsConfig) -> grpc.ChannelCredentials:
    """Credentials for a channel to a node. Raises TlsError."""
    own = _pair(tls.cert, tls.key)
    return grpc.ssl_channel_credentials(
        root_certificates=_authorities(tls.ca),
        private_key=own[1] if own else None,
        certificate_chain=own[0] if own else None,
    )


def server_credentials(
    cert: Path | None, key: Path | None, client_ca: Path | None
) -> grpc.ServerCredentials | None:
    """Credentials for a node's port, or None for a plain one.

    With `client_ca` only callers whose certificate that authority signed are let in (mutual TLS).
    Raises TlsError.
    """
    own = _pair(cert, key)
    if own is None:
        if client_ca is not None:
            raise TlsError("--tls-client-ca needs --tls-cert and --tls-key of this node")
        return None
    return grpc.ssl_server_credentials(
        [(own[1], own[0])],
        root_certificates=_authorities(client_ca) if client_ca else None,
        require_client_auth=client_ca is not None,
    )


def client_context(tls: TlsConfig, *, check_name: bool = True) -> ssl.SSLContext:
    """For a connection without gRPC to a peer whose certificate `tls.ca` signed. Raises TlsError.

    Without `check_name` the certificate may be of another host.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = check_name
    context.load_verify_locations(cadata=_authorities(tls.ca).decode("ascii", "replace"))
    if _pair(tls.cert, tls.key) is not None:
        assert tls.cert is not None
        context.load_cert_chain(tls.cert, tls.key)
    return context


def server_context(
    cert: Path | None, key: Path | None, client_ca: Path | None
) -> ssl.SSLContext | None:
    """As `server_credentials`, for a port without gRPC. Raises TlsError."""
    if _pair(cert, key) is None:
        if client_ca is not None:
            raise TlsError("an authority of clients needs a certificate and key of this node")
        return None
    assert cert is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # CRIU takes GnuTLS's "again" for a failure, which is what a session ticket makes of a read.
    context.num_tickets = 0
    context.load_cert_chain(cert, key)
    if client_ca is not None:
        context.load_verify_locations(cadata=_authorities(client_ca).decode("ascii", "replace"))
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _pair(cert: Path | None, key: Path | None) -> tuple[bytes, bytes] | None:
    """The bytes of a certificate (and its chain) and of its key; None if there are none."""
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise TlsError("--tls-cert and --tls-key go together; give both")
    chain, secret = _read(cert), _read(key)
    _require_now(cert, _certificates(cert, chain)[:1])
    if b"ENCRYPTED" in secret:
        raise TlsError(f"{key}: is encrypted; write it without a password (openssl pkey -in ...)")
    try:
        # The empty password keeps OpenSSL from asking for one at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except (ssl.SSLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None)
        if reason in _MISMATCH:
            raise TlsError(f"{key}: is not the key of the certificate in {cert}") from error
        if b"PRIVATE KEY-----" not in secret:
            raise TlsError(f"{key}: holds no private key in PEM form") from error
        if reason is None:
            raise TlsError(f"{key}: holds a damaged private key") from error
        raise TlsError(f"{cert} and {key}: cannot be used, OpenSSL says {reason}") from error
    return chain, secret


def _authorities(path: Path) -> bytes:
    """The certificates of the authorities in `path`; one that can be used today is enough."""
    data = _read(path)
    certificates = _certificates(path, data)
    for other in certificates[:-1]:
        try:
            _require_now(path, [other])
        except TlsError:
            continue
        return data
    _require_now(path, certificates[-1:])
    return data


def _certificates(path: Path, data: bytes) -> list[str]:
    """The PEM blocks in `data`, of which OpenSSL can read every one."""
    text = data.decode("ascii", "replace")
    blocks = _CERTIFICATE.findall(text)
    if not blocks:
        raise TlsError(f"{path}: holds no certificate in PEM form")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata="\n".join(blocks))
    except (ssl.SSLError, ValueError) as error:
        raise TlsError(f"{path}: holds a damaged certificate") from error
    return blocks


def _require_now(path: Path, blocks: list[str]) -> None:
    """Raise TlsError if a certificate has expired, or does not hold yet."""
    now = datetime.now(UTC)
    for block in blocks:
        begin, end = _validity(ssl.PEM_cert_to_DER_cert(block))
        if end < now:
            raise TlsError(f"{path}: the certificate has expired on {end:%Y-%m-%d %H:%M:%S} UTC")
        if begin > now:
            when = f"{begin:%Y-%m-%d %H:%M:%S} UTC"
            raise TlsError(
                f"{path}: the certificate holds only from {when} on; is the clock right?"
            )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsError(f"{path}: cannot be read: {error.strerror}") from error


# -- dates of a certificate: the little of DER that they need, since `ssl` shows them only for
# authorities. OpenSSL has read the certificate before, so its structure is known to be sound.

_UTC_TIME = 0x17


def _validity(der: bytes) -> tuple[datetime, datetime]:
    """From when and until when a certificate holds (RFC 5280, 4.1: tbsCertificate.validity)."""
    fields = _elements(_elements(_elements(der)[0][1])[0][1])
    # The version, [0], is left out by certificates of version 1.
    validity = fields[4 if fields[0][0] == 0xA0 else 3][1]
    begin, end = (_time(tag, value) for tag, value in _elements(validity))
    return begin, end


def _time(tag: int, value: bytes) -> datetime:
    form = "%y%m%d%H%M%SZ" if tag == _UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.strptime(value.decode("ascii"), form).replace(tzinfo=UTC)


def _elements(data: bytes) -> list[tuple[int, bytes]]:
    """Tag and content of the DER elements in `data`, one after the other."""
    elements, at = [], 0
    while at < len(data):
        tag, length, at = data[at], data[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(data[at : at + size], "big"), at + size
        elements.append((tag, data[at : at + length]))
        at += length
    return elements
