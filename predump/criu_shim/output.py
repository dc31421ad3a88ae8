"""Where the shim's lines go: errors to standard error, as CRIU does without a log file."""

from __future__ import annotations

import sys


def say_error(text: str) -> None:
    """One line, in CRIU's form."""
    line = text if text.startswith("Error (") else f"Error (predump): {text}"
    print(line, file=sys.stderr)
