"""What a failed call says: one line that names the cause and not the library."""

from __future__ import annotations

import socket
from typing import Any

import grpc
import grpc.aio
import pytest

from livemigration.channel import MAX_MESSAGE, SERVER_OPTIONS, open_channel, why

Code = grpc.StatusCode


def _error(code: grpc.StatusCode, details: str | None) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


@pytest.mark.parametrize(
    ("code", "details", "line"),
    [
        (Code.INVALID_ARGUMENT, "memory: too small", "memory: too small"),
        (Code.FAILED_PRECONDITION, "  first\nsecond", "first"),
        (Code.UNAVAILABLE, "connection refused", "not reachable (connection refused)"),
        (Code.UNAVAILABLE, "", "not reachable"),
        (Code.UNAVAILABLE, None, "not reachable"),
        (Code.DEADLINE_EXCEEDED, "", "deadline exceeded"),
        (Code.UNKNOWN, None, "unknown"),
        (
            Code.UNIMPLEMENTED,
            "Method not found!",
            "no such Predump node is there (Method not found!); is this the right address?",
        ),
    ],
)
def test_why_is_one_line(code: grpc.StatusCode, details: str | None, line: str) -> None:
    assert why(_error(code, details)) == line


async def _echo(size: int) -> int:
    """The length of an answer of `size` bytes through a real port with the nodes' options."""

    async def answer(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return request

    server = grpc.aio.server(options=SERVER_OPTIONS)
    handlers: dict[str, Any] = {"Say": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with open_channel(f"127.0.0.1:{port}") as channel:
            say: Any = channel.unary_unary("/test.Echo/Say")
            return len(await say(bytes(size), timeout=20))
    finally:
        await server.stop(None)


async def test_a_large_address_space_passes_both_ways() -> None:
    assert await _echo(24 << 20) == 24 << 20


async def test_a_message_above_the_limit_is_an_error_that_says_so() -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await _echo(MAX_MESSAGE + 1)
    assert failed.value.code() is Code.RESOURCE_EXHAUSTED
    assert "larger than max" in why(failed.value)


async def test_nobody_there_is_not_reachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with open_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.unary_unary("/test.Echo/Say")
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call(b"", timeout=10)
    assert why(failed.value).startswith("not reachable (")
