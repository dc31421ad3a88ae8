"""The real source and the real destination, with faults by chance: one owner, and every byte.

What the search over the tables proves of a model (`tests/unit/livemigration/test_ownership_search`)
is tried here with the nodes' own code: `Migration`, `GrpcTransport` and `DestinationNode` with a
real state directory, over a network in memory.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from livemigration.clock import VirtualClock
from livemigration.errors import DestinationLost
from livemigration.ownership import Ownership
from livemigration.policy import build_policy
from livemigration.v1 import destination_node_pb2
from predump.inprocess import _Silent
from predump.scenario import Scenario, scenario_from_mapping
from source_node.grpc_transport import GrpcTransport, Patience
from source_node.hosting import HostedTask, TaskRequest, reference_digest
from source_node.migration import Migration
from source_node.outcome import Outcome
from tests.property.memory_network import CALLS, FRAMES, MemoryChannel, Network

SCENARIO = scenario_from_mapping(
    {
        "schema": "predump.scenario/1",
        "memory": "1MiB",
        "workload": {"kind": "uniform", "rate": "20000 pages/s", "write_size": 64},
        "policy": {"kind": "fixed", "rounds": 1},
        "migration": {"run_after": "5ms"},
    }
)
LATER = {
    kind: scenario_from_mapping(
        {
            "schema": "predump.scenario/1",
            "memory": "1MiB",
            "workload": {"kind": "uniform", "rate": "20000 pages/s", "write_size": 64},
            "policy": {"kind": kind, "batch": "64KiB", "lost_after": "200ms"},
            "migration": {"run_after": "5ms"},
        }
    )
    for kind in ("post-copy", "hybrid")
}
LIMIT_S = 20.0
IMPATIENT = Patience(answer_s=0.06, reconnect_s=0.2, settle_s=0.3)


class Hosts:
    """A task at a source, and migrations of it to the destination of a network."""

    def __init__(self, hosted: HostedTask, network: Network, scenario: Scenario = SCENARIO) -> None:
        self.hosted, self.network, self.scenario = hosted, network, scenario
        self.migration: Migration | None = None
        self.transport: GrpcTransport | None = None
        network.check = self.check

    def check(self) -> None:
        """After every message: never two owners, and no hand-over of a task that has gone on."""
        committed = self.network.state is Ownership.COMMITTED
        runs = self.hosted.execution.running or self.hosted.ownership.state is Ownership.RUNNING
        assert not (committed and runs), "two owners"

    async def migrate(self, number: int, patience: Patience) -> Outcome:
        """One migration over the network as it is."""
        self.transport = GrpcTransport(
            "memory",
            patience=patience,
            channel=MemoryChannel(self.network),  # type: ignore[arg-type]
        )
        self.migration = Migration(
            migration_id=f"m{number}",
            spec=self.scenario.migration,
            origin=self.hosted.origin,
            execution=self.hosted.execution,
            ownership=self.hosted.ownership,
            transport=self.transport,
            policy=build_policy(self.scenario.migration.policy),
            clock=VirtualClock(self.hosted.execution.advance),
            observer=_Silent(),
            reference=self.hosted.reference,
        )
        return await self.migration.run()

    async def find_what_was_taken_over(self) -> None:
        """In a process started anew with the directory that has it, with every byte."""
        for directory in ("home", "other"):
            await self.network.crash()
            await self.network.start(directory)
            if self.network.state is Ownership.COMMITTED:
                break
        node = self.network.node
        assert node is not None
        incoming = node._incoming
        assert incoming is not None, "the task is nowhere"
        assert incoming.execution is not None
        operations = incoming.execution.workload.ops_done
        expected = await asyncio.to_thread(reference_digest, self.hosted.request, operations)
        assert incoming.digest().memory_digest == expected

    def keep(self) -> Outcome:
        """Somebody's word, for a task that died with the process that it ran in: only then."""
        assert self.migration is not None
        node = self.network.node
        assert node is not None and node._lost == self.migration.outcome.migration_id
        assert not self.hosted.execution.running
        self.migration.decide(keep=True)
        return self.migration.outcome

    async def settle(self) -> Outcome:
        """The destination is asked; if it is another one, that with its directory is started."""
        assert self.migration is not None
        try:
            await self.network.start()
            await self.migration.settle()
        except DestinationLost:
            pass
        else:
            return self.migration.outcome
        await self.network.crash()
        await self.network.start("home")
        try:
            await self.migration.settle()
        except DestinationLost:
            # The pages went to the destination with the other directory.
            await self.network.crash()
            await self.network.start("other")
            await self.migration.settle()
        return self.migration.outcome


async def _story(
    folder: Path, calls: list[str], frames: list[str], late: list[int], scenario: Scenario
) -> None:
    network = Network(folder, iter(calls), iter(frames))
    await network.start()
    hosted = await HostedTask.start(
        TaskRequest(scenario.task, scenario.task.to_struct(), "virtual", Path())
    )
    hosts = Hosts(hosted, network, scenario)
    try:
        async with asyncio.timeout(LIMIT_S):
            await _tell(hosts, late)
    except TimeoutError:
        raise AssertionError(f"it hangs: {network.log}") from None
    finally:
        if hosts.transport is not None:
            await hosts.transport.close()
        await network.crash()
        await hosted.end()


