"""``--set a.b=value``: one key of a scenario replaced on the command line.

The value is read as TOML (``4``, ``true``, ``["a", "b"]``, ``"text"``) and otherwise taken as the
text that it is, so that ``--set memory=64MiB`` needs no quotes inside quotes.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

_KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


class OverrideError(ValueError):
    """A ``--set`` argument that cannot be used; ``str()`` is one line that says why."""


@dataclass(frozen=True, slots=True)
class Override:
    """One replaced key: its dotted ``key``, the ``text`` given, and the ``value`` it stands for."""

    key: str
    text: str
    value: Any

    @property
    def path(self) -> tuple[str, ...]:
        """The key's parts."""
        return tuple(self.key.split("."))

    def as_text(self) -> "Override":
        """The same, with the text itself as value (``kernel.profile=6.12`` is not a number)."""
        return replace(self, value=self.text)

    def covers(self, key: str) -> bool:
        """Whether ``key`` is the one that this replaces, lies under it, or is a table above it."""
        return f"{key}.".startswith(f"{self.key}.") or f"{self.key}.".startswith(f"{key}.")


def parse_override(argument: str) -> Override:
    """``"link.bandwidth=10Gbit/s"`` as an Override; OverrideError if it is not KEY=VALUE."""
    key, equals, text = argument.partition("=")
    key, text = key.strip(), text.strip()
    if not equals or not _KEY.fullmatch(key):
        raise OverrideError(
            f"--set {argument!r}: not KEY=VALUE; write for example --set link.bandwidth=10Gbit/s"
        )
    return Override(key, text, _toml_value(text))


def _toml_value(text: str) -> Any:
    """What ``text`` is as a TOML value, or ``text`` itself when it is none."""
    try:
        document = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    # A line break in the text could smuggle in further keys; then it is no single value.
    return document["value"] if set(document) == {"value"} else text


def apply_overrides(data: Mapping[str, Any], overrides: Iterable[Override]) -> dict[str, Any]:
    """A copy of ``data`` with each override put in, tables made as needed.

    OverrideError if a key goes through something that is not a table.
    """
    result = dict(data)
    for override in overrides:
        *tables, last = override.path
        table = result
        for depth, name in enumerate(tables):
            inner = table.get(name, {})
            if not isinstance(inner, Mapping):
                parent = ".".join(tables[: depth + 1])
                raise OverrideError(f"--set {override.key}: {parent} is not a table")
            table[name] = dict(inner)
            table = table[name]
        table[last] = override.value
    return result
