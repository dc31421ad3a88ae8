"""The background task that brings a host's outbox to the broker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiomqtt

from livemigration.telemetry.address import BrokerAddress
from livemigration.telemetry.connection import BrokerLostError, connected, next_delay
from livemigration.telemetry.messages import (
    ENDED_STATES,
    TOTALS,
    Topics,
    added,
    decode,
    encode,
    full_state,
)
from livemigration.telemetry.outbox import Outbox

FLUSH_S = 3.0
"""How long leaving may take, whatever the broker does."""
_LAST_ATTEMPTS = 2
"""How often a lost broker is still tried while leaving."""
_STEADY_S = 10.0
"""A connection that lasted this long lets the delays begin anew."""

_log = logging.getLogger("livemigration.telemetry")


@asynccontextmanager
async def publishing(
    address: BrokerAddress, *, role: str, host_id: str
) -> AsyncIterator[MqttTelemetry]:
    """Telemetry to the broker at `address`; see `livemigration.telemetry.open_telemetry`."""
    telemetry = MqttTelemetry(address, role=role, host_id=host_id)
    task = asyncio.create_task(telemetry.run(), name=f"telemetry to {address}")
    try:
        yield telemetry
    finally:
        telemetry.close()
        _, late = await asyncio.wait({task}, timeout=FLUSH_S)
        if late:
            task.cancel()
            # The farewell of a cancelled connection may hang as well: not waited for long.
            await asyncio.wait({task}, timeout=FLUSH_S / 10)
        telemetry.report_unsent()


class MqttTelemetry:
    """`livemigration.telemetry.Telemetry` to a broker. To be used from one event loop."""

    def __init__(self, address: BrokerAddress, *, role: str, host_id: str) -> None:
        self._address = address
        self._topics = Topics(address.prefix)
        self._host: dict[str, object] = {"host": host_id, "role": role}
        self._role = role
        self._presence_topic = self._topics.presence(host_id)
        # The same name after a loss: the broker then ends the old session, and publishes its last
        # will, before it answers the new one.
        self._identifier = f"predump-{role[:6]}-{secrets.token_hex(4)}"
        self._started = time.time()
        self._outbox = Outbox()
        self._events = 0
        self._wake = asyncio.Event()
        self._closing = asyncio.Event()
        self._reached = False
        self._reported_lost = False

    def state(self, migration_id: str, **fields: object) -> None:
        topic = self._topics.of("state", migration_id, self._role)
        self._put_state(topic, migration_id, self._outbox.fields(topic), fields)

    def round(self, migration_id: str, record: Mapping[str, object]) -> None:
        topic = self._topics.of("round", migration_id, self._role)
        self._message(migration_id, topic, record)
        # Who comes late has not heard the rounds: the state adds them up.
        topic = self._topics.of("state", migration_id, self._role)
        state = self._outbox.fields(topic)
        if state:
            totals = {total: added(state.get(total), record.get(of)) for total, of in TOTALS}
            self._put_state(topic, migration_id, state, totals)

    def event(self, migration_id: str, kind: str, **fields: object) -> None:
        self._events += 1
        head = {"migration_id": migration_id, "kind": kind, "time": time.time()}
        topic = self._topics.of("event", migration_id, self._role)
        self._message(migration_id, topic, {**fields, **self._host, **head, "seq": self._events})

    @property
    def wants_pages(self) -> bool:
        # Whether anybody reads them, only the broker knows.
        return True

    def pages(self, migration_id: str, record: Mapping[str, object]) -> None:
        topic = self._topics.of("pages", migration_id, self._role)
        # To be forgotten first: what it says is of interest while the migration goes on.
        self._outbox.put_state(topic, record, ended=True, now=time.monotonic())
        self._wake.set()

    def close(self) -> None:
        """Let `run` end as soon as everything is published, or the broker proves to be away."""
        self._closing.set()
        self._announce("offline", reason="closed")

    async def run(self) -> None:
        """Publish until closed, over as many connections as it takes."""
        delay, last_attempts = 0.0, _LAST_ATTEMPTS
        while True:
            began = time.monotonic()
            try:
                await self._serve()
                return
            except BrokerLostError as lost:
                self._report_lost(str(lost))
            except Exception as error:  # noqa: BLE001 - nothing of telemetry may reach the migration
                _log.debug("telemetry failed", exc_info=True)
                self._report_lost(repr(error))
            delay = next_delay(0.0 if time.monotonic() - began > _STEADY_S else delay)
            await self._pause(delay)
            if self._closing.is_set():
                if not self._reached or not last_attempts:
                    return
                last_attempts -= 1

    def report_unsent(self) -> None:
        """Say so if something is left that a connected broker did not take in time."""
        if len(self._outbox) and not self._reported_lost:
            _log.warning(
                "telemetry ends with %d publications that the broker at %s did not take in time",
                len(self._outbox),
                self._address,
            )

    async def _serve(self) -> None:
        """One connection, until everything is published and we are closing."""
        will = aiomqtt.Will(
            self._presence_topic, encode(self._presence("offline", reason="lost")), 1, retain=True
        )
        async with connected(self._address, identifier=self._identifier, will=will) as client:
            self._report_connected()
            self._outbox.connected(time.monotonic())
            if not self._closing.is_set():
                self._announce("online", first=True)
            listener = asyncio.create_task(self._listen(client))
            sender = asyncio.create_task(self._send(client))
            try:
                await asyncio.wait({listener, sender}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                sender.cancel()
                listener.cancel()
                ends = await asyncio.gather(sender, listener, return_exceptions=True)
            for end in ends:
                if isinstance(end, Exception):
                    raise end

    async def _send(self, client: aiomqtt.Client) -> None:
        await client.subscribe(self._presence_topic, qos=1)
        while True:
            self._wake.clear()
            item = self._outbox.next(time.monotonic())
            if item is not None:
                try:
                    await client.publish(item.topic, item.payload, qos=1, retain=item.retain)
                except ValueError as error:
                    # MQTT has no room for it (a payload above 256 MiB): no attempt will succeed.
                    _log.warning("telemetry cannot publish to %s: %s", item.topic, error)
                self._outbox.done(item)
            elif self._closing.is_set():
                return
            else:
                await self._wake.wait()

    async def _listen(self, client: aiomqtt.Client) -> None:
        """Notice a lost connection also while nothing is sent; then ends with MqttError.

        Hears the host's own presence: the last will of an earlier session, whose end the broker
        may notice only now, is not the truth while this one lives.
        """
        async for message in client.messages:
            try:
                status = decode(message.payload).get("status")
            except ValueError:
                status = None
            if status != "online" and not self._closing.is_set():
                self._announce("online", first=True)

    async def _pause(self, delay: float) -> None:
        if self._closing.is_set():
            await asyncio.sleep(delay)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._closing.wait()

    def _put_state(
        self,
        topic: str,
        migration_id: str,
        old: Mapping[str, object],
        fields: Mapping[str, object],
    ) -> None:
        new = full_state(old, fields, self._host, migration_id)
        self._outbox.put_state(
            topic,
            new,
            group=migration_id,
            ended=new.get("state") in ENDED_STATES,
            now=time.monotonic(),
        )
        self._wake.set()

    def _message(self, migration_id: str, topic: str, payload: Mapping[str, object]) -> None:
        self._outbox.put_message(topic, encode(payload), group=migration_id, now=time.monotonic())
        self._wake.set()

    def _presence(self, status: str, **fields: object) -> dict[str, object]:
        return {**self._host, "status": status, "started": self._started, **fields}

    def _announce(self, status: str, *, first: bool = False, **fields: object) -> None:
        presence = self._presence(status, **fields)
        self._outbox.put_state(self._presence_topic, presence, now=time.monotonic(), first=first)
        self._wake.set()

    def _report_lost(self, why: str) -> None:
        if not self._reported_lost:
            what = "lost the broker at" if self._reached else "cannot reach the broker at"
            _log.warning("telemetry %s %s (%s); trying again", what, self._address, why)
        self._reported_lost = True

    def _report_connected(self) -> None:
        if self._reported_lost:
            what = "again" if self._reached else "now"
            _log.warning("telemetry has reached the broker at %s %s", self._address, what)
        self._reached = True
        self._reported_lost = False
