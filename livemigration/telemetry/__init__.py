"""Telemetry: what a host tells an MQTT broker about its migrations while they run.

A host calls `state`, `round` and `event` from its event loop. Nothing of it can block, delay or
fail a migration: the calls only put things into an outbox in memory, a background task publishes
them with QoS 1 and connects again whenever the broker was lost. Topics and payloads:
docs/telemetry.md.

* address - the URL of a broker
* messages - topics, payloads and their encoding
* outbox - what waits for the broker, in which order, and what is dropped
* connection - one connection to the broker
* publisher - the background task
* watched, service - the same for readers over gRPC, without a broker
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Protocol

from livemigration.telemetry.address import BrokerAddress, parse_broker_url

__all__ = ["BrokerAddress", "Telemetry", "open_telemetry", "parse_broker_url"]


class Telemetry(Protocol):
    """What a host says about its migrations. No method blocks, waits or raises."""

    def state(self, migration_id: str, **fields: object) -> None:
        """Update the retained state: `fields` replace those of the same name, the others stay."""

    def round(self, migration_id: str, record: Mapping[str, object]) -> None:
        """Publish the record of a finished round, as it is."""

    def event(self, migration_id: str, kind: str, **fields: object) -> None:
        """Publish that something happened."""

    def pages(self, migration_id: str, record: Mapping[str, object]) -> None:
        """Replace what is said of where the pages are of the round under way."""

    @property
    def wants_pages(self) -> bool:
        """Whether anybody may read `pages`, which take time to count."""


class _Silent:
    """Telemetry of a host without a broker."""

    def state(self, migration_id: str, **fields: object) -> None: ...

    def round(self, migration_id: str, record: Mapping[str, object]) -> None: ...

    def event(self, migration_id: str, kind: str, **fields: object) -> None: ...

    def pages(self, migration_id: str, record: Mapping[str, object]) -> None: ...

    @property
    def wants_pages(self) -> bool:
        return False


def open_telemetry(url: str, *, role: str, host_id: str) -> AbstractAsyncContextManager[Telemetry]:
    """Telemetry of one host for as long as the context lasts.

    url: ``mqtt://[user:password@]host[:port][/prefix]``, mqtts:// for TLS, or ``""`` for none.
    role: what this host is in its migrations, ``"source"`` or ``"dest"``; a level of its topics.
    host_id: names this process among all that use the broker; the presence topic bears it.

    Entering returns at once, with or without a broker. Leaving publishes what still waits, for at
    most three seconds. Raises ValueError, one line, for a URL that is none.
    """
    if not url:
        return nullcontext(_Silent())
    address = parse_broker_url(url)
    # Imported here: a host without a broker does not need the MQTT client.
    from livemigration.telemetry.publisher import publishing

    return publishing(address, role=role, host_id=host_id)
