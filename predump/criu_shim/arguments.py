"""The command line of `criu`, as getopt_long reads it (criu/config.c of CRIU 4.2).

Options may stand before and after the command, long ones may be shortened, and the value of an
optional one is attached to it. What is not CRIU's is refused, as there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from predump.criu_shim.errors import ShimError

COMMANDS: Final = (
    "dump",
    "pre-dump",
    "restore",
    "check",
    "page-server",
    "service",
    "dedup",
    "lazy-pages",
    "cpuinfo",
)

_SHORT: Final = {
    "t": "tree",
    "s": "leave-stopped",
    "R": "leave-running",
    "d": "restore-detached",
    "S": "restore-sibling",
    "D": "images-dir",
    "W": "work-dir",
    "o": "log-file",
    "J": "join-ns",
    "r": "root",
    "x": "ext-unix-sk",
    "h": "help",
    "v": "verbosity",
    "V": "version",
    "j": "shell-job",
    "l": "file-locks",
    "L": "libdir",
    "M": "ext-mount-map",
}


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_WITH_VALUE: Final = _names(
    """tree images-dir work-dir log-file join-ns root close pidfile veth-pair action-script address
    port prev-images-dir libdir ext-mount-map cgroup-root inherit-fd feature skip-mnt enable-fs
    freeze-cgroup ghost-limit irmap-scan-path lsm-profile lsm-mount-context timeout external
    empty-ns cgroup-props cgroup-props-file cgroup-dump-controller cgroup-yard status-fd ps-socket
    config tls-cacert tls-cacrl tls-cert tls-key pre-dump-mode file-validation network-lock
    """
)
_MAYBE_VALUE: Final = frozenset({"ext-unix-sk", "cpu-cap", "manage-cgroups", "verbosity"})
_SWITCHES: Final = _names(
    """restore-detached restore-sibling daemon tcp-established log-pid evasive-devices link-remap
    shell-job file-locks page-server track-mem auto-dedup force-irmap extra experimental
    skip-in-flight deprecated display-stats weak-sysctls tcp-close tls tls-no-cn-verify
    mntns-compat-mode unprivileged ghost-fiemap stream allow-uprobes"""
)
"""Those that ``--no-`` turns off again."""
_ALONE: Final = _names(
    """leave-stopped leave-running help version exec-cmd enable-external-sharing
    enable-external-masters lazy-pages all no-default-config skip-file-rwx-check
    """
)
_LONG: Final = (
    _WITH_VALUE | _MAYBE_VALUE | _SWITCHES | _ALONE | frozenset(f"no-{name}" for name in _SWITCHES)
)


@dataclass(slots=True)
class Arguments:
    """What was given. `values`: every value of an option, in order; `on`: options that are set."""

    command: str = ""
    rest: list[str] = field(default_factory=list)
    values: dict[str, list[str]] = field(default_factory=dict)
    on: set[str] = field(default_factory=set)
    verbosity: int = 2

    def value(self, name: str, default: str = "") -> str:
        """The last value of an option."""
        return self.values.get(name, [default])[-1]

    def all(self, name: str) -> list[str]:
        """Every value of an option."""
        return self.values.get(name, [])

    def number(self, name: str, *, least: int, most: int) -> int | None:
        """The last value as a number; None if it was not given. Raises ShimError."""
        text = self.value(name)
        if name not in self.values:
            return None
        if not text.isascii() or not text.isdecimal() or not least <= int(text) <= most:
            raise ShimError(f"invalid argument for --{name}: {text}")
        return int(text)


class UsageError(ShimError):
    """Arguments that are no command line of criu's."""


def parse(argv: Sequence[str]) -> Arguments:
    """`argv` without the program's name. Raises UsageError."""
    found = Arguments()
    left = list(argv)
    while left:
        argument = left.pop(0)
        if argument == "--":
            found.rest += left
            break
        if argument.startswith("--"):
            name, has_value, value = argument[2:].partition("=")
            _take(found, _full_name(name), value if has_value else None, left)
        elif argument.startswith("-") and argument != "-":
            _take_short(found, argument[1:], left)
        else:
            found.rest.append(argument)
    if found.rest:
        found.command = found.rest.pop(0)
    return found


def _full_name(name: str) -> str:
    if name in _LONG:
        return name
    matches = [known for known in _LONG if known.startswith(name)] if name else []
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UsageError(f"option '--{name}' is ambiguous")
    raise UsageError(f"unrecognized option '--{name}'")


def _take_short(found: Arguments, letters: str, left: list[str]) -> None:
    while letters:
        letter, letters = letters[0], letters[1:]
        if letter not in _SHORT:
            raise UsageError(f"invalid option -- '{letter}'")
        name = _SHORT[letter]
        if name in _WITH_VALUE or name in _MAYBE_VALUE:
            _take(found, name, letters or None, left)
            return
        _take(found, name, None, left)


def _take(found: Arguments, name: str, value: str | None, left: list[str]) -> None:
    if name in _WITH_VALUE:
        if value is None:
            if not left:
                raise UsageError(f"option '--{name}' requires an argument")
            value = left.pop(0)
        found.values.setdefault(name, []).append(value)
        return
    if name == "verbosity":
        _more_verbose(found, value)
        return
    if value is not None and name not in _MAYBE_VALUE:
        raise UsageError(f"option '--{name}' doesn't allow an argument")
    if value is not None:
        found.values.setdefault(name, []).append(value)
    if name.startswith("no-") and name[3:] in _SWITCHES:
        found.on.discard(name[3:])
    elif name == "daemon":
        found.on.add("restore-detached")
    else:
        found.on.add(name)


def _more_verbose(found: Arguments, value: str | None) -> None:
    """``-v`` once more, ``-vvv`` as often as there are letters, ``-v4`` as it says."""
    if value is None:
        found.verbosity += 1
    elif value.startswith("v"):
        found.verbosity += len(value) + 1
    elif value.isdecimal():
        found.verbosity = int(value)
    else:
        raise UsageError(f"invalid argument for -v: {value}")
