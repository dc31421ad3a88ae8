"""Telemetry against a real Mosquitto, read by Mosquitto's own tools."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgpack
import pytest
import trustme

from livemigration.telemetry import Telemetry, connection, open_telemetry, publisher
from predump.runner import run_scenario
from predump.scenario import scenario_from_mapping
from predump.testing.broker import Broker, running_broker
from tests.e2e.mosquitto_fixture import gate_to, listening, run_tool

DOCS = Path(__file__).parents[2] / "docs" / "telemetry.md"
STATE = "predump/v1/m/source/state"
PRESENCE = "predump/v1/host/alpha/presence"

_FOREVER_S = 200.0
"""What waiting for the broker takes where a test is about not waiting: see `_make_waiting_last`."""

_NO_WAIT_S = 100.0
"""Less than that was no wait, however busy the machine is. (It is milliseconds on an idle one.)"""


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with running_broker(tmp_path) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_goes_wrong_unseen(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Telemetry and asyncio report what they did not expect as errors; there may be none."""
    yield
    errors = [r for r in caplog.get_records("call") if r.levelno >= logging.ERROR]
    assert [r.getMessage() for r in errors] == []


def _documented() -> dict[str, Mapping[str, object]]:
    """The examples of docs/telemetry.md: the last level of their topic, and the payload."""
    examples = re.findall(
        r"`predump/v1/\S+?/(\w+)`:\n\n```json\n(.*?)```", DOCS.read_text(), re.DOTALL
    )
    return {kind: json.loads(payload) for kind, payload in examples}


def _record(number: int) -> dict[str, object]:
    return {**_documented()["round"], "round": number}


def _of_telemetry(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name.startswith("livemigration.telemetry")]


# -- the normal way


async def test_payloads_are_those_of_the_documentation_at_qos_1(broker: Broker) -> None:
    examples = _documented()
    assert examples.keys() == {"state", "round", "event", "pages", "presence"}
    async with listening(broker) as listener:
        async with open_telemetry(broker.url, role="source", host_id="source-alpha") as telemetry:
            await listener.until(lambda: listener.on("presence") != [])
            telemetry.state("3f9c", state="round", owner="source")
            telemetry.round("3f9c", examples["round"])
            last = ("round", "pages_sent", "pages_soft_dirty", "bytes_wire")
            telemetry.state("3f9c", **{name: examples["round"][name] for name in last})
            telemetry.event("3f9c", "freeze", message=examples["event"]["message"])
            telemetry.pages("3f9c", examples["pages"])
        await listener.until(lambda: len(listener.on("presence")) == 2)

    for kind, example in examples.items():
        fields = listener.on(kind)[0 if kind == "presence" else -1]
        assert {name: type(value) for name, value in fields.items()} == {
            name: type(value) for name, value in example.items()
        }
    assert listener.on("round") == [examples["round"]]
    assert listener.on("pages") == [examples["pages"]]
    assert [presence["status"] for presence in listener.on("presence")] == ["online", "offline"]
    assert {h.qos for h in listener.heard if h.topic.startswith("predump")} == {1}


async def test_what_the_documentation_pipes_messages_through_decodes_them(broker: Broker) -> None:
    commands = re.findall(r"```sh\n(mosquitto_sub.*?)```", DOCS.read_text(), re.DOTALL)
    command = next(text for text in commands if "msgpack" in text)
    command = command.replace("-h localhost", f"-h 127.0.0.1 -p {broker.port} -C 2 -W 10")
    async with open_telemetry(broker.url, role="source", host_id="alpha") as telemetry:
        telemetry.state("m", state="round")
        shell = await asyncio.create_subprocess_shell(
            command.replace("python3", sys.executable), stdout=asyncio.subprocess.PIPE
        )
        output, _ = await shell.communicate()
    lines = sorted(output.decode().splitlines())
    assert lines[0].startswith(PRESENCE + " {'host': 'alpha'")
    assert lines[1].startswith(STATE + " {")
    assert "'state': 'round'" in lines[1]


