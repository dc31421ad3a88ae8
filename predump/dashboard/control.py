"""Starting, ending and redirecting migrations from the page.

A migration is started as `predump migrate` does, from a scenario with some keys replaced. What a
page may replace is what describes the task and its migration: files of this machine and Python code
are chosen by whoever started the dashboard, in scenario files.
"""

from __future__ import annotations

import asyncio
import logging
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from livemigration.channel import open_channel, why
from livemigration.tls import channel_credentials
from livemigration.v1 import source_node_pb2, source_node_pb2_grpc
from predump.dashboard.choices import policy_kinds, scenario_choice
from predump.dashboard.finished import Finished
from predump.demo import SCENARIO as DEMO
from predump.overrides import Override, OverrideError, apply_overrides, parse_override
from predump.runner import Event, Hosts, RunError, run_scenario
from predump.scenario import Scenario, ScenarioError, load_scenario, scenario_from_mapping

LIVE = """
schema = "predump.scenario/1"
name = "live"
clock = "wall"
memory = "256MiB"
[workload]
kind = "hotspot"
rate = "8000 pages/s"
[policy]
kind = "downtime-limit"
downtime_limit = "100ms"
max_rounds = 8
[link]
bandwidth = "500Mbit/s"
"""
"""In real time and slow enough to be looked at."""

READY: dict[str, str] = {"live": LIVE, "demo": DEMO}
"""Scenarios that are there without a folder of them."""

MOST_SETTINGS = 40
log = logging.getLogger(__name__)
CALL_S = 30.0
TIDY_S = 2.0

_OF_THIS_MACHINE = ("source.images", "workload.file", "costs.machine", "telemetry.mqtt")
"""Keys that name files or addresses."""


class ControlError(ValueError):
    """What was asked for cannot be done; ``str()`` is one line for the user."""


def checked_settings(settings: Sequence[str]) -> list[Override]:
    """``KEY=VALUE`` texts as overrides; ControlError for what a page must not choose."""
    if len(settings) > MOST_SETTINGS:
        raise ControlError(f"more than {MOST_SETTINGS} settings; write a scenario file instead")
    overrides = []
    for text in settings:
        try:
            override = parse_override(text)
        except OverrideError as error:
            raise ControlError(str(error).replace("--set ", "")) from error
        for key in _OF_THIS_MACHINE:
            if override.covers(key):
                raise ControlError(
                    f"{override.key} is chosen in a scenario file, not from the page"
                )
        if override.covers("policy.kind") and override.value not in policy_kinds():
            raise ControlError(
                f"policy.kind: {override.text!r} is none of {', '.join(policy_kinds())}"
            )
        overrides.append(override)
    return overrides


@dataclass(slots=True)
class Control:
    """Acts on one source and its destination."""

    hosts: Hosts
    finished: Finished
    folder: Path | None = None  # of scenario files
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _starting: asyncio.Lock = field(default_factory=asyncio.Lock)

    def scenarios(self) -> list[str]:
        """Names that `start` knows: the ready ones, then the files."""
        files = sorted(self.folder.glob("*.toml")) if self.folder is not None else []
        return [*READY, *(file.name for file in files)]

    def choices(self) -> list[dict[str, Any]]:
        """What the page says of each of them."""
        told = []
        for name in self.scenarios():
            try:
                said = READY.get(name) or self._path(name).read_text("utf-8")
                told.append(scenario_choice(name, tomllib.loads(said)))
            except (OSError, ValueError) as error:
                told.append({"name": name, "trouble": " ".join(str(error).split())})
        return told

    async def start(self, name: str, settings: Sequence[str]) -> str:
        """Begins a migration; returns its id once the source has begun. ControlError."""
        scenario = self._scenario(name, checked_settings(settings))
        if self._starting.locked():
            raise ControlError("another migration is being started: wait until it has begun")
        async with self._starting:
            return await self._start(scenario)

    async def _start(self, scenario: Scenario) -> str:
        """A source has one task, and who migrated it tidies up after its end."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=TIDY_S)
        if self._tasks:
            raise ControlError(
                "a migration that was started here is under way: abort it, or wait for its end"
            )
        begun: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        def on_event(event: Event) -> None:
            migration_id = event.get("migration_id")
            if migration_id and not begun.done():
                begun.set_result(str(migration_id))

        task = asyncio.create_task(self._run(scenario, on_event, begun), name="started here")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(begun)

    async def _run(self, scenario: Scenario, on_event: Any, begun: asyncio.Future[str]) -> None:
        try:
            result = await run_scenario(scenario, hosts=self.hosts, on_event=on_event)
        except RunError as error:
            if begun.done():
                self.finished.failed(scenario.name, begun.result(), error.message)
            else:
                _refuse(begun, error.message)
            return
        except asyncio.CancelledError:
            _refuse(begun, "the dashboard ends")
            raise
        except Exception as error:
            log.exception("a migration that was started here failed")
            line = f"internal error: {type(error).__name__}: {error}"
            if begun.done():
                self.finished.failed(scenario.name, begun.result(), line)
            _refuse(begun, line)
            return
        self.finished.add(result)
        if not begun.done():
            begun.set_result(result.migration_id)

    async def abort(self, migration_id: str) -> None:
        """Ends a migration that is under way; returns when the task runs at the source again."""
        await self._call("Abort", source_node_pb2.AbortMigrationRequest(migration_id=migration_id))

    async def change_policy(self, migration_id: str, settings: Sequence[str]) -> None:
        """Another policy for a migration under way. `settings`: ``kind=fixed``, ``rounds=2``..."""
        overrides = checked_settings([f"policy.{text}" for text in settings])
        policy = apply_overrides({}, overrides).get("policy", {})
        request = source_node_pb2.ChangePolicyRequest(migration_id=migration_id)
        request.policy.update(policy)
        await self._call("ChangePolicy", request)

    async def close(self) -> None:
        """Lets go of what was started here. The nodes go on with it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _call(self, method: str, request: Any) -> None:
        credentials = channel_credentials(self.hosts.tls) if self.hosts.tls is not None else None
        async with open_channel(self.hosts.source, credentials) as channel:
            stub = source_node_pb2_grpc.SourceNodeStub(channel)
            try:
                await getattr(stub, method)(request, timeout=CALL_S)
            except grpc.aio.AioRpcError as error:
                raise ControlError(f"source {self.hosts.source}: {why(error)}") from error

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / name

    def _scenario(self, name: str, overrides: Sequence[Override]) -> Scenario:
        """Only names from the list: a page cannot reach other files."""
        if name not in self.scenarios():
            raise ControlError(f"there is no scenario {name!r}")
        try:
            if name in READY:
                return scenario_from_mapping(tomllib.loads(READY[name]), overrides, origin=name)
            return load_scenario(self._path(name), overrides, check_paths=False)
        except (ScenarioError, OverrideError) as error:
            raise ControlError(str(error).replace("--set ", "")) from error


def _refuse(begun: asyncio.Future[str], line: str) -> None:
    """Nothing has begun, for this reason."""
    if not begun.done():
        begun.set_exception(ControlError(line))
        begun.exception()  # whoever asked may have gone: nobody has to hear of it


def texts(value: object) -> list[str]:
    """A list of texts from a request; ControlError if it is something else."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ControlError("settings must be a list of texts KEY=VALUE")
    return value


def text(fields: Mapping[str, Any], name: str) -> str:
    """A text from a request; ControlError if it is missing or something else."""
    value = fields.get(name)
    if not isinstance(value, str) or not value:
        raise ControlError(f"{name} is missing")
    return value
