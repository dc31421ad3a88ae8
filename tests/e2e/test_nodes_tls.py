"""Nodes with TLS and mutual TLS: migrations work, and who is not who they should be gets one line
while the source keeps its task.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from livemigration.channel import open_channel
from livemigration.struct_message import struct_message
from livemigration.tls import TlsConfig, channel_credentials
from livemigration.v1 import common_pb2, source_node_pb2, source_node_pb2_grpc
from predump.health import check
from predump.result import Result
from predump.scenario import load_scenario
from tests.e2e.node import SCENARIO, Ended, Node, node, predump


@dataclass(frozen=True)
class Pki:
    """An authority with a certificate for every host, and another one that nobody trusts."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Pki:
        for authority, names in (("ca", ("source", "dest", "runner")), ("other", ("stranger",))):
            made = trustme.CA()
            made.cert_pem.write_to_path(folder / f"{authority}.pem")
            for name in names:
                issued = made.issue_cert("localhost")
                issued.private_key_pem.write_to_path(folder / f"{name}.key")
                issued.cert_chain_pems[0].write_to_path(folder / f"{name}.pem")
        return cls(folder)

    def own(self, name: str) -> list[str | Path]:
        """Options that show a certificate."""
        return ["--tls-cert", self.folder / f"{name}.pem", "--tls-key", self.folder / f"{name}.key"]

    def trust(self, name: str = "ca") -> list[str | Path]:
        """Options that trust an authority."""
        return ["--tls-ca", self.folder / f"{name}.pem"]

    @property
    def ask(self) -> list[str | Path]:
        """Options that let only callers of the authority in."""
        return ["--tls-client-ca", self.folder / "ca.pem"]


