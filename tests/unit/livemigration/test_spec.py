"""Specifications: defaults, what travels between hosts, and the one line for what is wrong."""

from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct
from pydantic import ValidationError

from livemigration.spec import (
    LARGEST_SEED,
    CpuSpec,
    DowntimeLimitPolicySpec,
    FixedPolicySpec,
    HunksSpec,
    LinkSpec,
    MigrationSpec,
    PostCopyPolicySpec,
    TaskSpec,
    TelemetrySpec,
    ThresholdPolicySpec,
)
from livemigration.spec_errors import SpecError, nearest

ZIPF: dict[str, Any] = {"kind": "zipf"}


def over_the_wire(struct: dict[str, Any]) -> dict[str, Any]:
    """What a host gets when the other one sends ``struct``: every number has become a double."""
    message = Struct()
    message.update(struct)
    received = json_format.MessageToDict(Struct.FromString(message.SerializeToString()))
    assert isinstance(received, dict)
    return received


def test_a_task_needs_nothing_but_a_workload() -> None:
    task = TaskSpec.from_struct({"workload": ZIPF})
    assert (task.memory, task.page_size, task.pages) == (256 * 2**20, 4096, 65536)
    assert (task.seed, task.tracker, task.cpu, task.kernel.profile) == (
        1,
        "soft-dirty",
        CpuSpec(dbm=True),
        "6.12",
    )
    assert task.hunks.off == ()
    assert (task.source.images, task.source.populate) == ("", True)


def test_a_migration_needs_nothing() -> None:
    migration = MigrationSpec.from_struct({})
    assert migration.clock == "virtual"
    assert migration.policy == ThresholdPolicySpec(max_rounds=10, goal_percent=70)
    assert (migration.link.bandwidth_bps, migration.link.latency_ns) == (10**9, 100_000)
    assert migration.run_after_ns == 10**9


@pytest.mark.parametrize(
    "task",
    [
        {"workload": ZIPF},
        {"workload": {"kind": "zipf", "theta": 1, "write_size": "64B"}, "memory": "1GiB"},
        {"workload": {"kind": "idle"}, "page_size": 65536, "memory": 65536, "seed": LARGEST_SEED},
        {
            "workload": {
                "kind": "phased",
                "phases": [
                    {"kind": "uniform", "duration": "1s", "rate": "1MiB/s"},
                    {"kind": "idle", "duration": "500ms"},
                ],
            },
            "cpu": {"dbm": False},
            "kernel": {"profile": "6.1"},
        },
        {"workload": {"kind": "trace", "file": "a.msgpack"}, "source": {"images": "dump"}},
        {
            "workload": {"kind": "script", "setup": "map 0 anon-private 1cont", "script": "fork"},
            "thp": {"enabled": "always", "hugepages": {"64kB": "madvise", "16kB": "never"}},
        },
    ],
)
def test_a_task_is_the_same_after_a_trip_over_the_wire(task: dict[str, Any]) -> None:
    spec = TaskSpec.from_struct(task)
    assert TaskSpec.from_struct(over_the_wire(spec.to_struct())) == spec


@pytest.mark.parametrize(
    "migration",
    [
        {},
        {"policy": {"kind": "fixed", "rounds": 0}, "clock": "wall", "run_after": "0s"},
        {"policy": {"kind": "downtime-limit", "downtime_limit": "50ms", "max_rounds": 999}},
        {"encoding": {"kind": "auto", "cache": "1GiB", "level": 3}},
        {"link": {"bandwidth": "unlimited", "latency": "0s"}, "verify": {"mode": "bytes"}},
        {"costs": {"write_fault": "2us"}},
    ],
)
def test_a_migration_is_the_same_after_a_trip_over_the_wire(migration: dict[str, Any]) -> None:
    spec = MigrationSpec.from_struct(migration)
    assert MigrationSpec.from_struct(over_the_wire(spec.to_struct())) == spec


def test_each_policy_is_chosen_by_its_kind() -> None:
    policies = [{"kind": "fixed"}, {"kind": "threshold"}, {"kind": "downtime-limit"}]
    chosen = [MigrationSpec.from_struct({"policy": policy}).policy for policy in policies]
    assert chosen == [FixedPolicySpec(), ThresholdPolicySpec(), DowntimeLimitPolicySpec()]
    assert DowntimeLimitPolicySpec(downtime_limit="50ms").downtime_limit_ns == 50_000_000


def test_an_unlimited_link_has_no_bandwidth_figure() -> None:
    assert LinkSpec(bandwidth="unlimited").bandwidth_bps == 0


def test_specifications_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        CpuSpec().dbm = False  # type: ignore[misc]


