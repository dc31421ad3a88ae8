"""TLS files: what is refused and how, and that what is accepted really protects a port."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from livemigration.tls import TlsConfig, TlsError, channel_credentials, server_credentials

NOW = datetime.now(UTC)


@dataclass(frozen=True)
class Files:
    """One authority and a certificate of its, as files."""

    folder: Path
    authority: trustme.CA

    @property
    def ca(self) -> Path:
        path = self.folder / "ca.pem"
        self.authority.cert_pem.write_to_path(path)
        return path

    def issue(self, name: str = "node", **options: object) -> tuple[Path, Path]:
        """A new certificate for localhost, and its key."""
        issued = self.authority.issue_cert("localhost", **options)  # type: ignore[arg-type]
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        for number, pem in enumerate(issued.cert_chain_pems):
            pem.write_to_path(cert, append=number > 0)
        issued.private_key_pem.write_to_path(key)
        return cert, key


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path, trustme.CA())


def _refusal(call: Callable[[], object]) -> str:
    with pytest.raises(TlsError) as refusal:
        call()
    line = str(refusal.value)
    assert "\n" not in line
    return line


# -- what is refused


def test_no_files_are_no_tls() -> None:
    assert server_credentials(None, None, None) is None


def test_a_certificate_and_its_key_go_together(files: Files) -> None:
    cert, key = files.issue()
    for one, other in ((cert, None), (None, key)):
        for call in (
            partial(server_credentials, one, other, None),
            partial(channel_credentials, TlsConfig(files.ca, one, other)),
        ):
            assert _refusal(call) == "--tls-cert and --tls-key go together; give both"


def test_a_client_authority_needs_a_certificate_of_the_node(files: Files) -> None:
    line = _refusal(lambda: server_credentials(None, None, files.ca))
    assert line == "--tls-client-ca needs --tls-cert and --tls-key of this node"


@pytest.mark.parametrize("missing", ["cert", "key", "ca"])
def test_a_missing_file_is_named(files: Files, missing: str) -> None:
    cert, key = files.issue()
    paths = {"cert": cert, "key": key, "ca": files.ca}
    paths[missing] = files.folder / "none.pem"
    wanted = f"{files.folder}/none.pem: cannot be read: No such file or directory"
    assert _refusal(lambda: server_credentials(paths["cert"], paths["key"], paths["ca"])) == wanted
    assert (
        _refusal(lambda: channel_credentials(TlsConfig(paths["ca"], paths["cert"], paths["key"])))
        == wanted
    )


@pytest.mark.parametrize("content", [b"", b"not PEM", bytes(range(256)), b"-----BEGIN X-----"])
def test_a_file_that_is_not_pem_is_named(files: Files, content: bytes) -> None:
    cert, key = files.issue()
    odd = files.folder / "odd.pem"
    odd.write_bytes(content)
    no_certificate = f"{odd}: holds no certificate in PEM form"
    assert _refusal(lambda: server_credentials(odd, key, None)) == no_certificate
    assert _refusal(lambda: server_credentials(cert, key, odd)) == no_certificate
    assert _refusal(lambda: channel_credentials(TlsConfig(odd))) == no_certificate
    assert _refusal(lambda: server_credentials(cert, odd, None)) == (
        f"{odd}: holds no private key in PEM form"
    )


def test_a_certificate_and_a_key_in_each_others_place_are_told_apart(files: Files) -> None:
    cert, key = files.issue()
    assert _refusal(lambda: server_credentials(key, cert, None)) == (
        f"{key}: holds no certificate in PEM form"
    )


@pytest.mark.parametrize(("which", "what"), [(0, "certificate"), (1, "private key")])
def test_a_damaged_file_is_named(files: Files, which: int, what: str) -> None:
    paths = files.issue()
    lines = paths[which].read_text().splitlines()
    paths[which].write_text("\n".join([*lines[:2], *lines[3:]]))
    assert _refusal(lambda: server_credentials(*paths, None)) == (
        f"{paths[which]}: holds a damaged {what}"
    )


@pytest.mark.parametrize("other", [trustme.KeyType.ECDSA, trustme.KeyType.RSA])
def test_a_key_of_another_certificate_is_named(files: Files, other: trustme.KeyType) -> None:
    cert, _ = files.issue()
    _, key = files.issue("other", key_type=other)
    assert _refusal(lambda: server_credentials(cert, key, None)) == (
        f"{key}: is not the key of the certificate in {cert}"
    )


def test_an_encrypted_key_is_refused_without_asking_for_its_password(files: Files) -> None:
    cert, key = files.issue()
    plain = load_pem_private_key(key.read_bytes(), None)
    secret = BestAvailableEncryption(b"secret")
    for form in (PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL):
        key.write_bytes(plain.private_bytes(Encoding.PEM, form, secret))
        assert f"{key}: is encrypted" in _refusal(lambda: server_credentials(cert, key, None))


@pytest.mark.parametrize("year", [2021, 1999])
def test_an_expired_certificate_is_named_as_such(files: Files, year: int) -> None:
    end = datetime(year, 3, 4, 5, 6, 7, tzinfo=UTC)
    cert, key = files.issue(not_before=end - timedelta(days=1), not_after=end)
    wanted = f"{cert}: the certificate has expired on {year}-03-04 05:06:07 UTC"
    assert _refusal(lambda: server_credentials(cert, key, None)) == wanted
    assert _refusal(lambda: channel_credentials(TlsConfig(files.ca, cert, key))) == wanted
    assert _refusal(lambda: channel_credentials(TlsConfig(cert))) == wanted


def test_a_certificate_of_tomorrow_is_named_as_such(files: Files) -> None:
    cert, key = files.issue(not_before=NOW + timedelta(days=1), not_after=NOW + timedelta(days=2))
    assert "holds only from" in _refusal(lambda: server_credentials(cert, key, None))


def test_a_certificate_of_the_far_future_is_read(files: Files) -> None:
    """From 2050 on, certificates write their dates in another way."""
    cert, key = files.issue(not_after=datetime(2250, 1, 1, tzinfo=UTC))
    assert server_credentials(cert, key, files.ca) is not None


def test_one_usable_authority_among_expired_ones_is_enough(files: Files) -> None:
    end = NOW - timedelta(days=1)
    expired, _ = files.issue("expired", not_before=end - timedelta(days=1), not_after=end)
    usable = files.ca
    for order in ((expired, usable), (usable, expired)):
        bundle = files.folder / "bundle.pem"
        bundle.write_bytes(b"".join(path.read_bytes() for path in order))
        assert channel_credentials(TlsConfig(bundle)) is not None


# -- what is accepted


async def _call(credentials: grpc.ServerCredentials | None, tls: TlsConfig) -> bytes:
    """What a caller gets through a real port."""

    async def answer(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return request.upper()

    assert credentials is not None
    server = grpc.aio.server()
    handlers: dict[str, Any] = {"Say": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    port = server.add_secure_port("localhost:0", credentials)
    await server.start()
    try:
        address = f"localhost:{port}"
        async with grpc.aio.secure_channel(address, channel_credentials(tls)) as channel:
            say: Any = channel.unary_unary("/test.Echo/Say")
            reply: bytes = await say(b"hello", timeout=10)
            return reply
    finally:
        await server.stop(None)


async def test_a_caller_that_trusts_the_authority_gets_through(files: Files) -> None:
    cert, key = files.issue()
    assert await _call(server_credentials(cert, key, None), TlsConfig(files.ca)) == b"HELLO"


async def test_a_caller_that_trusts_another_authority_does_not(
    files: Files, tmp_path: Path
) -> None:
    cert, key = files.issue()
    other = Files(tmp_path / "other", trustme.CA())
    other.folder.mkdir()
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await _call(server_credentials(cert, key, None), TlsConfig(other.ca))
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_mutual_tls_lets_in_only_callers_with_a_certificate(
    files: Files, tmp_path: Path
) -> None:
    node, caller = files.issue("node"), files.issue("caller")
    credentials = server_credentials(*node, files.ca)
    assert await _call(credentials, TlsConfig(files.ca, *caller)) == b"HELLO"

    other = Files(tmp_path / "other", trustme.CA())
    other.folder.mkdir()
    for tls in (TlsConfig(files.ca), TlsConfig(files.ca, *other.issue())):
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await _call(server_credentials(*node, files.ca), tls)
        assert failure.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.fixture
def documented(tmp_path: Path) -> Path:
    """The folder in which the commands of docs/tls.md were run."""
    page = (Path(__file__).parents[3] / "docs" / "tls.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    commands = next(text for text in blocks if text.startswith("openssl req"))
    done = subprocess.run(["sh", "-ec", commands], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return tmp_path


async def test_the_documented_commands_make_files_that_work(documented: Path) -> None:
    ca = documented / "ca.pem"
    credentials = server_credentials(documented / "source.pem", documented / "source.key", ca)
    tls = TlsConfig(ca, documented / "runner.pem", documented / "runner.key")
    assert await _call(credentials, tls) == b"HELLO"
