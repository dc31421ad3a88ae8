"""What any gRPC tool can ask a node: whether it serves, and what."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from livemigration.v1 import destination_node_pb2, source_node_pb2
from tests.e2e.node import Node, node

ROLES = ("source", "dest")
SERVICES = {
    "source": source_node_pb2.DESCRIPTOR.services_by_name["SourceNode"],
    "dest": destination_node_pb2.DESCRIPTOR.services_by_name["DestinationNode"],
}
TELEMETRY = "livemigration.v1.NodeTelemetry"
STANDARD = {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Node]]:
    folder = tmp_path_factory.mktemp("nodes")
    with node("source", folder) as source, node("dest", folder) as dest:
        yield {"source": source, "dest": dest}


def _health(address: str, service: str) -> int:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        status: int = reply.status
        return status


def _reflect(address: str, request: reflection_pb2.ServerReflectionRequest) -> Any:
    with grpc.insecure_channel(address) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        (reply,) = stub.ServerReflectionInfo(iter([request]), timeout=10)
        return reply


def _ask(*arguments: str) -> tuple[int, str]:
    """Status and standard error of the command that container health checks use."""
    ran = subprocess.run(
        [sys.executable, "-m", "predump.health", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return ran.returncode, ran.stderr


@pytest.mark.parametrize("role", ROLES)
def test_a_node_says_that_it_serves_as_a_whole_and_by_service(
    nodes: dict[str, Node], role: str
) -> None:
    serving = health_pb2.HealthCheckResponse.SERVING
    assert _health(nodes[role].address, "") == serving
    assert _health(nodes[role].address, SERVICES[role].full_name) == serving


@pytest.mark.parametrize("role", ROLES)
def test_a_node_knows_nothing_of_the_other_ones_service(nodes: dict[str, Node], role: str) -> None:
    (other,) = set(ROLES) - {role}
    with pytest.raises(grpc.RpcError) as refused:
        _health(nodes[role].address, SERVICES[other].full_name)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("role", ROLES)
def test_reflection_lists_the_services(nodes: dict[str, Node], role: str) -> None:
    reply = _reflect(nodes[role].address, reflection_pb2.ServerReflectionRequest(list_services=""))
    listed = {service.name for service in reply.list_services_response.service}
    assert listed == {SERVICES[role].full_name, TELEMETRY} | STANDARD


@pytest.mark.parametrize("role", ROLES)
def test_reflection_gives_the_contract_of_every_method(nodes: dict[str, Node], role: str) -> None:
    wanted = SERVICES[role]
    reply = _reflect(
        nodes[role].address,
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=wanted.full_name),
    )
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(data)
        for data in reply.file_descriptor_response.file_descriptor_proto
    ]
    methods = {
        method.name for file in files for service in file.service for method in service.method
    }
    assert methods == {method.name for method in wanted.methods}


def test_the_health_command_has_a_status_for_each_answer(nodes: dict[str, Node]) -> None:
    assert _ask(nodes["dest"].address) == (0, "")
    status, line = _ask("127.0.0.1:1")
    assert status == 1
    assert line.startswith("127.0.0.1:1: ")
    assert line.count("\n") == 1
    for wrong in ((), ("a:1", "b:2"), ("a:1", "--tls"), ("a:1", "--tls-ca")):
        status, line = _ask(*wrong)
        assert (status, line.startswith("usage: "), line.count("\n")) == (2, True, 1)
    status, line = _ask("127.0.0.1:1", "--tls-ca", "/no/such/file")
    assert (status, line) == (1, "/no/such/file: cannot be read: No such file or directory\n")


@pytest.mark.parametrize("role", ROLES)
def test_a_node_that_is_told_to_stop_ends_well_and_takes_its_address_back(
    role: str, tmp_path: Path
) -> None:
    with node(role, tmp_path) as serving:
        files = {file.name for file in tmp_path.glob("*.address")}
        assert files == {f"{role}-0.address"}
    assert serving.process.returncode == 0
    assert list(tmp_path.glob("*.address*")) == []
    assert serving.log.read_text().count("\n") == 1, "more than the line that says the address"