def test_hunks_may_be_one_text_with_commas() -> None:
    one = HunksSpec.model_validate({"off": "ptep_set_access_flags, pte_mkdirty,pte_mkdirty"})
    assert one.off == ("pte_mkdirty", "ptep_set_access_flags")
    assert one == HunksSpec.model_validate({"off": ["ptep_set_access_flags", "pte_mkdirty"]})


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"memroy": 1}, "memroy: unknown key 'memroy'; did you mean 'memory'?"),
        ({"cpu": {"dmb": True}}, "cpu.dmb: unknown key 'dmb'; did you mean 'dbm'?"),
        ({"cpu": {"x": 1}}, "cpu.x: unknown key 'x'; known: dbm"),
        ({"cpu": 5}, "cpu: must be a table, not 5"),
        ({"cpu": {"dbm": 1}}, "cpu.dbm: must be true or false, not 1"),
        ({"cpu": {"dbm": "yes"}}, "cpu.dbm: must be true or false, not 'yes'"),
        ({"seed": "one"}, "seed: must be a whole number, not 'one'"),
        ({"seed": True}, "seed: must be a whole number, not true"),
        ({"seed": 1.5}, "seed: must be a whole number, not 1.5"),
        ({"seed": -1}, "seed: must be at least 0, not -1"),
        ({"seed": 2**53}, f"seed: must be at most {LARGEST_SEED}, not {2**53}"),
        (
            {"memory": 4097},
            "memory: 4097B is not a whole number of pages of 4096 bytes; "
            "write a multiple of the page size, at most 64GiB",
        ),
        (
            {"memory": "16KiB", "page_size": 65536},
            "memory: 16KiB is not a whole number of pages of 65536 bytes; "
            "write a multiple of the page size, at most 64GiB",
        ),
        (
            {"memory": 0},
            "memory: 0B is not a whole number of pages of 4096 bytes; "
            "write a multiple of the page size, at most 64GiB",
        ),
        ({"memory": "65GiB"}, "memory: 65GiB is more than a task can have; write at most 64GiB"),
        (
            {"memory": "256MB"},
            'memory: \'256MB\': unknown unit \'MB\'; write a size like "64KiB", "256MiB" or "2GiB"',
        ),
        ({"memory": [1]}, "memory: must be a whole number, not a list"),
        ({"page_size": 8192}, "page_size: 8192 is not allowed; allowed: 4096, 16384 or 65536"),
        (
            {"tracker": "uffd-wp", "kernel": {"profile": "6.1"}},
            'kernel: profile "6.1" has no userfaultfd WP_ASYNC, which tracker "uffd-wp" needs; '
            'write "6.12" or "seed"',
        ),
        (
            {"tracker": "ebpf"},
            "tracker: 'ebpf' is not allowed; allowed: 'soft-dirty', 'uffd-wp' or 'host'",
        ),
        (
            {"tracker": "host", "workload": {"kind": "fork-cow"}},
            'workload: kind "fork-cow" does more than write, which tracker "host" cannot; '
            "write one of uniform, zipf, hotspot, sequential, phased, idle, or another tracker",
        ),
        (
            {"tracker": "host", "hunks": {"off": ["pte_modify"]}},
            'hunks: off: tracker "host" asks a real kernel, which has no hunks to leave out; '
            'write tracker = "soft-dirty" for the model',
        ),
        (
            {"tracker": "host", "source": {"images": "dump"}},
            'source: images: tracker "host" starts from memory that the workload writes; leave '
            'images out, or write tracker = "soft-dirty" or "uffd-wp"',
        ),
        (
            {"host": {"method": "ebpf"}},
            "host.method: 'ebpf' is not allowed; allowed: 'auto', 'wp-async' or 'soft-dirty'",
        ),
        ({"host": {"forget": -1}}, "host.forget: must be at least 0, not -1"),
        (
            {"kernel": {"profile": "6.2"}},
            "kernel.profile: '6.2' is not allowed; allowed: '6.1', '6.12' or 'seed'",
        ),
        ({"workload": {"kind": "zipff"}}, "workload: unknown kind 'zipff'; did you mean 'zipf'?"),
        ({"workload": {"theta": 1}}, 'workload: needs a key "kind" that says which one'),
        (
            {"workload": {"kind": "zipf", "thetta": 1}},
            "workload.thetta: unknown key 'thetta'; did you mean 'theta'?",
        ),
        (
            {"workload": {"kind": "uniform", "rate": "fast"}},
            "workload.rate: 'fast' is not understood; "
            'write a rate like "20000 pages/s" or "80MiB/s"',
        ),
        (
            {"workload": {"kind": "phased", "phases": [{"kind": "idle", "duraton": "1s"}]}},
            "workload.phases.0.duraton: unknown key 'duraton'; did you mean 'duration'? "
            "(and 1 more)",
        ),
        (
            {"workload": {"kind": "zipf", "working_set": "1GiB"}},
            "workload: working_set = 1GiB is more than memory = 256MiB; write at most that",
        ),
        (
            {"workload": {"kind": "zipf", "write_size": 8192}},
            "workload: write_size = 8KiB is more than page_size = 4KiB; write at most that",
        ),
        (
            {"workload": {"kind": "swap-pressure", "window": 6000}},
            "workload: window = 6000B is not a whole number of pages of 4096 bytes; "
            "write a multiple of the page size",
        ),
        (
            {"hunks": {"off": ["ptep_set_acess_flags"]}},
            "hunks.off: unknown hunk 'ptep_set_acess_flags'; did you mean 'ptep_set_access_flags'?",
        ),
        ({"hunks": {"off": 3}}, "hunks.off: must be a list, not 3"),
        (
            {"thp": {"enabled": "sometimes"}},
            "thp.enabled: 'sometimes' is not allowed; allowed: 'always', 'madvise' or 'never'",
        ),
        ({"thp": {"enbled": "never"}}, "thp.enbled: unknown key 'enbled'; did you mean 'enabled'?"),
        ({"thp": {"hugepages": "64kB"}}, "thp.hugepages: must be a table, not '64kB'"),
        (
            {"thp": {"hugepages": {"64KiB": "always"}}},
            "thp.hugepages: '64KiB' is not a size as the kernel writes it, such as 64kB",
        ),
        (
            {"thp": {"hugepages": {"64kB": "always", "cont": "always"}}},
            "thp: hugepages: cont is one of the sizes that are given as well",
        ),
        (
            {"thp": {"hugepages": {"64kB": "on"}}},
            "thp.hugepages.64kB: 'on' is not allowed; allowed: 'always', 'madvise' or 'never'",
        ),
        (
            {"thp": {"hugepages": {"8kB": "always"}}},
            "thp: hugepages: there are no folios of 8kB with pages of 4096 bytes; there are "
            "16kB, 32kB, 64kB, 128kB, 256kB, 512kB, 1024kB",
        ),
        (
            {"thp": {"hugepages": {"64kB": "always"}}, "kernel": {"profile": "6.1"}},
            'thp: hugepages: profile "6.1" has no sizes but PMD; write "6.12" or "seed"',
        ),
        (
            {"workload": {"kind": "script", "script": "read 0 0 1\nwirte 0 0 1"}},
            "workload.script: line 2: 'wirte 0 0 1': there is no operation 'wirte'; "
            "did you mean 'write'?",
        ),
        (
            {"workload": {"kind": "script", "script": "# nothing"}},
            'workload.script: has no operation; write at least one, such as "write 0 0 16"',
        ),
        (
            {
                "workload": {
                    "kind": "script",
                    "setup": "map 0 anon-private 1pmd",
                    "script": "fork",
                },
                "memory": "1MiB",
            },
            "workload: the script's regions have 2MiB together, more than memory = 1MiB; write at "
            "least that",
        ),
        (
            {"workload": {"kind": "script", "script": "read 0 0 4KiB"}, "page_size": 16384},
            "workload: script: line 1: 4KiB is not a whole number of pages of 16KiB",
        ),
        (
            {"workload": {"kind": "script", "script": "read 0 0 1", "every": "0s"}},
            "workload.every: '0s' is no time at all; write a duration like \"500ms\"",
        ),
    ],
)
def test_what_is_wrong_with_a_task_is_said_in_one_line(change: dict[str, Any], line: str) -> None:
    with pytest.raises(SpecError) as caught:
        TaskSpec.from_struct({"workload": ZIPF, **change})
    assert str(caught.value) == line


