"""Where the model is compiled: ``@compiled`` turns a scalar function into machine code.

Every function of the model that walks memory bears this decorator. With ``NUMBA_DISABLE_JIT=1``
it returns the Python function itself, so that the same code runs under a debugger, coverage or a
mutation tester; a test holds both modes equal. The wrapper is typed as "the function unchanged",
which keeps the rest of the package under ``mypy --strict`` although Numba has no types.

Machine code is kept on disk (`code_cache`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

from mm_model.code_cache import cached_njit

_F = TypeVar("_F", bound=Callable[..., Any])


def compiled(function: _F) -> _F:
    """Compile ``function`` in nopython mode, cached on disk, releasing the GIL while it runs.

    It is told not to become part of its callers: where Numba first meets a function in one that is
    ``inlined``, it hands that down, and all that a rare path needs would end up in every loop.
    """
    return _njit(function, forceinline=False)


def inlined(function: _F) -> _F:
    """The same for a small function on a hot path: it becomes part of each compiled caller.

    The state tuples are passed by value, word by word, so that a call that stays a call costs
    more than most of these functions do.
    """
    return _njit(function, forceinline=True)


def elementwise(function: _F) -> _F:
    """The same for a helper without branches that also takes arrays: those it makes are counted."""
    return _njit(function, forceinline=True, _nrt=True)


def _njit(function: _F, *, _nrt: bool = False, **options: bool) -> _F:
    # Without _nrt: what allocates nothing needs no reference counting, which would cost an atomic
    # operation for each array of the state at each call.
    options |= {"_nrt": _nrt, "nogil": True, "no_cfunc_wrapper": True}
    return cached_njit(function, **options)


def is_enabled() -> bool:
    """Whether functions are compiled at all (``NUMBA_DISABLE_JIT`` is not set)."""
    return not bool(vars(numba.config)["DISABLE_JIT"])
