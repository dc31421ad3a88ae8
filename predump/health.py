"""``python -m predump.health HOST:PORT``: status 0 when a node there serves, for container health
checks. With --tls-ca, --tls-cert and --tls-key FILE over TLS, as `predump run` takes them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from livemigration.tls import TlsConfig, TlsError, channel_credentials

TIMEOUT_S = 5.0
USAGE = "usage: python -m predump.health HOST:PORT [--tls-ca FILE [--tls-cert FILE --tls-key FILE]]"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One usage line is all that a container's health log has room for."""
        raise ValueError(message)


def check(address: str, tls: TlsConfig | None = None) -> str:
    """ "" if the node at ``HOST:PORT`` serves, else one line that says what it does instead."""
    channel = (
        grpc.insecure_channel(address)
        if tls is None
        else grpc.secure_channel(address, channel_credentials(tls))
    )
    with channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S
            )
        except grpc.RpcError as error:
            details = getattr(error, "details", None)
            return f"{address}: {details() if details is not None else error}"
    if reply.status != health_pb2.HealthCheckResponse.SERVING:
        return f"{address}: {health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)}"
    return ""


def main(arguments: list[str]) -> int:
    """The command; 0 serving, 1 not, 2 called wrongly."""
    parser = _Parser(add_help=False)
    parser.add_argument("address")
    for name in ("ca", "cert", "key"):
        parser.add_argument(f"--tls-{name}", type=Path)
    try:
        given = parser.parse_args(arguments)
    except ValueError:
        print(USAGE, file=sys.stderr)
        return 2
    tls = TlsConfig(given.tls_ca, given.tls_cert, given.tls_key) if given.tls_ca else None
    try:
        problem = check(given.address, tls)
    except TlsError as error:
        problem = str(error)
    if problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
