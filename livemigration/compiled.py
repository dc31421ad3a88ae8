"""``@compiled``: scalar loops over arrays as machine code, for this package and those above it.

Like the model's own decorator (`mm_model._compiled`), but with Numba's run time for arrays, since
functions here allocate and return them. The GIL is released while they run, and the code is kept
beside the model's (`mm_model.code_cache`). With ``NUMBA_DISABLE_JIT=1`` the functions run as plain
Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from mm_model.code_cache import cached_njit

_F = TypeVar("_F", bound=Callable[..., Any])


def compiled(function: _F) -> _F:
    """Compile ``function`` in nopython mode, cached on disk."""
    return cached_njit(function, nogil=True)


def compiled_brief(function: _F) -> _F:
    """The same, but the GIL is kept: for loops of some ten microseconds.

    Where two threads work side by side, getting it back takes as long as such a loop.
    """
    return cached_njit(function)
