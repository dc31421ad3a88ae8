"""Boots a real kernel under QEMU and talks over its serial console.

The guest has one CPU and no disk. Until it says that it is ready, the console shows the kernel's
own messages, whose last lines tell why a boot failed. Where /dev/kvm can be used the guest runs on
it, else it is emulated. Some hosts have a /dev/kvm on which nothing gets anywhere: a guest that is
not up there in seconds is booted again under emulation.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from typing import Final

from predump.conform.initramfs import GuestError

ARCHES: Final = ("x86_64", "arm64")

_MEMORY: Final = "768M"
_KVM: Final = Path("/dev/kvm")
_QEMU: Final = {"x86_64": "qemu-system-x86_64", "arm64": "qemu-system-aarch64"}
_PACKAGES: Final = {"x86_64": "qemu-system-x86", "arm64": "qemu-system-arm"}
_NATIVE: Final = {"x86_64": "x86_64", "arm64": "aarch64"}
_KVM_SECONDS: Final = 15.0
"""A guest on KVM is up in one or two."""
# A guest that its host lets wait looks locked up to itself; saying so would damage an answer.
_QUIET: Final = "panic=-1 loglevel=4 nokaslr nowatchdog mitigations=off audit=0 swapaccount=0"
# Nor does an emulated timer tick in time on a busy host, which a kernel takes for a broken one.
_TIMER: Final = "no_timer_check"


@dataclass(frozen=True, slots=True)
class GuestConfig:
    """Which kernel to boot, and how.

    ``modules``       its /lib/modules/VERSION; None: `modules_of` the image, where there is one
    ``accelerator``   ``kvm``, ``tcg`` (emulation), or "" for the first that works
    ``boot_seconds``  how long the kernel may take until the guest answers
    ``hang_seconds``  after how long an operation is taken to hang
    ``dbm``           arm64: a CPU with hardware dirty-bit management
    ``devices``       more of QEMU's options: the guest has no device but its console otherwise
    """

    kernel: Path
    arch: str = "x86_64"
    modules: Path | None = None
    accelerator: str = ""
    boot_seconds: float = 300.0
    hang_seconds: int = 20
    dbm: bool = True
    devices: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise GuestError for what cannot be booted."""
        if self.arch not in ARCHES:
            raise GuestError(f"--arch {self.arch}: must be one of {', '.join(ARCHES)}")
        if not self.kernel.is_file():
            raise GuestError(f"{self.kernel}: there is no such kernel image")
        if self.modules is not None and not self.modules.is_dir():
            raise GuestError(f"{self.modules}: there is no such folder of modules")

    @property
    def modules_folder(self) -> Path | None:
        """Where its modules are, if it has any here."""
        return self.modules or modules_of(self.kernel)


def modules_of(image: Path) -> Path | None:
    """The modules that came with ``image`` (``boot/vmlinuz-VERSION``), if they are there."""
    version = image.name.partition("-")[2]
    for root in (image.resolve().parent.parent, Path("/")):
        for folder in (root / "lib" / "modules", root / "usr" / "lib" / "modules"):
            if version and (folder / version).is_dir():
                return folder / version
    return None


def kvm_usable(arch: str) -> bool:
    """Whether a virtual machine of ``arch`` can be made on /dev/kvm here."""
    import fcntl

    create_vm = 0xAE01
    if platform.machine() != _NATIVE[arch]:
        return False
    try:
        device = os.open(_KVM, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.close(fcntl.ioctl(device, create_vm, 0))
    except OSError:
        return False
    finally:
        os.close(device)
    return True


def qemu_command(config: GuestConfig, accelerator: str, initramfs: Path) -> list[str]:
    """The command line that boots the guest with its console on standard input and output."""
    program = shutil.which(_QEMU[config.arch])
    if program is None:
        package = _PACKAGES[config.arch]
        raise GuestError(
            f"{_QEMU[config.arch]} is missing: install it (Debian: apt-get install {package})"
        )
    if config.arch == "arm64":
        cpu = "host" if accelerator == "kvm" else "max" if config.dbm else "cortex-a57"
        machine, console = ["-M", "virt", "-cpu", cpu], "ttyAMA0"
    else:
        cpu = "host" if accelerator == "kvm" else "qemu64"
        machine, console = ["-M", "pc", "-cpu", cpu], f"ttyS0 {_TIMER}"
    # The guest must not outlive us, however we end.
    bound = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
    return [
        *bound, program, *machine, "-accel", accelerator, "-m", _MEMORY, "-smp", "1",
        "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", *config.devices,
        "-serial", "stdio", "-kernel", str(config.kernel), "-initrd", str(initramfs),
        "-append", f"console={console} {_QUIET}",
    ]  # fmt: skip


class Console:
    """A guest and its console. `boot` starts it, again if it ran; `stop` ends it."""

    def __init__(self, config: GuestConfig, initramfs: Path) -> None:
        self._config = config
        self._initramfs = initramfs
        self.accelerator = config.accelerator or ("kvm" if kvm_usable(config.arch) else "tcg")
        self._process: subprocess.Popen[bytes] | None = None
        self._pending = b""
        self._said: deque[str] = deque(maxlen=60)
        self.boots = 0

    def boot(self, marker: str) -> str:
        """Boot, and wait until the guest says a line with ``marker``: what follows it there."""
        seconds = self._config.boot_seconds
        if self.accelerator == "kvm" and not self._config.accelerator:
            try:
                return self._boot(marker, min(seconds, _KVM_SECONDS))
            except GuestError:
                self.accelerator = "tcg"
        return self._boot(marker, seconds)

    def _boot(self, marker: str, seconds: float) -> str:
        self.stop()
        command = qemu_command(self._config, self.accelerator, self._initramfs)
        self._pending = b""
        self._said.clear()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.boots += 1
        return self.answer(marker, seconds)[0]

    def send(self, request: bytes) -> None:
        """Write to the console."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        try:
            process.stdin.write(request)
            process.stdin.flush()
        except BrokenPipeError:
            raise GuestError(f"the guest is gone: {self._last_words()}") from None

    def answer(self, marker: str, seconds: float) -> tuple[str, Sequence[str]]:
        """What follows ``marker`` on the next line that has it, and all lines before it."""
        deadline = time.monotonic() + seconds
        before: list[str] = []
        while True:
            line = self._read_line(deadline)
            start = line.find(f"{marker} ")
            if start >= 0:
                before += [line[:start]] if start else []  # a line that had no end
                return line[start + len(marker) + 1 :], before
            before.append(line)
            self._said.append(line.strip())

    def stop(self) -> None:
        """End the guest."""
        process = self._process
        self._process = None
        if process is None:
            return
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()

    def _read_line(self, deadline: float) -> str:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        pieces = [self._pending]
        with DefaultSelector() as selector:
            selector.register(process.stdout, EVENT_READ)
            while b"\n" not in pieces[-1]:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise GuestError(f"the guest does not answer: {self._last_words()}")
                piece = os.read(process.stdout.fileno(), 1 << 16)
                if not piece:
                    self._said.append(b"".join(pieces).decode(errors="replace").strip())
                    raise GuestError(f"the guest is gone: {self._last_words()}")
                pieces.append(piece)
        line, _, self._pending = b"".join(pieces).partition(b"\n")
        return line.decode(errors="replace").rstrip("\r")

    def _last_words(self) -> str:
        told = [line for line in self._said if line]
        panic = [line for line in told if "kernel panic" in line.lower() or "qemu" in line.lower()]
        return (panic or told or ["it said nothing"])[-1][:200]