async def test_a_late_subscriber_gets_the_last_state_and_the_presence(broker: Broker) -> None:
    async with open_telemetry(broker.url, role="source", host_id="alpha") as telemetry:
        telemetry.state("m", state="round", owner="source", round=0)
        telemetry.round("m", {"round": 0, "pages_sent": 100, "bytes_wire": 1000})
        telemetry.round("m", {"round": 1, "pages_sent": 20, "bytes_wire": 200})
        telemetry.state("m", state="commit", round=1)
        async with listening(broker) as listener:
            await listener.until(lambda: listener.on("state")[-1:] != [])
            state = await _retained_when(broker, STATE, "state", "commit")
    assert state["owner"] == "source"
    assert (state["round"], state["total_pages_sent"], state["total_bytes_wire"]) == (1, 120, 1200)
    retained = await asyncio.to_thread(broker.retained)
    assert retained.keys() == {STATE, PRESENCE}
    assert (retained[PRESENCE]["status"], retained[PRESENCE]["reason"]) == ("offline", "closed")


async def test_rounds_and_events_come_in_order_and_before_the_end(broker: Broker) -> None:
    async with listening(broker) as listener:
        async with open_telemetry(broker.url, role="source", host_id="alpha") as telemetry:
            for number in range(50):
                telemetry.state("m", state="round", round=number)
                telemetry.round("m", _record(number))
                telemetry.event("m", "round-done")
            telemetry.state("m", state="done")
        await listener.until(lambda: listener.last("presence").get("status") == "offline")
    assert [record["round"] for record in listener.on("round")] == list(range(50))
    assert [event["seq"] for event in listener.on("event")] == list(range(1, 51))
    assert [h.topic.rsplit("/", 1)[1] for h in listener.heard][-2:] == ["state", "presence"]
    assert listener.on("state")[-1]["state"] == "done"


async def test_a_prefix_keeps_groups_apart(broker: Broker) -> None:
    async with open_telemetry(f"{broker.url}/lab/7", role="dest", host_id="beta") as telemetry:
        telemetry.state("m/1", state="prepared")
    retained = await asyncio.to_thread(broker.retained)
    assert retained.keys() == {
        "lab/7/predump/v1/m%2F1/dest/state",
        "lab/7/predump/v1/host/beta/presence",
    }
    assert retained["lab/7/predump/v1/m%2F1/dest/state"]["migration_id"] == "m/1"


# -- hosts that die

_PUBLISHER = """
import asyncio, sys
from livemigration.telemetry import open_telemetry
async def main():
    async with open_telemetry(sys.argv[1], role="source", host_id="alpha") as telemetry:
        telemetry.state("m", state="round", owner="source")
        await asyncio.sleep(60)
asyncio.run(main())
"""


async def test_the_broker_tells_that_a_killed_host_is_lost(broker: Broker) -> None:
    async with listening(broker) as listener:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", _PUBLISHER, broker.url)
        try:
            await listener.until(lambda: listener.on("state") != [])
            process.kill()
            await process.wait()
            await listener.until(lambda: len(listener.on("presence")) == 2)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    retained = await asyncio.to_thread(broker.retained)
    assert (retained[PRESENCE]["status"], retained[PRESENCE]["reason"]) == ("offline", "lost")
    assert (retained[STATE]["state"], retained[STATE]["host"]) == ("round", "alpha")


