"""This container's compose project as the Docker engine has it: its containers, its networks.

Through the Docker API, by the labels that compose gives. Whatever is done is done to a service of
this project, and to no other container. All of it blocks.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

import docker
import requests.exceptions
from docker.errors import APIError, DockerException, NotFound
from docker.models.containers import Container
from docker.models.networks import Network

from predump.faults.lab import NotHere

PROJECT = "com.docker.compose.project"
SERVICE = "com.docker.compose.service"
NETWORK = "com.docker.compose.network"
ONE_OFF = "com.docker.compose.oneoff"
TIMEOUT_S = 60
HOW = "run it with `make faults DOCKER=1`, or see docs/faults.md"


class Project:
    """The containers that are beside this one."""

    def __init__(self, client: docker.DockerClient, own: Container) -> None:
        self._client = client
        self._own = own
        labels = own.labels
        # (An image that compose built has the first two labels, and so has any container of it.)
        if not {PROJECT, SERVICE, ONE_OFF} <= labels.keys():
            raise NotHere(f"--docker works in a container of a compose project: {HOW}")
        self.name = labels[PROJECT]

    @classmethod
    def here(cls) -> Self:
        """That of the container that this process is in; `NotHere` if that cannot be had."""
        try:
            client = docker.from_env(timeout=TIMEOUT_S)
        except DockerException as error:
            raise NotHere(
                f"no Docker engine answers here ({_reason(error)}): its socket must be mounted, "
                f"and this user may use it; {HOW}"
            ) from error
        try:
            return cls(client, client.containers.get(socket.gethostname()))
        except NotFound as error:
            client.close()
            raise NotHere(
                f"--docker works in a container of the engine that it is to use: {HOW}"
            ) from error
        except BaseException:
            client.close()
            raise

    def close(self) -> None:
        """Ends the connection to the engine."""
        self._client.close()

    def own_address(self, network: str) -> str:
        """This container's address on a network of the project."""
        return self._address(self._own, network)

    # -- a service's container

    def address(self, service: str, network: str) -> str:
        """Its address on a network; `NotHere` if it has none: it does not run, or is not on it."""
        return self._address(self._container(service), network)

    def start(self, service: str) -> None:
        """Starts it; nothing if it runs."""
        with _asking(service):
            container = self._container(service)
            if container.status not in ("running", "paused"):
                container.start()

    def kill(self, service: str) -> None:
        """SIGKILL; returns when it is gone. Nothing if it does not run."""
        self.resume(service)  # the engine kills none that is paused
        with _asking(service):
            container = self._container(service)
            if container.status == "running":
                with suppress(NotFound):
                    container.kill()
                container.wait(timeout=TIMEOUT_S)

    def pause(self, service: str) -> None:
        """All its processes stand still."""
        with _asking(service):
            self._container(service).pause()

    def resume(self, service: str) -> None:
        """They go on; nothing if they do not stand still."""
        with _asking(service):
            container = self._container(service)
            if container.status == "paused":
                container.unpause()

    def root(self, service: str, *command: str) -> str:
        """What a command prints that runs in it as root; `NotHere` with what it says if it fails.

        As root of the container, with the few capabilities that its service has.
        """
        with _asking(service):
            ran = self._container(service).exec_run(list(command), user="root")
        assert isinstance(ran.output, bytes)
        said = ran.output.decode(errors="replace").strip()
        if ran.exit_code != 0:
            first = said.partition("\n")[0]
            raise NotHere(f"{service}: {' '.join(command)}: {first or ran.exit_code}")
        return said

    # -- its place on a network

    def connected(self, service: str, network: str) -> bool:
        """Whether it is on the network."""
        return self._network(network).name in _networks(self._container(service))

    def disconnect(self, service: str, network: str) -> None:
        """Takes it off the network."""
        with _asking(service):
            self._network(network).disconnect(self._container(service))

    def connect(self, service: str, network: str) -> None:
        """Puts it on the network again, under its name; nothing if it is on it."""
        with _asking(service):
            if not self.connected(service, network):
                self._network(network).connect(self._container(service), aliases=[service])

    def device(self, service: str, network: str) -> str:
        """The interface that it has there, ``eth1``. It need not be up."""
        address = self.address(service, network)
        for device in json.loads(self.root(service, "ip", "-json", "-4", "address", "show")):
            if any(each.get("local") == address for each in device["addr_info"]):
                return str(device["ifname"])
        raise NotHere(f"{service} has no interface with the address {address}")

    # -- looking them up

    def _container(self, service: str) -> Container:
        wanted = [f"{PROJECT}={self.name}", f"{SERVICE}={service}", f"{ONE_OFF}=False"]
        with _asking(service):
            found = self._client.containers.list(all=True, filters={"label": wanted})
        if not found:
            raise NotHere(f"the project {self.name} has no container for {service}: {HOW}")
        return found[0]

    def _network(self, name: str) -> Network:
        wanted = [f"{PROJECT}={self.name}", f"{NETWORK}={name}"]
        with _asking(name):
            found = self._client.networks.list(filters={"label": wanted})
        if not found:
            raise NotHere(f"the project {self.name} has no network {name}: {HOW}")
        return found[0]

    def _address(self, container: Container, network: str) -> str:
        place = _networks(container).get(self._network(network).name or "")
        address = str(place["IPAddress"]) if place else ""
        if not address:
            raise NotHere(f"{container.name} has no address on the network {network}")
        return address


def _networks(container: Container) -> dict[str, Any]:
    networks: dict[str, Any] = container.attrs["NetworkSettings"]["Networks"]
    return networks


@contextmanager
def _asking(what: str) -> Iterator[None]:
    """An engine that refuses, or is gone, is one line."""
    try:
        yield
    except (DockerException, requests.exceptions.RequestException) as error:
        raise NotHere(f"the Docker engine, asked for {what}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """What the engine says, or else the system; in one line."""
    if isinstance(error, APIError) and error.explanation:
        return " ".join(str(error.explanation).split())
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, OSError) and below.strerror:  # under what three libraries say of it
            return below.strerror
        below = below.__cause__ or below.__context__
    return " ".join(str(error).split())
