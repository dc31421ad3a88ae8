"""A real kernel under QEMU that executes scenarios: the other half of `probe.c`.

Requests and answers go over its serial console.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from predump.conform.boot import Console, GuestConfig
from predump.conform.initramfs import GuestError, build_initramfs

MAX_REQUEST: Final = 3500
"""Bytes of a request: what the guest's terminal takes without losing any."""


@dataclass(frozen=True, slots=True)
class GuestInfo:
    """What the probe says about the machine it runs on."""

    arch: str
    kernel: str
    page_size: int
    swap: bool


class Guest:
    """A booted kernel. Use as a context manager; `restart` after it died."""

    def __init__(self, config: GuestConfig) -> None:
        config.check()
        self._config = config
        self._folder = tempfile.TemporaryDirectory(prefix="predump-guest-")
        self._initramfs = Path(self._folder.name) / "initramfs.gz"
        self._console = Console(config, self._initramfs)
        self.info: GuestInfo | None = None

    @property
    def accelerator(self) -> str:
        """``kvm`` or ``tcg``."""
        return self._console.accelerator

    @property
    def boots(self) -> int:
        """How often it was booted."""
        return self._console.boots

    def __enter__(self) -> Self:
        try:
            archive = build_initramfs(self._config.arch, self._config.modules_folder)
            self._initramfs.write_bytes(archive)
            self.restart()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def restart(self) -> GuestInfo:
        """Boot (again) and wait for the probe."""
        answer = json.loads(self._console.boot("@@READY"))
        self.info = GuestInfo(
            answer["arch"], answer["kernel"], answer["page_size"], bool(answer["swap"])
        )
        return self.info

    def run(
        self, name: str, lines: Iterable[str], hang_seconds: int | None = None
    ) -> dict[str, Any]:
        """Execute a scenario (script lines and ``snap``, ``csnap``); the record of it.

        It is ended after ``hang_seconds`` (default: the configuration's). GuestError if the kernel
        does not answer; after that only `restart` helps.
        """
        seconds = hang_seconds or self._config.hang_seconds
        head = f"run {seconds} {name}"
        request = "\n".join((head, *lines, "end", "")).encode()
        if len(request) > MAX_REQUEST:
            raise GuestError(f"scenario {name!r}: more than {MAX_REQUEST} bytes of script")
        self._console.send(request)
        # Emulated, taking down a scenario that hangs may take as long again.
        text, _ = self._console.answer("@@T", 6 * seconds + 60)
        try:
            record: dict[str, Any] = json.loads(text)
        except ValueError as error:
            raise GuestError(
                f"scenario {name!r}: the guest's answer is damaged: {error}"
            ) from error
        return record

    def close(self) -> None:
        """End the guest and remove its files."""
        self._console.stop()
        self._folder.cleanup()
