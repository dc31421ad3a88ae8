"""What can happen to a frame on its way, in a network that is worse than any TCP lets through."""

from __future__ import annotations

from collections.abc import Callable

Damage = Callable[[bytes, list[bytes]], list[bytes]]
"""(the frame, frames held back) -> what is passed on now; may hold frames back in the list."""


def duplicate(message: bytes, held: list[bytes]) -> list[bytes]:
    """Twice."""
    return [message, message]


def reorder(message: bytes, held: list[bytes]) -> list[bytes]:
    """After the one that follows it."""
    held.append(message)
    return []


def truncate(message: bytes, held: list[bytes]) -> list[bytes]:
    """Without its end."""
    return [message[: len(message) * 3 // 4]]


def corrupt(message: bytes, held: list[bytes]) -> list[bytes]:
    """With one bit another one, in the middle of its pages."""
    damaged = bytearray(message)
    damaged[len(damaged) // 2] ^= 0x10
    return [bytes(damaged)]


def swallow(message: bytes, held: list[bytes]) -> list[bytes]:
    """Not at all."""
    return []


DAMAGES: dict[str, Damage] = {
    "duplicate-frames": duplicate,
    "reorder-frames": reorder,
    "truncate-frames": truncate,
    "corrupt-frames": corrupt,
    "swallow-frames": swallow,
}
