"""Two hosts and the way between them: what a test migrates over."""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import Awaitable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from predump.testing.network import Faults, Network, faulty_network
from predump.testing.nodes import Node, running_node

if TYPE_CHECKING:
    from predump.result import Result
    from predump.scenario import Scenario

SMALL = """
schema = "predump.scenario/1"
name = "small"
memory = "4MiB"
[workload]
kind = "uniform"
rate = "2000 pages/s"
[policy]
kind = "fixed"
rounds = 2
"""
"""The scenario of a migration whose test does not care: two pre-dumps of 4 MiB, in virtual time."""


@dataclass(slots=True)
class Pair:
    """A source and a destination. Each migration begins with a new task and leaves none behind."""

    source: Node
    destination: Node
    network: Network | None = None
    hunks_off: tuple[str, ...] = ()
    worn: bool = False
    """A migration gave no result, or one in doubt: what the nodes hold now is not known."""

    @property
    def destination_address(self) -> str:
        """The destination as the source reaches it: through the network, if there is one."""
        return self.network.address if self.network is not None else self.destination.address

    def migrate(
        self,
        scenario: Scenario | Mapping[str, Any] | str | Path | None = None,
        *,
        timeout_s: float = 120.0,
        **changes: object,
    ) -> Result:
        """Runs a scenario on the two hosts and returns its result, whatever that is.

        `scenario`: a file, its tables, or a `Scenario`; without one, `SMALL`. `changes` replace
        keys of it, with ``__`` for the dot: ``link__bandwidth="100Mbit/s"``. May also be called
        where an event loop runs. Raises ScenarioError, RunError (no result) and TimeoutError.
        """
        from predump.runner import Hosts, run_scenario

        chosen = self._scenario(scenario, changes)
        hosts = Hosts(self.source.address, self.destination_address)

        async def run() -> Result:
            async with asyncio.timeout(timeout_s):
                return await run_scenario(chosen, hosts=hosts)

        worn, self.worn = self.worn, True
        with ThreadPoolExecutor(1) as thread:
            result = thread.submit(asyncio.run, run()).result()
        self.worn = worn or result.owner == "in-doubt"
        return result

    def is_idle(self) -> bool:
        """Whether both nodes answer and neither has a task: as a new pair would be."""
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, _idle(self)).result()

    def _scenario(
        self, given: Scenario | Mapping[str, Any] | str | Path | None, changes: Mapping[str, object]
    ) -> Scenario:
        from predump.overrides import Override
        from predump.scenario import Scenario, load_scenario, scenario_from_mapping

        overrides = [
            Override(key.replace("__", "."), str(value), value) for key, value in changes.items()
        ]
        if self.hunks_off:
            overrides.append(Override("hunks.off", str(self.hunks_off), list(self.hunks_off)))
        if isinstance(given, Scenario):
            if overrides:
                raise TypeError("changes and hunks need a scenario file or its tables")
            return given
        if isinstance(given, str | Path):
            return load_scenario(given, overrides)
        return scenario_from_mapping(
            given if given is not None else tomllib.loads(SMALL), overrides
        )


async def _idle(pair: Pair) -> bool:
    import grpc
    import grpc.aio

    from livemigration.channel import open_channel
    from livemigration.v1 import common_pb2, destination_node_pb2, source_node_pb2
    from livemigration.v1 import destination_node_pb2_grpc as dest_grpc
    from livemigration.v1 import source_node_pb2_grpc as source_grpc

    async def free(call: Awaitable[Any]) -> bool:
        try:
            ownership = (await call).ownership
        except grpc.aio.AioRpcError as error:
            return error.code() in (
                grpc.StatusCode.FAILED_PRECONDITION,  # a source without a task
                grpc.StatusCode.NOT_FOUND,  # a destination without one
            )
        return ownership in (
            common_pb2.OWNERSHIP_STATE_RELEASED,
            common_pb2.OWNERSHIP_STATE_ABORTED,
        )

    async with (
        open_channel(pair.source.address) as here,
        open_channel(pair.destination.address) as there,
    ):
        source: source_grpc.SourceNodeAsyncStub = source_grpc.SourceNodeStub(here)
        dest: dest_grpc.DestinationNodeAsyncStub = dest_grpc.DestinationNodeStub(there)
        return await free(source.GetTask(source_node_pb2.GetTaskRequest(), timeout=5)) and (
            await free(dest.GetMigration(destination_node_pb2.GetMigrationRequest(), timeout=5))
        )


@contextmanager
def running_pair(
    folder: Path,
    *,
    faults: Faults | None = None,
    hunks_off: Iterable[str] = (),
    arguments: Iterable[str | Path] = (),
) -> Iterator[Pair]:
    """Two nodes, with more `arguments` of `predump serve` for both, and a network if it has faults.

    Logs and the destination's state are kept in `folder`.
    """
    with ExitStack() as stack:
        state = folder / "dest-state"
        source = stack.enter_context(running_node("source", folder, *arguments))
        dest = stack.enter_context(running_node("dest", folder, "--state-dir", state, *arguments))
        network = None
        if faults is not None:
            network = stack.enter_context(faulty_network(dest.address, faults))
        yield Pair(source, dest, network, tuple(hunks_off))