async def _tell(hosts: Hosts, late: list[int]) -> None:
    hosted, network = hosts.hosted, hosts.network
    outcome = await hosts.migrate(1, IMPATIENT)
    network.calls = network.frames = iter(())  # from here on all messages get through
    await asyncio.sleep(0.03)  # what is late arrives
    if hosted.ownership.state is Ownership.IN_DOUBT:
        assert not hosted.execution.running
        outcome = await hosts.settle()
    if hosted.ownership.state is Ownership.IN_DOUBT:
        outcome = hosts.keep()
    # What was sent before may arrive once more at any time.
    for number in late:
        await network.deliver_once_more(*network.again[number % len(network.again)])
    state = hosted.ownership.state
    if state is Ownership.RELEASED:
        assert outcome.verified
        if not outcome.error:
            assert outcome.continued_equal
        await hosts.find_what_was_taken_over()
    else:
        assert state is Ownership.RUNNING, state
        assert hosted.execution.running
        assert outcome.error
        assert network.state is not Ownership.COMMITTED
        # Unharmed: it migrates, every page is compared, and it ends as if nothing had happened.
        again = await hosts.migrate(2, Patience())
        assert not again.error, again.error
        assert again.verified and again.continued_equal
        assert network.state is Ownership.COMMITTED


def run(
    calls: list[str], frames: list[str], late: list[int], scenario: Scenario = SCENARIO
) -> None:
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        asyncio.run(_story(Path(folder), calls, frames, late, scenario))


def _mostly_ok(kinds: tuple[str, ...], most: int) -> st.SearchStrategy[list[str]]:
    return st.lists(st.one_of(st.just("ok"), st.sampled_from(kinds)), max_size=most)


@settings(max_examples=25)
@given(
    calls=_mostly_ok(CALLS, 12),
    frames=_mostly_ok(FRAMES, 6),
    late=st.lists(st.integers(0, 11), max_size=3),
)
def test_one_owner_and_every_byte_whatever_becomes_of_the_messages(
    calls: list[str], frames: list[str], late: list[int]
) -> None:
    run(calls, frames, late)


@settings(max_examples=12)
@given(
    kind=st.sampled_from(["post-copy", "hybrid"]),
    calls=_mostly_ok(CALLS, 12),
    frames=st.lists(st.sampled_from(["ok", "ok", *FRAMES]), max_size=16),
    late=st.lists(st.integers(0, 11), max_size=2),
)
def test_one_owner_and_every_byte_though_pages_come_after_the_task(
    kind: str, calls: list[str], frames: list[str], late: list[int]
) -> None:
    """A task is set back to its freeze only if the process is dead that had it."""
    run(calls, frames, late, LATER[kind])


def test_a_bit_of_the_tasks_own_state_that_is_wrong_is_found() -> None:
    """Found by chance: it is in no digest of pages, and the frame that has it had no checksum."""
    run([], ["damage"], [], LATER["post-copy"])


def test_a_source_that_gives_up_while_it_opens_the_stream_again_does_not_go_on() -> None:
    """Found by chance: a stream was opened that nobody watched any more, and a frame was lost."""
    calls = ["ok", "ok", "lose-request", "lose-request", "silence", "twice", "ok"]
    run(calls, ["break", "ok", "ok", "swap"], [])


# Describe, Prepare, Verify, Commit: the fourth call hands the task over.
OK = ["ok"] * 3


def test_a_commit_whose_answer_is_lost_and_that_arrives_again() -> None:
    run([*OK, "lose-answer", "lose-answer"], [], [3, 3, 4])


def test_a_commit_that_arrives_only_after_the_source_has_asked() -> None:
    run([*OK, "late"], [], [3])


def test_a_destination_that_dies_with_what_it_took_over_and_comes_back_with_another_directory() -> (
    None
):
    run([*OK, "crash-after-other"], [], [3])


async def test_a_hand_over_whose_caller_goes_away_is_done_to_its_end(tmp_path: Path) -> None:
    """Otherwise the task would be the destination's, and not run there."""
    network = Network(tmp_path, iter([*OK, "hang-up"]), iter(()))
    await network.start()
    hosted = await HostedTask.start(
        TaskRequest(SCENARIO.task, SCENARIO.task.to_struct(), "virtual", Path())
    )
    hosts = Hosts(hosted, network)
    ran = []

    def check() -> None:
        hosts.check()
        if network.state is Ownership.COMMITTED:
            assert network.node is not None and network.node._incoming is not None
            execution = network.node._incoming.execution
            ran.append(execution is not None and execution.running)

    network.check = check
    outcome = await hosts.migrate(1, Patience())
    assert "Commit: hang-up" in network.log
    assert ran[0], "it was taken over, and does not run"
    assert hosted.ownership.state is Ownership.RELEASED
    assert network.state is Ownership.COMMITTED
    assert outcome.continued_equal
    await network.crash()
    await hosted.end()


async def test_a_task_that_is_being_taken_over_is_not_given_up_for_the_next_one(
    tmp_path: Path,
) -> None:
    network = Network(tmp_path, iter(()), iter(()))
    await network.start()
    hosted = await HostedTask.start(
        TaskRequest(SCENARIO.task, SCENARIO.task.to_struct(), "virtual", Path())
    )
    hosts = Hosts(hosted, network)
    other = destination_node_pb2.PrepareRequest(migration_id="other", clock="virtual")
    other.task.update(SCENARIO.task.to_struct())
    answer = network.call
    refused = []

    async def call(name: str, request: bytes | AsyncIterator[bytes]) -> bytes:
        if name != "Commit":
            return await answer(name, request)
        both = await asyncio.gather(
            answer(name, request),
            network._deliver("Prepare", other.SerializeToString()),
            return_exceptions=True,
        )
        assert isinstance(both[0], bytes), both[0]
        refused.append(str(both[1]))
        return both[0]

    network.call = call  # type: ignore[method-assign]
    outcome = await hosts.migrate(1, Patience())
    assert outcome.continued_equal and network.state is Ownership.COMMITTED
    assert "this host runs the task of migration m1" in refused[0]
    await network.crash()
    await hosted.end()
