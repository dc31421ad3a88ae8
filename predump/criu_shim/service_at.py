"""Where the service is: the environment says it."""

from __future__ import annotations

import os
from typing import Final

from livemigration.criu.rpc.client import NoService, RpcClient
from predump.criu_shim.errors import ShimError

SOCKET_VARIABLE: Final = "PREDUMP_CRIU_SOCKET"


def connect() -> RpcClient:
    """A connection to the service. Raises ShimError."""
    path = os.environ.get(SOCKET_VARIABLE, "")
    if not path:
        raise ShimError(
            f"{SOCKET_VARIABLE} is not set: it names the socket of the simulated host that this "
            "criu asks; start one with `predump criu service --socket PATH`"
        )
    try:
        return RpcClient.connect(path)
    except NoService as error:
        raise ShimError(f"{SOCKET_VARIABLE}: {error}") from error
