"""What can be chosen on the page, and what it says of each: scenarios, policies, hunks.

The words are those of the specs and of the hunks themselves, so that the page says what the command
line says.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from livemigration.spec import MigrationSpec
from livemigration.spec_errors import kinds, members
from mm_model.hunks import HUNKS, VARIANTS

SHOWN_KEYS = ("memory", "policy.kind", "workload.kind", "workload.rate", "link.bandwidth", "clock")
"""Keys whose values a scenario is known by."""


def policy_kinds() -> tuple[str, ...]:
    """The ready policies, as scenarios name them."""
    return tuple(policy["kind"] for policy in policies())


def policies() -> list[dict[str, Any]]:
    """The ready policies with what they do, and their keys with defaults."""
    models = members(MigrationSpec.model_fields["policy"].annotation)
    return [
        {
            "kind": kind,
            "does": (inspect.getdoc(model) or "").partition("\n")[0],
            "keys": [
                {"name": name, "default": str(key.default), "does": key.description or ""}
                for name, key in model.model_fields.items()
                if name != "kind"
            ],
        }
        for model in models
        for kind in kinds(model)
    ]


def hunks() -> list[dict[str, Any]]:
    """The hunks that can be left out, then the likely mistakes around the patch."""
    return [
        {
            "name": hunk.name,
            "file": hunk.file,
            "function": hunk.function,
            "protects": hunk.protects,
            "variant": hunk in VARIANTS,
        }
        for hunk in (*HUNKS, *VARIANTS)
    ]


def scenario_choice(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """A scenario's name and the texts of its best known keys; those that it leaves out are not."""
    keys: dict[str, str] = {}
    for key in SHOWN_KEYS:
        value: Any = fields
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, str | int):
            keys[key] = str(value)
    return {"name": name, "keys": keys}
