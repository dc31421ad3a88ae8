"""What makes the shim fail: one line on standard error, and status 1."""

from __future__ import annotations


class ShimError(Exception):
    """`str` is one line, which is written as CRIU writes its errors."""
