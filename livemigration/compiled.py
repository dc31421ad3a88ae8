"""``@compiled``: scalar loops over arrays as machine code, for this package.

Like the model's own decorator (`mm_model._compiled`), but with Numba's run time for arrays, since
functions here allocate and return them. The GIL is released while they run. With
``NUMBA_DISABLE_JIT=1`` the functions run as plain Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

_F = TypeVar("_F", bound=Callable[..., Any])


def compiled(function: _F) -> _F:
    """Compile ``function`` in nopython mode, cached on disk."""
    return cast("_F", numba.njit(cache=True, nogil=True)(function))


def compiled_brief(function: _F) -> _F:
    """The same, but the GIL is kept: for loops of some ten microseconds.

    Where two threads work side by side, getting it back takes as long as such a loop.
    """
    return cast("_F", numba.njit(cache=True)(function))
