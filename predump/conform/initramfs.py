"""The initramfs of `predump conform record`: our probe as /init, and the modules it loads.

Archives are in cpio's "newc" format, which the kernel unpacks (Documentation/driver-api/
early-userspace/buffer-format.rst). The probe is compiled from `probe.c`, statically.
"""

from __future__ import annotations

import gzip
import lzma
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROBE_SOURCE: Final = Path(__file__).with_name("probe.c")
SWAP_MODULE: Final = "zram"
_COMPILERS: Final = {
    "x86_64": ("x86_64-linux-gnu-gcc", "gcc"),
    "arm64": ("aarch64-linux-gnu-gcc",),
}
_NATIVE: Final = {"x86_64": "x86_64", "aarch64": "arm64"}


class GuestError(RuntimeError):
    """The kernel cannot be booted or asked; ``str()`` is one line."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, folder or device node of the archive."""

    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def cpio(entries: Mapping[str, Entry]) -> bytes:
    """A newc archive of ``entries``, by path."""
    parts: list[bytes] = []
    for inode, (name, entry) in enumerate({**entries, "TRAILER!!!": Entry(0)}.items(), start=1):
        path = name.encode() + b"\0"
        fields = [inode, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0, *entry.device, len(path), 0]
        head = b"070701" + b"".join(b"%08X" % field for field in fields)
        parts += [_padded(head + path), _padded(entry.data)]
    return b"".join(parts)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def build_initramfs(arch: str, modules: Path | None) -> bytes:
    """The compressed archive for a kernel of ``arch``, with its swap device's modules.

    ``modules`` is the kernel's ``/lib/modules/VERSION``, or None if all it needs is built in.
    """
    entries = {
        **console_entries(),
        "init": Entry(stat.S_IFREG | 0o755, compile_probe(arch)),
        **module_entries(modules, [SWAP_MODULE]),
    }
    return gzip.compress(cpio(entries), 1)


def console_entries() -> dict[str, Entry]:
    """What /init needs to have standard input and output."""
    return {
        "dev": Entry(stat.S_IFDIR | 0o755),
        "dev/console": Entry(stat.S_IFCHR | 0o600, device=(5, 1)),
    }


def module_entries(modules: Path | None, names: Iterable[str]) -> dict[str, Entry]:
    """The modules ``names`` and what they need, in /modules; /modules/order says in which order.

    What ``modules`` does not have is taken to be built into the kernel.
    """
    loaded: list[Path] = []
    for name in names:
        chain = module_chain(modules, name) if modules else ()
        loaded += [path for path in chain if path not in loaded]
    order = "".join(f"{path.stem}\n" for path in loaded)
    return {
        "modules": Entry(stat.S_IFDIR | 0o755),
        **{
            f"modules/{path.stem}": Entry(stat.S_IFREG | 0o644, _module_data(path))
            for path in loaded
        },
        "modules/order": Entry(stat.S_IFREG | 0o644, order.encode()),
    }


def compile_probe(arch: str) -> bytes:
    """The probe as a static program for ``arch``."""
    compiler = _compiler(arch)
    with tempfile.TemporaryDirectory(prefix="predump-probe-") as folder:
        program = Path(folder) / "probe"
        command = [compiler, "-O2", "-static", "-s", "-o", str(program), str(PROBE_SOURCE)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            last = (ran.stderr.strip().splitlines() or ["no message"])[-1]
            raise GuestError(f"{compiler} cannot compile the probe: {last}")
        return program.read_bytes()


def _compiler(arch: str) -> str:
    import platform

    native = _NATIVE.get(platform.machine()) == arch
    for name in (*_COMPILERS[arch], *(["gcc", "cc"] if native else [])):
        if (name != "gcc" or native) and shutil.which(name):
            return name
    package = "gcc" if native else "gcc-aarch64-linux-gnu"
    raise GuestError(f"no C compiler for {arch}: install it (Debian: apt-get install {package})")


def module_chain(modules: Path, name: str) -> Iterable[Path]:
    """The files of a module and of those that it depends on, in the order to load them."""
    files = {_module_name(path): path for path in sorted(modules.rglob("*.ko*"))}
    done: list[str] = []

    def visit(wanted: str) -> None:
        if wanted in done or wanted not in files:
            return  # built into the kernel
        for needed in _depends(_module_data(files[wanted])):
            visit(needed)
        done.append(wanted)

    visit(name)
    return [files[each] for each in done]


def _module_name(path: Path) -> str:
    return path.name.partition(".ko")[0].replace("-", "_")


def _module_data(path: Path) -> bytes:
    data = path.read_bytes()
    match path.suffix:
        case ".xz":
            return lzma.decompress(data)
        case ".gz":
            return gzip.decompress(data)
        case ".ko":
            return data
        case suffix:
            raise GuestError(f"{path}: modules compressed as {suffix} cannot be unpacked here")


def _depends(module: bytes) -> list[str]:
    """``depends=a,b`` of a module's .modinfo section."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    text = found.group(1).decode() if found else ""
    return [name.replace("-", "_") for name in text.split(",") if name]