def test_a_missing_workload_is_named() -> None:
    with pytest.raises(SpecError, match=r"^workload: missing; this key must be given$"):
        TaskSpec.from_struct({})


@pytest.mark.parametrize(
    ("migration", "line"),
    [
        ({"clock": "real"}, "clock: 'real' is not allowed; allowed: 'virtual' or 'wall'"),
        (
            {"policy": {"kind": "treshold"}},
            "policy: unknown kind 'treshold'; did you mean 'threshold'?",
        ),
        (
            {"policy": {"kind": "fixed", "max_rounds": 3}},
            "policy.max_rounds: unknown key 'max_rounds'; did you mean 'rounds'?",
        ),
        (
            {"policy": {"kind": "threshold", "goal_percent": 101}},
            "policy.goal_percent: must be at most 100, not 101",
        ),
        ({"policy": {"kind": "fixed", "rounds": -1}}, "policy.rounds: must be at least 0, not -1"),
        (
            {"link": {"bandwidth": "0Mbit/s"}},
            "link.bandwidth: '0Mbit/s' would never deliver anything; "
            'write a bandwidth like "1Gbit/s", "100MiB/s" or "unlimited"',
        ),
        (
            {"link": {"latency": 5}},
            "link.latency: must be text in quotes, not 5",
        ),
        (
            {"run_after": "soon"},
            'run_after: \'soon\' is not understood; write a time like "100us", "300ms" or "1.5s"',
        ),
        (
            {"verify": {"mode": "no"}},
            "verify.mode: 'no' is not allowed; allowed: 'digest' or 'bytes'",
        ),
        (
            {"encoding": {"kind": "gzip"}},
            "encoding: unknown kind 'gzip'; known: auto, delta, lz4, raw, zstd",
        ),
        (
            {"encoding": {"kind": "zstd", "level": 20}},
            "encoding.level: must be at most 19, not 20",
        ),
        (
            {"encoding": {"kind": "zstd", "cache": "64MiB"}},
            "encoding.cache: unknown key 'cache'; known: kind, level",
        ),
        (
            {"encoding": {"kind": "delta", "cache": "4KiB"}},
            "encoding.cache: must be at least 65536, not 4096",
        ),
        (
            {"encoding": {"kind": "delta", "codec": "rle"}},
            "encoding.codec: 'rle' is not allowed; allowed: 'run-length', 'zstd' or 'lz4'",
        ),
        ({"costs": {"freze": 1}}, "costs.freze: unknown key 'freze'; did you mean 'freeze'?"),
    ],
)
def test_what_is_wrong_with_a_migration_is_said_in_one_line(
    migration: dict[str, Any], line: str
) -> None:
    with pytest.raises(SpecError) as caught:
        MigrationSpec.from_struct(migration)
    assert str(caught.value) == line


