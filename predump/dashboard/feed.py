"""Where the board's messages come from: an MQTT broker, or the nodes themselves.

Both give the same topics and payloads. A feed goes on for ever: what is lost is tried again, and
`FeedState` says how it stands.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field

import grpc
import grpc.aio

from livemigration.channel import open_channel, why
from livemigration.telemetry.address import BrokerAddress
from livemigration.telemetry.connection import BrokerLostError, connected, next_delay
from livemigration.telemetry.messages import Topics, encode
from livemigration.v1 import telemetry_pb2, telemetry_pb2_grpc
from predump.dashboard.board import LiveBoard
from predump.watch_board import plain

_REFUSED = 0x80


@dataclass(slots=True)
class FeedState:
    """What each part of a feed says of itself: "" if it is well."""

    kind: str
    troubles: dict[str, str] = field(default_factory=dict)

    def line(self) -> str:
        """All that is wrong, in one line; "" if nothing is."""
        return "; ".join(trouble for trouble in self.troubles.values() if trouble)


async def follow_broker(address: BrokerAddress, board: LiveBoard, state: FeedState) -> None:
    """Everything that is published below the broker's prefix."""
    topics = Topics(address.prefix)
    identifier = f"predump-dashboard-{secrets.token_hex(4)}"
    delay = 0.0
    while True:
        try:
            async with connected(address, identifier=identifier) as client:
                codes = await client.subscribe([(name, 1) for name in topics.filters()])
                if any(getattr(code, "value", code) >= _REFUSED for code in codes):
                    raise BrokerLostError("it refuses the subscription")
                state.troubles["broker"], delay = "", 0.0
                board.touch()
                async for message in client.messages:
                    board.apply(message.topic.value, message.payload, retained=message.retain)
        except BrokerLostError as lost:
            state.troubles["broker"] = f"no connection to the broker at {address}: {lost}"
            board.touch()
        delay = next_delay(delay)
        await asyncio.sleep(delay)


async def follow_node(
    address: str,
    credentials: grpc.ChannelCredentials | None,
    board: LiveBoard,
    state: FeedState,
) -> None:
    """Everything that a node tells."""
    delay = 0.0
    while True:
        host, role = "", ""
        try:
            async with open_channel(address, credentials) as channel:
                stub: telemetry_pb2_grpc.NodeTelemetryAsyncStub = (
                    telemetry_pb2_grpc.NodeTelemetryStub(channel)
                )
                async for message in stub.Watch(telemetry_pb2.WatchRequest()):
                    state.troubles[address], delay = "", 0.0
                    board.apply(message.topic, message.payload, retained=message.retained)
                    subject = Topics().subject(message.topic)
                    if subject is not None and subject.kind == "presence":
                        host = subject.name
                        role = plain(board.board.hosts.get(host, {}).get("role", ""))
            trouble = "it has ended"
        except grpc.aio.AioRpcError as error:
            trouble = why(error)
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                trouble = "it is of a version that cannot be watched"
        state.troubles[address] = f"no connection to {address}: {trouble}"
        if board.board.hosts.get(host, {}).get("status") == "online":
            # What a broker would say of a host that it does not hear from any more.
            gone = {"host": host, "role": role, "status": "offline", "reason": "lost"}
            board.apply(Topics().presence(host), encode(gone), retained=True)
        board.touch()
        delay = next_delay(delay)
        await asyncio.sleep(delay)
