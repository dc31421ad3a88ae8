"""Sends a scenario's rounds to page servers, without a node in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from livemigration.clock import Clock, VirtualClock, WallClock
from livemigration.policy import build_policy
from predump.scenario import Scenario
from source_node.criu_migration import PageServerMigration, PageServers
from source_node.hosting import HostedTask, TaskRequest
from source_node.outcome import NS, Outcome, Round

_SAID = frozenset({"connect", "verify", "done"})


@dataclass(slots=True)
class Teller:
    """Tells people of each round."""

    say: Callable[[str], None]

    def phase(self, phase: str, at_ns: int, message: str) -> None:
        """Only what one would wait for."""
        if phase in _SAID:
            self.say(message)

    def round(self, record: Round, at_ns: int) -> None:
        """In one line."""
        self.say(
            f"round {record.round}: {record.pages_sent} pages, {record.bytes_wire} bytes, "
            f"{record.duration_ns / NS:.3f} s; {record.reason}"
        )

    def handed_over(self, outcome: Outcome, at_ns: int) -> None:
        """Never: nobody takes the task over."""


@dataclass(frozen=True, slots=True)
class Sent:
    """How it went; `holes`: pages left to the parent, by round."""

    outcome: Outcome
    holes: tuple[int, ...]

    def to_json(self) -> dict[str, object]:
        """For machines; times in seconds."""
        holes = [*self.holes, *[0] * len(self.outcome.rounds)]
        return {
            "verified": self.outcome.verified,
            "mismatched_pages": self.outcome.mismatched_pages,
            "error": self.outcome.error,
            "rounds": [
                record.to_json() | {"holes": left}
                for record, left in zip(self.outcome.rounds, holes, strict=False)
            ],
        }


async def send_scenario(
    scenario: Scenario, servers: PageServers, say: Callable[[str], None]
) -> Sent:
    """Runs the scenario's task here and sends its rounds. Raises BadRequest."""
    migration = scenario.migration
    hosted = await HostedTask.start(
        TaskRequest(scenario.task, scenario.task.to_struct(), migration.clock, Path())
    )
    try:
        hosted.execution.write_fault_ns = migration.costs.write_fault
        clock: Clock = (
            VirtualClock(hosted.execution.advance) if migration.clock == "virtual" else WallClock()
        )
        sending = PageServerMigration(
            migration_id=scenario.name,
            spec=migration,
            origin=hosted.origin,
            execution=hosted.execution,
            ownership=hosted.ownership,
            policy=build_policy(migration.policy, scenario.policies),
            clock=clock,
            observer=Teller(say),
            servers=servers,
        )
        outcome = await sending.run()
        return Sent(outcome, tuple(sending.holes))
    finally:
        await hosted.end()
