"""Puts an executable `criu` into a directory, for tools that look for it on PATH."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from predump.criu_shim.errors import ShimError
from predump.criu_shim.service_at import SOCKET_VARIABLE


def install(folder: Path, socket: Path | None = None) -> Path:
    """Writes `folder`/criu; returns its path. Raises ShimError.

    It runs with this Python and this Predump, whatever the tool's environment says; `socket` is the
    service that it asks where the environment names none.
    """
    root = Path(__file__).resolve().parents[2]
    program = (
        "import sys; "
        f"sys.path.insert(0, {str(root)!r}); "
        "from predump.criu_shim.main import main; sys.exit(main())"
    )
    lines = ["#!/bin/sh", "# Predump's criu: its tasks are simulated (predump criu shim)."]
    if socket is not None:
        at = shlex.quote(str(socket.absolute()))
        lines.append(f': "${{{SOCKET_VARIABLE}:={at}}}"; export {SOCKET_VARIABLE}')
    lines.append(f'exec {shlex.quote(sys.executable)} -I -c {shlex.quote(program)} "$@"')
    target = folder / "criu"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f".criu.{os.getpid()}"
        part.write_text("\n".join(lines) + "\n")
        part.chmod(0o755)
        part.replace(target)
    except OSError as error:
        raise ShimError(f"{target}: cannot be written: {error.strerror}") from error
    return target
