"""The pytest plugin: Predump's hosts as fixtures. Installed with the package, found by pytest.

Imports nothing heavy: it is loaded into every pytest run of an environment that has Predump.
docs/pytest.md shows it in use.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from predump.testing.broker import Broker
    from predump.testing.criu import CriuHost
    from predump.testing.network import Faults
    from predump.testing.nodes import Node
    from predump.testing.pair import Pair

_MARKERS: Final = (
    "predump_hunks_off(*names): the model in this test's predump_pair lacks these hunks of the "
    "patch (`predump hunks list` names them)",
    "predump_tasks(*scenarios): scenario files of the tasks that this test's predump_criu_rpc or "
    "predump_criu begins with; without, one small task",
    "predump_network(cut_after=0, cuts=1, silent=False, bytes_per_s=0, spared=0): the network of "
    "this test's predump_pair breaks after so many bytes, falls silent, or is slow",
)


def pytest_configure(config: pytest.Config) -> None:
    """Says which markers there are."""
    for marker in _MARKERS:
        config.addinivalue_line("markers", marker)


def _folder(request: pytest.FixtureRequest, name: str) -> Path:
    factory: pytest.TempPathFactory = request.getfixturevalue("tmp_path_factory")
    return factory.mktemp(name)


@pytest.fixture
def predump_source(request: pytest.FixtureRequest) -> Iterator[Node]:
    """A source host, `predump_source.address`, without a task."""
    from predump.testing.nodes import running_node

    with running_node("source", _folder(request, "predump-source")) as node:
        yield node


@pytest.fixture
def predump_destination(request: pytest.FixtureRequest) -> Iterator[Node]:
    """A destination host, `predump_destination.address`, with a state directory of its own."""
    from predump.testing.nodes import running_node

    folder = _folder(request, "predump-destination")
    with running_node("dest", folder, "--state-dir", folder / "state") as node:
        yield node


@pytest.fixture(scope="session")
def _predump_lasting_pair() -> Iterator[_Lasting]:
    with ExitStack() as stack:
        yield _Lasting(stack)


@pytest.fixture
def predump_pair(request: pytest.FixtureRequest, _predump_lasting_pair: _Lasting) -> Iterator[Pair]:
    """A source and a destination to migrate between: `predump_pair.migrate(scenario)`.

    The two processes serve one test after another; they are started anew where a test has ended
    one or left a task, or a migration has had no result. The markers `predump_hunks_off` and
    `predump_network` say what is wrong with this test's.
    """
    from predump.testing.network import faulty_network
    from predump.testing.pair import Pair

    with ExitStack() as stack:
        pair = _predump_lasting_pair.pair(request)
        faults = _faults(request)
        network = None
        if faults is not None:
            network = stack.enter_context(faulty_network(pair.destination.address, faults))
        mine = Pair(pair.source, pair.destination, network, _hunks_off(request))
        yield mine
        pair.worn |= mine.worn


@pytest.fixture
def predump_broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """An MQTT broker (Mosquitto) of the test's own: `predump_broker.url`."""
    from predump.testing.broker import running_broker

    with running_broker(_folder(request, "predump-broker")) as broker:
        yield broker


@pytest.fixture
def predump_criu_rpc(request: pytest.FixtureRequest) -> Iterator[CriuHost]:
    """A host that speaks CRIU's RPC on `.socket`, with simulated tasks (`.pids`)."""
    from predump.testing.criu import running_criu_host
    from predump.testing.pair import SMALL

    folder = _folder(request, "criu")
    scenarios = [
        scenario
        for marker in request.node.iter_markers("predump_tasks")
        for scenario in marker.args
    ]
    if not scenarios:
        small = folder / "small.toml"
        small.write_text(SMALL)
        scenarios = [small]
    with running_criu_host(folder, scenarios) as host:
        yield host


@pytest.fixture
def predump_criu(predump_criu_rpc: CriuHost, monkeypatch: pytest.MonkeyPatch) -> CriuHost:
    """The same, with a `criu` on PATH that asks it: what the test starts finds no other."""
    for name in ("PATH", "PREDUMP_CRIU_SOCKET"):
        monkeypatch.setenv(name, predump_criu_rpc.environment[name])
    return predump_criu_rpc


class _Lasting:
    """The session's pair of nodes."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._pair: Pair | None = None

    def pair(self, request: pytest.FixtureRequest) -> Pair:
        """The pair, both of its nodes alive."""
        from predump.testing.pair import running_pair

        if self._pair is not None:
            nodes = (self._pair.source, self._pair.destination)
            dead = any(node.process.poll() is not None for node in nodes)
            # A test may have spoken to the nodes by itself, and have left them a task.
            if dead or self._pair.worn or not self._pair.is_idle():
                self._stack.close()
                self._pair = None
        if self._pair is None:
            self._pair = self._stack.enter_context(running_pair(_folder(request, "predump-pair")))
        return self._pair


def _hunks_off(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Names from all markers on the test, its class and its module."""
    names = [
        name for marker in request.node.iter_markers("predump_hunks_off") for name in marker.args
    ]
    return tuple(dict.fromkeys(names))


def _faults(request: pytest.FixtureRequest) -> Faults | None:
    from predump.testing.network import Faults

    marker: Any = request.node.get_closest_marker("predump_network")
    if marker is None:
        return None
    try:
        return Faults(*marker.args, **marker.kwargs)
    except (TypeError, ValueError) as error:
        raise pytest.UsageError(f"predump_network: {error}") from error