async def test_a_source_lost_while_its_pages_are_missing_is_told_by_both_ends(
    broker: Broker,
) -> None:
    """Post-copy: the destination says that its source is lost, the broker that the host is."""
    lost = scenario_from_mapping(
        {
            "schema": "predump.scenario/1",
            "clock": "wall",
            "memory": "8MiB",
            "workload": {"kind": "uniform", "rate": "20000 pages/s", "write_size": 64},
            "policy": {"kind": "post-copy", "lost_after": "2s"},
            "migration": {"run_after": "50ms"},
        }
    )
    async with listening(broker) as listener:
        result = await run_scenario(lost, mqtt=broker.url, drill="kill@serving")
        await listener.until(
            lambda: any(p.get("reason") == "lost" for p in listener.on("presence"))
        )
        await listener.until(lambda: any(e["kind"] == "source-lost" for e in listener.on("event")))
    assert result.exit_code == 1
    assert result.post_copy is not None
    told = [event for event in listener.on("event") if event["role"] == "dest"]
    assert [event["kind"] for event in told].count("source-lost") == 1
    (said,) = [event["message"] for event in told if event["kind"] == "source-lost"]
    assert result.post_copy.halted is not None
    assert said in result.post_copy.halted
    gone = {p["role"] for p in listener.on("presence") if p.get("reason") == "lost"}
    assert gone == {"source"}
    # The retained state of each is the last that it knew: the source's is no end.
    retained = await asyncio.to_thread(broker.retained)
    states = {
        payload["role"]: payload["state"]
        for topic, payload in retained.items()
        if topic.endswith("/state")
    }
    assert states["source"] == "serve"
    assert states["dest"] in ("source-lost", "ended")


async def test_a_host_that_lives_takes_back_that_it_was_lost(broker: Broker) -> None:
    """The last will of a connection that died with the network may come much later."""
    async with (
        listening(broker) as listener,
        open_telemetry(broker.url, role="source", host_id="alpha"),
    ):
        await listener.until(lambda: listener.on("presence") != [])
        will = msgpack.packb({"host": "alpha", "status": "offline", "reason": "lost"})
        await run_tool("mosquitto_pub", broker, "-t", PRESENCE, "-q", "1", "-r", "-s", stdin=will)
        await listener.until(lambda: len(listener.on("presence")) == 3)
        assert [p["status"] for p in listener.on("presence")] == ["online", "offline", "online"]


# -- brokers that are not there


