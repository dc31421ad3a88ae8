"""Errors as gRPC statuses, and what a caller sees of them."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from livemigration.channel import open_channel
from livemigration.criu.errors import ImageError
from livemigration.errors import (
    Aborted,
    BadRequest,
    DamagedFrame,
    MigrationError,
    NoSpace,
    UnknownMigration,
    WrongState,
)
from livemigration.status import answering, status_of
from mm_model import MmError

Code = grpc.StatusCode

STATUSES = [
    (BadRequest("x"), Code.INVALID_ARGUMENT),
    (WrongState("x"), Code.FAILED_PRECONDITION),
    (UnknownMigration("x"), Code.NOT_FOUND),
    (DamagedFrame("x"), Code.DATA_LOSS),
    (NoSpace("x"), Code.RESOURCE_EXHAUSTED),
    (Aborted("x"), Code.ABORTED),
    (ImageError(Path("x"), "bad", "make it anew"), Code.INVALID_ARGUMENT),  # a kind of BadRequest
    (MigrationError("x"), Code.INTERNAL),
]


@pytest.mark.parametrize(("error", "status"), STATUSES, ids=lambda value: type(value).__name__)
def test_every_error_has_the_status_of_its_kind(error: Exception, status: grpc.StatusCode) -> None:
    assert status_of(error) is status


async def _answer(error: Exception) -> tuple[grpc.StatusCode, str | None]:
    """What a caller gets from a handler that raises."""

    async def fail(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        async with answering(context):
            raise error

    server = grpc.aio.server()
    handlers: dict[str, Any] = {"Do": grpc.unary_unary_rpc_method_handler(fail)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Fail", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with open_channel(f"127.0.0.1:{port}") as channel:
            call: Any = channel.unary_unary("/test.Fail/Do")
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await call(b"", timeout=20)
    finally:
        await server.stop(None)
    return failed.value.code(), failed.value.details()


@pytest.mark.parametrize(
    ("make", "status", "line"),
    [
        (
            lambda: MemoryError("Unable to allocate 32.0 GiB"),
            Code.RESOURCE_EXHAUSTED,
            "this host has not enough memory: Unable to allocate 32.0 GiB; ask for less",
        ),
        (lambda: WrongState("not now"), Code.FAILED_PRECONDITION, "not now"),
        (lambda: BadRequest("bad\n  dump"), Code.INVALID_ARGUMENT, "bad dump"),
        (lambda: ValueError("key: bad\nvalue"), Code.INVALID_ARGUMENT, "key: bad value"),
        (lambda: MmError(errno.ENOMEM, "no frames"), Code.INTERNAL, "memory model: no frames"),
    ],
)
async def test_a_caller_gets_the_status_and_one_line(
    make: Callable[[], Exception], status: grpc.StatusCode, line: str
) -> None:
    assert await _answer(make()) == (status, line)
