"""Which model meets a recording: from its architecture and kernel, and what the caller changes.

Keys of ``--set`` are the fields of `mm_model.ModelConfig`, so whatever the model can be told can be
told here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, Final

from mm_model import PROFILES, ModelConfig
from predump.overrides import Override, parse_override

FRAMES: Final = 1 << 14
SWAP_SLOTS: Final = 1 << 14
"""More than a scenario touches: the recorded kernels were never short of memory."""

_ARCHES: Final = {"aarch64": "arm64", "arm64": "arm64", "x86_64": "x86_64"}
_FIELDS: Final = {field.name: field for field in fields(ModelConfig)}
_ALIASES: Final = {"profile": "kernel", "kernel.profile": "kernel", "cpu.dbm": "dbm"}


HUNK_NEEDS: Final[dict[str, dict[str, Any]]] = {
    # Without translations that CPUs remember there is nothing to flush.
    "clear-refs-no-tlb-flush": {"tlb_entries": 64},
}
"""Settings without which a hunk, or a mistake around them, cannot be off."""


class SettingError(ValueError):
    """A setting that the model does not have; ``str()`` is one line."""


def profile_of(release: str) -> str:
    """The model's profile for a kernel release such as ``6.12.117``.

    A version between two profiles behaves like the older of them, one before all like the first.
    """
    version = _version(release)
    numbered = sorted((_version(name), name) for name in PROFILES if name[0].isdigit())
    older = [name for number, name in numbered if number <= version]
    return older[-1] if older else numbered[0][1]


def _version(release: str) -> tuple[int, int]:
    major, _, rest = release.partition(".")
    minor = "".join(ch for ch in rest.partition(".")[0] if ch.isdigit())
    if not major.isdecimal() or not minor:
        raise SettingError(f"kernel {release!r} of the trace is no version; use --set kernel=...")
    return int(major), int(minor)


def settings_of(arch: str, release: str, page_size: int) -> dict[str, Any]:
    """What a recording's own description says about the model."""
    settings: dict[str, Any] = {
        "kernel": profile_of(release),
        "page_size": page_size,
        "frames": FRAMES,
        "swap_slots": SWAP_SLOTS,
    }
    if arch not in _ARCHES:
        raise SettingError(f"arch {arch!r} of the trace: must be one of {', '.join(_ARCHES)}")
    settings["arch"] = _ARCHES[arch]
    return settings


def parse_settings(sets: Iterable[str], hunks_off: str = "") -> dict[str, Any]:
    """``--set key=value`` arguments and ``--hunks-off a,b`` as keywords of `ModelConfig`."""
    settings = dict(_setting(parse_override(argument)) for argument in sets)
    if hunks_off:
        settings["hunks_off"] = _names(hunks_off) | settings.get("hunks_off", frozenset())
    return settings


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip() for name in text.split(",") if name.strip())


def _setting(override: Override) -> tuple[str, Any]:
    key = _ALIASES.get(override.key, override.key.replace("hunks.off", "hunks_off"))
    if key not in _FIELDS:
        near = difflib.get_close_matches(key, _FIELDS, n=1, cutoff=0.0)
        raise SettingError(
            f"--set {override.key}: the model has no such setting; did you mean {near[0]!r}?"
        )
    value: Any = override.value
    default = _FIELDS[key].default
    if key == "hunks_off":
        return key, _names(override.text)
    if isinstance(default, str):
        return key, override.as_text().value
    if type(value) is not type(default):
        kind = "true or false" if isinstance(default, bool) else "a whole number"
        raise SettingError(f"--set {override.key}={override.text}: must be {kind}")
    return key, value


def build_config(settings: Mapping[str, Any]) -> ModelConfig:
    """The model's configuration; SettingError in one line if it cannot be."""
    try:
        return ModelConfig(**settings)
    except ValueError as error:
        raise SettingError(str(error)) from error


def settings_words(settings: Mapping[str, Any]) -> str:
    """The settings that differ from the model's defaults, as ``kernel=6.1 dbm=false``."""
    words = []
    for key, value in settings.items():
        if key in ("frames", "swap_slots") or value == _FIELDS[key].default:
            continue
        shown = ",".join(sorted(value)) if isinstance(value, frozenset) else value
        words.append(f"{key}={str(shown).lower() if isinstance(shown, bool) else shown}")
    return " ".join(words)
