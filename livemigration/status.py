"""Errors of a migration as gRPC statuses: the one place that maps them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import grpc
import grpc.aio

from livemigration.errors import (
    Aborted,
    BadRequest,
    DamagedFrame,
    MigrationError,
    NoSpace,
    SourceLost,
    UnknownMigration,
    WrongState,
)
from mm_model import MmError

_STATUS: dict[type[Exception], grpc.StatusCode] = {
    BadRequest: grpc.StatusCode.INVALID_ARGUMENT,
    WrongState: grpc.StatusCode.FAILED_PRECONDITION,
    UnknownMigration: grpc.StatusCode.NOT_FOUND,
    DamagedFrame: grpc.StatusCode.DATA_LOSS,
    NoSpace: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Aborted: grpc.StatusCode.ABORTED,
    SourceLost: grpc.StatusCode.UNAVAILABLE,
}


def status_of(error: Exception) -> grpc.StatusCode:
    """The status for an error, or for the nearest of its base classes that has one; else
    INTERNAL.
    """
    for kind in type(error).__mro__:
        if kind in _STATUS:
            return _STATUS[kind]
    return grpc.StatusCode.INTERNAL


@asynccontextmanager
async def answering(context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
    """Turns the errors of a handler into a status with one line."""
    try:
        yield
    except MigrationError as error:
        await _end(context, status_of(error), str(error))
    except MmError as error:
        await _end(context, grpc.StatusCode.INTERNAL, f"memory model: {error.strerror}")
    except ValueError as error:
        await _end(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
    except MemoryError as error:
        text = f"this host has not enough memory: {error}; ask for less"
        await _end(context, grpc.StatusCode.RESOURCE_EXHAUSTED, text)


async def _end(
    context: grpc.aio.ServicerContext[Any, Any], code: grpc.StatusCode, text: str
) -> NoReturn:
    await context.abort(code, " ".join(text.split()))
    raise AssertionError("abort returned")
