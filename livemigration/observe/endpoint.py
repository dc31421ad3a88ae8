"""Where Prometheus fetches a node's metrics: ``http://HOST:PORT/metrics``, without a password."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server

from livemigration.service import CannotListen, check_free, split_address

_log = logging.getLogger(__name__)


@contextmanager
def metrics_endpoint(address: str, registry: CollectorRegistry) -> Iterator[None]:
    """Serves `registry` at ``HOST:PORT`` from a thread of its own; nothing for an empty address.

    Port 0 takes a free one, which the log tells. Raises `CannotListen` with one line.
    """
    if not address:
        yield
        return
    host, port = split_address(address)
    check_free(address)
    try:
        server, thread = start_http_server(port, host.strip("[]"), registry)
    except OSError as error:
        raise CannotListen(f"cannot serve metrics on {address}: {error.strerror}") from error
    _log.info("metrics on http://%s:%d/metrics", host, server.server_port)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
