"""Telemetry without a broker: addresses, topics, payloads and the order of the outbox."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemigration.telemetry import BrokerAddress, open_telemetry, parse_broker_url
from livemigration.telemetry.messages import Subject, Topics, decode, encode
from livemigration.telemetry.outbox import PATIENCE_S, Item, Outbox

# -- the URL


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("mqtt://broker", BrokerAddress("broker", 1883)),
        ("mqtt://broker:2883/", BrokerAddress("broker", 2883)),
        ("mqtts://broker", BrokerAddress("broker", 8883, tls=True)),
        ("mqtt://[::1]:1883", BrokerAddress("::1", 1883)),
        ("mqtt://10.0.0.7/lab/7/", BrokerAddress("10.0.0.7", 1883, prefix="lab/7")),
        (
            "mqtt://ann:p%40ss%2F@broker",
            BrokerAddress("broker", 1883, user="ann", password="p@ss/"),
        ),
    ],
)
def test_a_url_names_a_broker(url: str, address: BrokerAddress) -> None:
    assert parse_broker_url(url) == address


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("broker:1883", "mqtt://"),
        ("http://broker", "mqtt://"),
        ("mqtt://", "no host"),
        ("mqtt://:1883", "no host"),
        ("mqtt://broker:0", "1 to 65535"),
        ("mqtt://broker:70000", "Port out of range"),
        ("mqtt://broker:port", "mqtt://"),
        ("mqtt://[::1", "mqtt://"),
        ("mqtt://broker /x", "blank"),
        ("mqtt://broker\n", "blank"),
        ("mqtt://broker/a/+/b", "+ or #"),
        ("mqtt://broker/a#b", "%23"),
        ("mqtt://broker?x=1", "%3F"),
        ("mqtt://broker/$SYS", "$"),
        ("mqtt://:secret@broker", "no user"),
        ("mqtt://broker/" + "x" * 501, "longer"),
    ],
)
def test_a_bad_url_is_refused_in_one_line_before_anything_is_opened(url: str, hint: str) -> None:
    with pytest.raises(ValueError) as refusal:
        open_telemetry(url, role="source", host_id="a")
    assert hint in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "url", ["mqtt://ann:secret@broker:0", "mqtt://ann:secret@broker/#", "x://a:secret@b"]
)
def test_a_password_is_in_no_message(url: str) -> None:
    with pytest.raises(ValueError) as refusal:
        parse_broker_url(url)
    assert "secret" not in str(refusal.value)
    good = parse_broker_url("mqtt://ann:secret@broker")
    assert "secret" not in f"{good} {good!r}"


async def test_without_a_broker_telemetry_says_nothing() -> None:
    async with open_telemetry("", role="source", host_id="a") as telemetry:
        telemetry.state("m", state="round")
        telemetry.round("m", {"round": 0})
        telemetry.event("m", "frozen")


# -- topics and payloads


def test_topics_are_as_documented() -> None:
    topics = Topics()
    assert topics.of("state", "m-1", "source") == "predump/v1/m-1/source/state"
    assert topics.of("round", "m-1", "source") == "predump/v1/m-1/source/round"
    assert topics.of("event", "m-1", "dest") == "predump/v1/m-1/dest/event"
    assert topics.presence("h") == "predump/v1/host/h/presence"
    assert Topics("lab/7").presence("h") == "lab/7/predump/v1/host/h/presence"


@given(st.text(max_size=40), st.sampled_from(["source", "dest"]), st.sampled_from(["", "a", "a/b"]))
def test_any_migration_id_makes_one_topic_level_and_is_read_back(
    name: str, role: str, prefix: str
) -> None:
    topics = Topics(prefix)
    topic = topics.of("state", name, role)
    assert not set("+#\0") & set(topic)
    assert topics.subject(topic) == Subject("state", name, role)
    assert topics.subject(topics.presence(name)) == Subject("presence", name)


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "predump/v1",
        "predump/v1/m/source",
        "predump/v1/m/source/x",
        "predump/v2/m/source/state",
        "predump/v1/m/source/state/x",
        "predump/v1/m/source/presence",
    ],
)
def test_other_topics_are_about_nothing(topic: str) -> None:
    assert Topics().subject(topic) is None


class _Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_payloads_take_what_a_migration_has_at_hand() -> None:
    payload = {
        "pages": np.uint64(2**63),
        "share": np.float32(0.5),
        "ok": np.bool_(True),
        "off": {"b", "a"},
        "path": Path("/x"),
        "ids": (1, 2),
        "nothing": None,
    }
    assert decode(encode(payload)) == {
        "pages": 2**63,
        "share": 0.5,
        "ok": True,
        "off": ["a", "b"],
        "path": "/x",
        "ids": [1, 2],
        "nothing": None,
    }


@pytest.mark.parametrize("value", [2**64, "\udc80", _Unprintable(), {1: {2: 3}}, math.nan, object])
def test_encoding_never_fails(value: object) -> None:
    assert decode(encode({"round": 3, "odd": value})).keys() == {"round", "odd"}


def test_encoding_survives_a_payload_that_holds_itself() -> None:
    payload: dict[str, object] = {}
    payload["self"] = payload
    assert decode(encode(payload)).keys() == {"self"}


@given(st.binary(max_size=64))
def test_decoding_gives_a_map_or_a_value_error(payload: bytes) -> None:
    try:
        value = decode(payload)
    except ValueError as error:
        assert str(error).startswith("payload is not")
    else:
        assert isinstance(value, dict)


@pytest.mark.parametrize("payload", [msgpack.packb([1]), msgpack.packb({1: 2}), b"\x91" * 5000])
def test_decoding_refuses_what_is_no_map_of_names(payload: bytes) -> None:
    with pytest.raises(ValueError):
        decode(payload)


# -- the outbox


def _publish_all(outbox: Outbox, now: float = 0.0) -> list[Item]:
    items = []
    while (item := outbox.next(now)) is not None:
        outbox.done(item)
        items.append(item)
    return items


def _fields(item: Item) -> dict[str, object]:
    return decode(item.payload)


def test_a_state_replaces_the_one_that_waits_and_follows_what_came_before_it() -> None:
    outbox = Outbox()
    outbox.put_state("s", {"state": "round"}, group="m")
    outbox.put_message("r", encode({"round": 0}), group="m")
    outbox.put_state("s", {"state": "done"}, group="m")
    first, last = _publish_all(outbox)
    assert (first.topic, first.retain) == ("r", False)
    assert (last.topic, last.retain) == ("s", True)
    assert _fields(last) == {"state": "done", "dropped": 0}


def test_a_state_that_changes_while_it_is_published_is_published_again() -> None:
    outbox = Outbox()
    outbox.put_state("s", {"state": "round"})
    item = outbox.next(0.0)
    assert item is not None
    outbox.put_state("s", {"state": "done"})
    outbox.done(item)
    assert [_fields(item)["state"] for item in _publish_all(outbox)] == ["done"]


def test_a_state_does_not_wait_for_ever_behind_messages() -> None:
    outbox = Outbox()
    for number in range(10):
        outbox.put_message("r", encode({"round": number}))
    outbox.put_state("s", {"state": "round"}, now=0.0)
    assert outbox.next(PATIENCE_S / 2).topic == "r"  # type: ignore[union-attr]
    assert outbox.next(PATIENCE_S * 2).topic == "s"  # type: ignore[union-attr]


def test_a_new_connection_gets_every_state_and_the_last_one_after_its_rounds() -> None:
    outbox = Outbox()
    outbox.put_state("old", {"state": "round"})
    _publish_all(outbox)
    outbox.put_message("r", encode({"round": 0}))
    outbox.put_state("new", {"state": "done"})
    outbox.connected(now=100.0)
    assert [item.topic for item in _publish_all(outbox, now=100.0)] == ["old", "r", "new"]


def test_too_many_messages_push_out_the_oldest_and_the_state_says_how_many() -> None:
    outbox = Outbox(message_limit=3)
    outbox.put_state("s", {"state": "round"}, group="m")
    outbox.put_state("t", {"state": "round"}, group="other")
    for number in range(5):
        outbox.put_message("r", encode({"round": number}), group="m")
    items = _publish_all(outbox)
    assert [_fields(item)["round"] for item in items if item.topic == "r"] == [2, 3, 4]
    assert {item.topic: _fields(item)["dropped"] for item in items if item.retain} == {
        "s": 2,
        "t": 0,
    }


def test_only_states_of_ended_migrations_are_forgotten() -> None:
    outbox = Outbox(state_limit=10)
    for number in range(5):
        outbox.put_state(f"live{number}", {"state": "round"}, group=f"live{number}")
    for number in range(100):
        outbox.put_state(f"over{number}", {"state": "done"}, group=f"over{number}", ended=True)
    topics = {item.topic for item in _publish_all(outbox)}
    assert {f"live{number}" for number in range(5)} | {"over99"} <= topics
    assert len(topics) == 10


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("state"), st.sampled_from("ab"), st.integers(0, 99)),
        st.tuples(st.just("message"), st.sampled_from("ab"), st.just(0)),
        st.tuples(st.just("publish"), st.just(""), st.integers(0, 5)),
        st.tuples(st.just("lose"), st.just(""), st.just(0)),
    ),
    max_size=60,
)


@given(_STEPS, st.integers(1, 8))
def test_whatever_happens_states_converge_and_messages_keep_their_order(
    steps: list[tuple[str, str, int]], limit: int
) -> None:
    """A broker that forgets everything at each loss and hears again what it had not confirmed."""
    outbox = Outbox(message_limit=limit)
    latest: dict[str, int] = {}
    sent: Counter[str] = Counter()
    retained: dict[str, dict[str, object]] = {}
    heard: dict[str, list[int]] = {"a": [], "b": []}

    def publish(item: Item) -> None:
        if item.retain:
            retained[item.topic] = decode(item.payload)
        else:
            heard[item.topic].append(int(str(decode(item.payload)["n"])))
        outbox.done(item)

    for step, group, value in steps:
        if step == "state":
            latest["s" + group] = value
            outbox.put_state("s" + group, {"value": value}, group=group)
        elif step == "message":
            outbox.put_message(group, encode({"n": sent[group]}), group=group)
            sent[group] += 1
        elif step == "publish":
            for _ in range(value):
                item = outbox.next(0.0)
                if item is not None:
                    publish(item)
        else:
            retained.clear()
            outbox.connected(0.0)
    while (item := outbox.next(0.0)) is not None:
        publish(item)

    assert {topic: fields["value"] for topic, fields in retained.items()} == latest
    for group, numbers in heard.items():
        assert numbers == sorted(set(numbers))
        assert len(numbers) + outbox.dropped[group] == sent[group]
        if "s" + group in retained:
            assert retained["s" + group]["dropped"] == outbox.dropped[group]
