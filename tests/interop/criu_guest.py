"""A guest kernel with soft-dirty tracking, real CRIU, a network and a folder shared with the host.

The guest is Debian's stock kernel with busybox; its /init (`guest_init.sh`) executes shell lines
that come over the console. CRIU of each version runs with the libraries that it was built for.
10.0.2.2 is the host's loopback address there, /share a folder of the host.
"""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from predump.conform.boot import Console, GuestConfig
from predump.conform.initramfs import Entry, console_entries, cpio, module_entries

HERE: Final = Path(__file__).parent
HOST: Final = "10.0.2.2"
PATIENCE_S: Final = 180.0
"""Emulated, on a machine that others use too."""
_MODULES: Final = (
    "virtio_pci", "virtio_net", "9p", "9pnet_virtio",
    # How CRIU asks for the sockets of a task.
    "unix_diag", "inet_diag", "tcp_diag", "udp_diag", "raw_diag", "netlink_diag", "af_packet_diag",
    # What it tries when it looks at what the kernel can do.
    "nfnetlink", "nf_tables", "tun", "veth",
)  # fmt: skip


class GuestFailed(AssertionError):
    """A command in the guest ended with another status than 0; the message has its output."""


def build(source: Path, program: Path) -> Path:
    """Compiles a program, statically: it needs no library where it runs."""
    command = ["gcc", "-O2", "-static", "-Wall", "-Wextra", "-Werror", "-o", program, source]
    subprocess.run(command, check=True)
    return program


class CriuGuest:
    """Runs shell lines in a booted guest."""

    def __init__(self, console: Console, share: Path) -> None:
        self._console = console
        self.share = share
        """The guest's /share."""

    def sh(self, line: str, seconds: float = PATIENCE_S) -> str:
        """What the guest's shell says to ``line``; GuestFailed if its status is not 0."""
        status, said = self.status(line, seconds)
        if status:
            raise GuestFailed(f"{line}: status {status}\n{said}")
        return said

    def status(self, line: str, seconds: float = PATIENCE_S) -> tuple[int, str]:
        """Status and output of ``line``."""
        self._console.send(f"{line}\n".encode())
        status, said = self._console.answer("@@STATUS", seconds)
        return int(status), "\n".join(said)


@contextmanager
def boot(
    kernel: Path, busybox: Path, criu: Mapping[str, Path], programs: Mapping[str, Path]
) -> Iterator[CriuGuest]:
    """A guest with ``criu`` (folders of `scripts/criu.sh root`, by version) and ``programs``.

    ``criu-VERSION`` runs one; programs are in /bin by their names here.
    """
    with tempfile.TemporaryDirectory(prefix="predump-criu-guest-") as name:
        folder = Path(name)
        share = folder / "share"
        share.mkdir()
        config = GuestConfig(kernel, devices=_devices(share))
        config.check()
        initramfs = folder / "initramfs"
        initramfs.write_bytes(cpio(_entries(config.modules_folder, busybox, criu, programs)))
        console = Console(config, initramfs)
        try:
            console.boot("@@READY")
            yield CriuGuest(console, share)
        finally:
            console.stop()


def _devices(share: Path) -> tuple[str, ...]:
    return (
        "-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=",
        "-fsdev", f"local,id=share,path={share},security_model=none",
        "-device", "virtio-9p-pci,fsdev=share,mount_tag=share",
    )  # fmt: skip


def _entries(
    modules: Path | None, busybox: Path, criu: Mapping[str, Path], programs: Mapping[str, Path]
) -> dict[str, Entry]:
    entries = {
        **console_entries(),
        **module_entries(modules, _MODULES),
        "bin": Entry(stat.S_IFDIR | 0o755),
        "bin/busybox": _program(busybox.read_bytes()),
        "init": _program((HERE / "guest_init.sh").read_bytes()),
        "functions.sh": _program((HERE / "guest_functions.sh").read_bytes()),
        "criu": Entry(stat.S_IFDIR | 0o755),
    }
    for name, path in programs.items():
        entries[f"bin/{name}"] = _program(path.read_bytes())
    for version, root in criu.items():
        folder = f"criu/{version}"
        entries[folder] = Entry(stat.S_IFDIR | 0o755)
        linker, libraries = _libraries(root)
        for path in (root / "usr/sbin/criu", linker, *libraries):
            entries[f"{folder}/{path.name}"] = _program(path.read_bytes())
        started = f'exec /{folder}/{linker.name} --library-path /{folder} /{folder}/criu "$@"\n'
        entries[f"bin/criu-{version}"] = _program(f"#!/bin/sh\n{started}".encode())
    return entries


def _program(data: bytes) -> Entry:
    return Entry(stat.S_IFREG | 0o755, data)


def _libraries(root: Path) -> tuple[Path, list[Path]]:
    """The dynamic linker of an unpacked CRIU, and the libraries that criu needs."""
    folder = root / "usr/lib/x86_64-linux-gnu"
    linker = folder / "ld-linux-x86-64.so.2"
    command = [linker, "--library-path", folder, "--list", root / "usr/sbin/criu"]
    listed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    found = [line.split(" => ")[1].split(" (")[0] for line in listed.splitlines() if "=>" in line]
    return linker, [Path(path) for path in found if os.path.basename(path) != linker.name]
