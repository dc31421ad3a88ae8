"""Channel and server settings that both hosts must agree on.

Messages are about 1 MiB, above the 4 MiB default limit only with long run columns or address-space
descriptions; both limits are set well above. ``so_reuseport`` is off, so that two servers cannot
listen on one port without noticing.
"""

from __future__ import annotations

import grpc
import grpc.aio

MAX_MESSAGE = 64 << 20
"""Largest message either way, bytes: address spaces with many fragments, never page batches."""

_LIMITS: list[tuple[str, int]] = [
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
]

SERVER_OPTIONS: list[tuple[str, int]] = [
    *_LIMITS,
    ("grpc.so_reuseport", 0),
    # A peer that is gone without ending its connection is noticed, and what it held is free again.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
]

CHANNEL_OPTIONS: list[tuple[str, int]] = [
    *_LIMITS,
    # A channel of its own: channels with equal arguments would share one connection.
    ("grpc.use_local_subchannel_pool", 1),
    # A peer that comes back is found again soon; the second one is how long it may take to answer a
    # new connection, which a busy host needs.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


def open_channel(
    address: str, credentials: grpc.ChannelCredentials | None = None
) -> grpc.aio.Channel:
    """A channel to ``HOST:PORT``, encrypted if there are credentials."""
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(address, credentials, options=CHANNEL_OPTIONS)


def why(error: grpc.aio.AioRpcError) -> str:
    """What a failed call says, in one line."""
    details = (error.details() or "").strip().splitlines()
    text = details[0] if details else ""
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return f"no such Predump node is there ({text}); is this the right address?"
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return f"not reachable ({text})" if text else "not reachable"
    return text or error.code().name.lower().replace("_", " ")
