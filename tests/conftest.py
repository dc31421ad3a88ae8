"""What all tests share: how Hypothesis searches."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Compilation and two busy cores make single examples slow: time limits are pytest-timeout's job.
_PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "print_blob": True}

settings.register_profile("predump", settings(max_examples=100), **_PATIENT)
# `make fuzz`: the same properties, many more examples, other ones every time.
settings.register_profile(
    "fuzz",
    settings(max_examples=int(os.environ.get("FUZZ_EXAMPLES", "5000"))),
    derandomize=False,
    **_PATIENT,
)
# CI must not fail by chance: its examples depend on the test alone.
settings.register_profile("ci", settings.get_profile("predump"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "predump")
