"""Who may ask the dashboard, and for what."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from predump.dashboard.control import ControlError, checked_settings, policy_kinds
from predump.dashboard.guard import TOKEN_HEADER, Guard, is_loopback

GUARD = Guard(("lab.example",), token="a-token")


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("127.0.0.1:7080", True),
        ("localhost:7080", True),
        ("localhost", True),
        ("[::1]:7080", True),
        ("192.0.2.7:80", True),  # an address cannot be pointed here by somebody else
        ("lab.example:7080", True),
        ("LAB.example", True),
        ("evil.example:7080", False),
        ("127.0.0.1.evil.example:7080", False),
        ("localhost.evil.example", False),
        ("", False),
    ],
)
def test_only_names_that_nobody_else_can_point_here_are_answered(host: str, known: bool) -> None:
    assert GUARD.knows(host) is known


@pytest.mark.parametrize(
    ("headers", "may"),
    [
        ({TOKEN_HEADER: "a-token"}, True),
        ({TOKEN_HEADER: "a-token", "origin": "http://127.0.0.1:7080"}, True),
        ({TOKEN_HEADER: "a-token", "origin": "https://127.0.0.1:7080"}, True),
        ({TOKEN_HEADER: "a-token", "origin": "http://evil.example"}, False),
        ({TOKEN_HEADER: "a-token", "origin": "http://127.0.0.1:9999"}, False),
        ({TOKEN_HEADER: "a-token", "origin": "null"}, False),
        ({TOKEN_HEADER: "another"}, False),
        ({TOKEN_HEADER: "schlüssel"}, False),
        ({}, False),
    ],
)
def test_only_our_own_page_may_act(headers: dict[str, str], may: bool) -> None:
    raw = [(k.encode(), v.encode()) for k, v in {**headers, "host": "127.0.0.1:7080"}.items()]
    assert GUARD.may_act(Headers(raw=raw)) is may


@pytest.mark.parametrize(
    ("site", "may"),
    [
        (None, True),
        ("none", True),
        ("same-origin", True),
        ("same-site", False),
        ("cross-site", False),
    ],
)
def test_pages_of_others_cannot_hold_streams_open(site: str | None, may: bool) -> None:
    headers = Headers({} if site is None else {"sec-fetch-site": site})
    assert GUARD.may_read(headers) is may


def test_tokens_are_long_and_never_the_same() -> None:
    tokens = {Guard().token for _ in range(100)}
    assert len(tokens) == 100 and all(len(token) >= 32 for token in tokens)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False), ("::", False), ("192.0.2.1", False), ("lab.example", False),
    ],
)  # fmt: skip
def test_only_loopback_is_taken_for_this_machine_alone(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("source.images=/etc", "source.images is chosen in a scenario file"),
        ('source={images="/etc"}', "source is chosen in a scenario file"),
        ("workload.file=/etc/passwd", "workload.file is chosen in a scenario file"),
        ('workload={kind="trace", file="x"}', "workload is chosen in a scenario file"),
        ("costs.machine=/tmp/mine.toml", "costs.machine is chosen in a scenario file"),
        ("telemetry.mqtt=mqtt://evil", "telemetry.mqtt is chosen in a scenario file"),
        ("policy.kind=os:system", "'os:system' is none of"),
        ('policy={kind="os:system"}', "is none of"),
        ("no equals sign", "not KEY=VALUE"),
    ],
)
def test_files_of_this_machine_and_code_are_not_chosen_from_the_page(
    setting: str, why: str
) -> None:
    with pytest.raises(ControlError, match=why) as refused:
        checked_settings([setting])
    assert "\n" not in str(refused.value) and "--set" not in str(refused.value)


def test_what_describes_a_migration_can_be_chosen() -> None:
    keys = ["memory", "workload.rate", "policy.kind", "hunks.off"]
    values = ["1GiB", "5 pages/s", "hybrid", "pte_modify"]
    settings = [f"{key}={value}" for key, value in zip(keys, values, strict=True)]
    assert [o.key for o in checked_settings(settings)] == keys
    with pytest.raises(ControlError, match="more than 40 settings"):
        checked_settings(["seed=1"] * 41)
    assert {"fixed", "post-copy", "auto-converge"} <= set(policy_kinds())
