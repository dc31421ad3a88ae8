"""``python -m predump.health HOST:PORT``: status 0 when a node there serves, for container health
checks.
"""

from __future__ import annotations

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from livemigration.tls import TlsConfig, channel_credentials

TIMEOUT_S = 5.0


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
    if len(arguments) != 1:
        print("usage: python -m predump.health HOST:PORT", file=sys.stderr)
        return 2
    problem = check(arguments[0])
    if problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
