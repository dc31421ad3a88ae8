"""What a client of the RPC is told when a request fails, and what ends a connection."""

from __future__ import annotations

import errno


class RpcFailure(Exception):
    """A request that failed: `message` is one line, `errno` what goes into ``cr_errno``; 0: none.

    The values that CRIU sets are EBADRQC (options that cannot be), ESRCH (no such task), EEXIST
    (its pid is taken), ENOTSUP, and 0, when there is nothing to tell but the message.
    """

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        # It goes into a protobuf message, where names that are no UTF-8 have no place.
        readable = message.encode(errors="backslashreplace").decode()
        self.message = " ".join(readable.split())
        self.errno = errno


class BadOptions(RpcFailure):
    """Options that the service does not take."""

    def __init__(self, message: str) -> None:
        super().__init__(message, errno.EBADRQC)


class PeerGone(Exception):
    """The peer closed the connection, or what it sent is no message; `str` says which."""