async def test_without_its_broker_a_host_loses_no_time_and_says_so_once(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _make_waiting_last(monkeypatch)
    monkeypatch.setattr(publisher, "FLUSH_S", _FOREVER_S)
    broker.stop()
    started = time.perf_counter()
    async with open_telemetry(broker.url, role="source", host_id="alpha") as telemetry:
        opened = time.perf_counter() - started
        slowest = await _longest_call(telemetry, calls=3000)
        await asyncio.sleep(1.0)  # several attempts
        closing = time.perf_counter()
    assert opened < _NO_WAIT_S
    assert slowest < _NO_WAIT_S
    assert time.perf_counter() - closing < _NO_WAIT_S
    messages = _of_telemetry(caplog)
    assert len(messages) == 1
    where = f"127.0.0.1:{broker.port} (Connection refused)"
    assert messages[0] == f"telemetry cannot reach the broker at {where}; trying again"


async def test_a_broker_that_comes_late_gets_it_all(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    broker.stop()
    async with gate_to(broker) as gate:
        gate.shut()
        async with open_telemetry(gate.url, role="source", host_id="alpha") as telemetry:
            telemetry.state("m", state="round", round=0)
            for number in range(3):
                telemetry.round("m", _record(number))
            await _logged(caplog, "cannot reach the broker")
            broker.start()
            async with listening(broker) as listener:
                gate.open = True
                await listener.until(lambda: len(listener.on("round")) == 3)
                await listener.until(lambda: listener.on("state") != [])
    assert [record["round"] for record in listener.on("round")] == [0, 1, 2]
    assert listener.on("state")[-1]["dropped"] == 0


async def test_a_host_name_that_does_not_exist_is_only_a_broker_that_is_not_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_telemetry("mqtt://no..host", role="source", host_id="alpha") as telemetry:
        telemetry.state("m", state="round")
        await _logged(caplog, "cannot reach the broker at no..host:1883")


async def test_a_port_where_nothing_answers_delays_the_end_by_no_more_than_the_flush(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _make_waiting_last(monkeypatch)
    monkeypatch.setattr(publisher, "FLUSH_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"mqtt://127.0.0.1:{silent.getsockname()[1]}"
        async with open_telemetry(url, role="source", host_id="alpha") as telemetry:
            telemetry.state("m", state="round")
            await asyncio.sleep(0.2)
            closing = time.perf_counter()
        assert time.perf_counter() - closing < _NO_WAIT_S


async def test_too_many_messages_for_an_absent_broker_are_dropped_and_counted(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    async with gate_to(broker) as gate:
        gate.shut()
        async with open_telemetry(gate.url, role="source", host_id="alpha") as telemetry:
            telemetry.state("m", state="round")
            for number in range(1034):
                telemetry.round("m", {"round": number})
            await _logged(caplog, "cannot reach the broker")
            async with listening(broker) as listener:
                gate.open = True
                await listener.until(lambda: len(listener.on("round")) == 1024)
                state = await _retained_when(broker, STATE, "dropped", 10)
    assert [record["round"] for record in listener.on("round")] == list(range(10, 1034))
    assert state["state"] == "round"


# -- brokers that are lost


@pytest.mark.parametrize("persistence", [False, True])
async def test_a_broker_killed_and_restarted_in_the_middle_ends_with_the_right_state(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, persistence: bool
) -> None:
    config = "autosave_on_changes true\nautosave_interval 1" if persistence else ""
    with running_broker(tmp_path, persistence=persistence, config=config) as broker:
        async with (
            gate_to(broker) as gate,
            open_telemetry(gate.url, role="source", host_id="alpha") as telemetry,
        ):
            async with listening(broker) as before:
                telemetry.state("still", state="compare", owner="destination")
                telemetry.state("m", state="round", owner="source", round=0)
                telemetry.round("m", _record(0))
                await before.until(lambda: before.on("round") != [] and len(before.on("state")) > 1)
            broker.kill()
            gate.shut()
            for number in range(1, 6):
                telemetry.round("m", _record(number))
                telemetry.state("m", state="round", round=number)
            await _logged(caplog, "lost the broker")
            telemetry.state("m", state="commit", owner="destination")
            broker.start()
            async with listening(broker) as after:
                gate.open = True
                await after.until(lambda: len(after.on("round")) >= 5)
                telemetry.round("m", _record(6))
                telemetry.state("m", state="done")
                await after.until(lambda: after.last("state").get("state") == "done")
                await after.until(lambda: after.on("presence") != [])
            retained = await asyncio.to_thread(broker.retained)
            assert retained[PRESENCE]["status"] == "online"
            assert retained["predump/v1/still/source/state"]["state"] == "compare"
            assert retained[STATE]["state"] == "done"
            assert retained[STATE]["owner"] == "destination"
            assert retained[STATE]["total_pages_sent"] == 7 * int(str(_record(0)["pages_sent"]))
    # At least once: what was not confirmed when the broker died may come again, never out of order.
    rounds = [int(str(record["round"])) for record in after.on("round")]
    assert rounds == sorted(rounds)
    assert set(rounds) | {0} == set(range(7))
    said = [re.sub(r" at \S+| \(.*\)", "", message) for message in _of_telemetry(caplog)]
    assert said == [
        "telemetry lost the broker; trying again",
        "telemetry has reached the broker again",
    ]


async def test_a_connection_that_breaks_while_something_is_sent_leaves_nothing_behind(
    broker: Broker,
) -> None:
    """The event loop must not go on watching a socket that is closed already."""
    async with open_telemetry(broker.url, role="source", host_id="alpha") as telemetry:
        for number in range(3):
            telemetry.state("m", state="round", round=number)
            await _retained_when(broker, STATE, "round", number)
            broker.kill()  # the loop sees the end and the next state at the same time
            telemetry.state("m", state="broken")
            await asyncio.sleep(0.05)
            broker.start()
        telemetry.state("m", state="done")
        await _retained_when(broker, STATE, "state", "done")


async def test_a_broker_that_hangs_holds_up_nothing_and_is_told_the_last_state_later(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connection, "CALL_TIMEOUT_S", 1.0)
    async with open_telemetry(broker.url, role="source", host_id="alpha") as telemetry:
        telemetry.state("m", state="round")
        await _retained_when(broker, STATE, "state", "round")
        os.kill(broker.pid, signal.SIGSTOP)
        try:
            assert await _longest_call(telemetry, calls=1000) < 0.5
            telemetry.state("m", state="done")
            await _logged(caplog, "lost the broker")
        finally:
            os.kill(broker.pid, signal.SIGCONT)
        await _retained_when(broker, STATE, "state", "done")


async def test_a_broker_that_hangs_delays_the_end_by_no_more_than_the_flush(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _make_waiting_last(monkeypatch)
    monkeypatch.setattr(publisher, "FLUSH_S", 0.5)
    async with open_telemetry(broker.url, role="source", host_id="alpha") as telemetry:
        telemetry.state("m", state="round")
        await _retained_when(broker, STATE, "state", "round")
        os.kill(broker.pid, signal.SIGSTOP)
        telemetry.state("m", state="done")
        closing = time.perf_counter()
    assert time.perf_counter() - closing < _NO_WAIT_S
    os.kill(broker.pid, signal.SIGCONT)
    assert "did not take in time" in _of_telemetry(caplog)[-1]


# -- brokers that ask who is there


# The MQTT library leaves the socket of a failed handshake to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_tls_and_a_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    passwords = tmp_path / "passwords"
    await run_tool("mosquitto_passwd", None, "-b", "-c", str(passwords), "ann", "p@ss/")
    passwords.chmod(0o644)
    config = [
        "allow_anonymous false",
        f"password_file {passwords}",
        f"certfile {tmp_path}/cert.pem",
        f"keyfile {tmp_path}/key.pem",
    ]
    with running_broker(tmp_path, config="\n".join(config)) as broker:
        host = f"127.0.0.1:{broker.port}"
        async with open_telemetry(f"mqtts://ann:p%40ss%2F@{host}", role="source", host_id="a"):
            await _logged(caplog, "certificate verify failed")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        async with open_telemetry(f"mqtts://ann:wrong@{host}", role="source", host_id="a"):
            await _logged(caplog, "Not authorized")
        async with open_telemetry(
            f"mqtts://ann:p%40ss%2F@{host}", role="source", host_id="a"
        ) as telemetry:
            telemetry.state("m", state="round")
        output = await run_tool(
            "mosquitto_sub", broker, "-u", "ann", "-P", "p@ss/", "--cafile", f"{tmp_path}/ca.pem",
            "-t", STATE, "-C", "1", "-W", "10", "-F", "%x",
        )  # fmt: skip
        assert msgpack.unpackb(bytes.fromhex(output.decode()))["state"] == "round"
    assert "p@ss" not in caplog.text


# -- small things


def _make_waiting_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for the broker now waits so long that no busy machine is mistaken for it."""
    for name in ("CONNECT_TIMEOUT_S", "CALL_TIMEOUT_S"):
        monkeypatch.setattr(connection, name, _FOREVER_S)


async def _longest_call(telemetry: Telemetry, calls: int) -> float:
    """Seconds that the slowest call kept the event loop, or that the loop was kept meanwhile."""
    slowest = 0.0
    for number in range(calls):
        began = time.perf_counter()
        telemetry.state("m", state="round", round=number)
        telemetry.round("m", {"round": number})
        telemetry.event("m", "tick")
        if number % 100 == 0:
            await asyncio.sleep(0)
        slowest = max(slowest, time.perf_counter() - began)
    return slowest


async def _logged(caplog: pytest.LogCaptureFixture, text: str, timeout_s: float = 120.0) -> None:
    async with asyncio.timeout(timeout_s):
        while text not in caplog.text:
            await asyncio.sleep(0.02)


async def _retained_when(
    broker: Broker, topic: str, field: str, value: object, timeout_s: float = 120.0
) -> dict[str, object]:
    """The retained payload of `topic` once its `field` has `value`."""
    deadline = time.monotonic() + timeout_s
    while True:
        output = await run_tool(
            "mosquitto_sub", broker, "-t", topic, "-C", "1", "-W", "1", "-F", "%x"
        )
        fields: dict[str, object] = (
            msgpack.unpackb(bytes.fromhex(output.decode())) if output else {}
        )
        if fields.get(field) == value:
            return fields
        assert time.monotonic() < deadline, f"{topic} is {fields}"