@pytest.mark.parametrize("url", ["", "mqtt://broker", "mqtt://broker:1883", "mqtts://u:p@b:8883"])
def test_broker_addresses(url: str) -> None:
    assert TelemetrySpec(mqtt=url).mqtt == url


@pytest.mark.parametrize("url", ["broker:1883", "http://broker", "mqtt://", "mqtt://b:99999"])
def test_what_is_no_broker_address_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="mqtt://"):
        TelemetrySpec(mqtt=url)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("max_round", "max_rounds"), ("GOAL-PERCENT", "goal_percent"), ("zzz", None)],
)
def test_the_nearest_name_is_found_whatever_the_dashes(name: str, expected: str | None) -> None:
    assert nearest(name, ["max_rounds", "goal_percent"]) == expected


def test_every_key_has_a_description() -> None:
    models = [TaskSpec, MigrationSpec, CpuSpec, HunksSpec, LinkSpec, TelemetrySpec]
    models += [FixedPolicySpec, ThresholdPolicySpec, DowntimeLimitPolicySpec]
    missing = [
        f"{model.__name__}.{name}"
        for model in models
        for name, field in model.model_fields.items()
        if not field.description and name != "kind"
    ]
    assert missing == []


@pytest.mark.parametrize(("page_size", "kilobytes"), [(4096, 64), (16384, 2048), (65536, 2048)])
def test_folios_as_large_as_a_contiguous_block_have_a_name(page_size: int, kilobytes: int) -> None:
    task = {"workload": ZIPF, "page_size": page_size, "thp": {"hugepages": {"cont": "always"}}}
    assert TaskSpec.from_struct(task).thp.sizes(page_size) == ((kilobytes, "always"),)


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("lost_after", "0s", "'0s' does not tell a lost host from a busy one"),
        ("batch", "2MiB", "must be at most 1048576"),
        ("pivots", 0, "must be at least 1"),
    ],
)
def test_lazy_pages_that_could_not_come_are_refused(key: str, value: object, line: str) -> None:
    with pytest.raises(SpecError, match=f"^policy.{key}: .*{line}"):
        MigrationSpec.from_struct({"policy": {"kind": "post-copy", key: value}})


@pytest.mark.parametrize(
    ("batch", "bandwidth", "size"),
    [("64KiB", 10**9, 65536), (0, 10**9, 125_000), (0, 10**11, 2**20), (0, 0, 2**20), (0, 8000, 1)],
)
def test_a_batch_of_pages_is_what_the_link_carries_in_a_millisecond(
    batch: object, bandwidth: int, size: int
) -> None:
    migration = MigrationSpec.from_struct({"policy": {"kind": "post-copy", "batch": batch}})
    assert isinstance(migration.policy, PostCopyPolicySpec)
    assert migration.policy.batch_bytes(bandwidth) == size
