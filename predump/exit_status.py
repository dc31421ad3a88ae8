"""What the exit status of a command says, beside 0."""

from typing import Final

FAILED: Final = 1
BAD_INPUT: Final = 2
DIFFERS: Final = 3
"""Memory differs, or a model differs from what it was held against."""
INTERRUPTED: Final = 130
"""As shells report a program that SIGINT ended."""