@dataclass(frozen=True)
class Nodes:
    """A network of nodes, some of which do not fit together."""

    scenario: Path
    tls_source: Node  # trusts the authority
    tls_dest: Node
    mutual_source: Node
    mutual_dest: Node
    plain_source: Node
    wary_source: Node  # plain port, trusts another authority
    bare_source: Node  # plain port, trusts the authority, has no certificate


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki.make(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def nodes(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("nodes")
    scenario = folder / "small.toml"
    scenario.write_text(SCENARIO)
    options: dict[str, list[str | Path]] = {
        "tls_source": [*pki.own("source"), *pki.trust()],
        "tls_dest": pki.own("dest"),
        "mutual_source": [*pki.own("source"), *pki.ask],
        "mutual_dest": [*pki.own("dest"), *pki.ask],
        "plain_source": [],
        "wary_source": pki.trust("other"),
        "bare_source": pki.trust(),
    }
    with ExitStack() as stack:
        started = {
            name: stack.enter_context(node(name.rpartition("_")[2], folder, *arguments))
            for name, arguments in options.items()
        }
        yield Nodes(scenario, **started)


def run(nodes: Nodes, source: Node, dest: Node, *options: str | Path) -> Ended:
    hosts = ("--source", source.address, "--dest", dest.address)
    return predump("run", nodes.scenario, *hosts, "--json", "-", *options)


# -- who fits together


def test_a_migration_over_tls_is_verified(nodes: Nodes, pki: Pki) -> None:
    ended = run(nodes, nodes.tls_source, nodes.tls_dest, *pki.trust())
    assert ended.status == 0, ended.err
    result = Result.from_json(ended.out)
    assert result.verified
    assert result.continued_equal is True
    assert result.owner == "destination"


def test_a_migration_over_mutual_tls_is_verified(nodes: Nodes, pki: Pki) -> None:
    options = [*pki.trust(), *pki.own("runner")]
    ended = run(nodes, nodes.mutual_source, nodes.mutual_dest, *options)
    assert ended.status == 0, ended.err
    assert Result.from_json(ended.out).continued_equal is True


def test_migrate_takes_the_same_options(nodes: Nodes, pki: Pki) -> None:
    hosts = ("--source", nodes.mutual_source.address, "--dest", nodes.mutual_dest.address)
    ended = predump(
        *("migrate", *hosts, "--scenario", nodes.scenario), *pki.trust(), *pki.own("runner")
    )
    assert ended.status == 0, ended.err
    assert "Verified" in ended.out


def test_a_health_check_can_use_tls(nodes: Nodes, pki: Pki) -> None:
    tls = TlsConfig(pki.folder / "ca.pem")
    assert check(nodes.tls_dest.address, tls) == ""
    assert nodes.mutual_dest.address in check(nodes.mutual_dest.address, tls)


# -- callers that do not fit the source


def test_a_caller_that_is_not_let_in_gets_one_line(nodes: Nodes, pki: Pki) -> None:
    attempts = {
        "another authority": (nodes.tls_source, pki.trust("other")),
        "no certificate": (nodes.mutual_source, pki.trust()),
        "a certificate of another authority": (
            nodes.mutual_source,
            [*pki.trust(), *pki.own("stranger")],
        ),
        "no TLS": (nodes.tls_source, []),
        "TLS to a plain node": (nodes.plain_source, pki.trust()),
    }
    for what, (source, options) in attempts.items():
        ended = run(nodes, source, nodes.tls_dest, *options)
        assert (ended.status, ended.out) == (1, ""), what
        progress, line = ended.err.splitlines()
        assert progress == "small: the source builds the task", what
        assert line.startswith(f"predump: error: source {source.address}: not reachable ("), what


# -- a source that the destination does not let in: it keeps its task


async def _migrate(nodes: Nodes, source: Node, dest: Node, tls: TlsConfig | None) -> str:
    """The error of a migration after which the task runs on at the source."""
    scenario = load_scenario(nodes.scenario)
    credentials = channel_credentials(tls) if tls else None
    spec = struct_message(scenario.task.to_struct())
    migration = struct_message(scenario.migration.to_struct())
    async with open_channel(source.address, credentials) as channel:
        stub: source_node_pb2_grpc.SourceNodeAsyncStub = source_node_pb2_grpc.SourceNodeStub(
            channel
        )
        await stub.StartTask(source_node_pb2.StartTaskRequest(spec=spec, clock="virtual"))
        try:
            request = source_node_pb2.MigrateRequest(destination=dest.address, spec=migration)
            results = [e.result async for e in stub.Migrate(request) if e.HasField("result")]
            task = await stub.GetTask(source_node_pb2.GetTaskRequest())
        finally:
            await stub.StopTask(source_node_pb2.StopTaskRequest())
    (result,) = results
    assert not result.verified
    assert result.ownership == task.ownership == common_pb2.OWNERSHIP_STATE_RUNNING
    assert task.running
    return result.error


@pytest.mark.parametrize(
    ("source", "dest"),
    [
        ("plain_source", "tls_dest"),  # no TLS
        ("wary_source", "tls_dest"),  # another authority
        ("bare_source", "mutual_dest"),  # no certificate
        ("bare_source", "plain_source"),  # TLS to a plain port
    ],
)
async def test_a_source_that_is_not_let_in_keeps_its_task(
    nodes: Nodes, source: str, dest: str
) -> None:
    there: Node = getattr(nodes, dest)
    error = await _migrate(nodes, getattr(nodes, source), there, None)
    assert error.startswith(f"destination {there.address} is lost: not reachable (")
    assert error.endswith("; the source kept the task and resumed it")
    assert "\n" not in error


async def test_after_a_refusal_the_source_can_migrate_to_a_node_that_lets_it_in(
    nodes: Nodes,
) -> None:
    scenario = load_scenario(nodes.scenario)
    requests = []
    for dest in (nodes.mutual_dest, nodes.tls_dest):
        request = source_node_pb2.MigrateRequest(destination=dest.address)
        request.spec.update(scenario.migration.to_struct())
        requests.append(request)
    async with open_channel(nodes.bare_source.address) as channel:
        stub: source_node_pb2_grpc.SourceNodeAsyncStub = source_node_pb2_grpc.SourceNodeStub(
            channel
        )
        start = source_node_pb2.StartTaskRequest(clock="virtual")
        start.spec.update(scenario.task.to_struct())
        await stub.StartTask(start)
        results = []
        for request in requests:
            results += [e.result async for e in stub.Migrate(request) if e.HasField("result")]
        await stub.StopTask(source_node_pb2.StopTaskRequest())
    refused, done = results
    assert "not reachable" in refused.error
    assert (done.verified, done.continued_equal, done.error) == (True, True, "")


def test_the_command_says_who_has_the_task(nodes: Nodes) -> None:
    ended = run(nodes, nodes.plain_source, nodes.tls_dest)
    assert ended.status == 1
    result = Result.from_json(ended.out)
    assert result.owner == "source"
    assert result.error is not None
    assert "not reachable" in result.error
    assert result.continued_equal is None
