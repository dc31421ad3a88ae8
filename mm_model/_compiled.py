"""Where the model is compiled: ``@compiled`` turns a scalar function into machine code.

Every function of the model that walks memory bears this decorator. With ``NUMBA_DISABLE_JIT=1``
it returns the Python function itself, so that the same code runs under a debugger, coverage or a
mutation tester; a test holds both modes equal. The wrapper is typed as "the function unchanged",
which keeps the rest of the package under ``mypy --strict`` although Numba has no types.

Machine code is kept on disk. Numba itself looks only at the file of the function it compiled, not
at the files of what that function calls, and would go on using code that is out of date; so the
cache lies in a directory named after a digest of all sources of this package. It is below
``NUMBA_CACHE_DIR`` if that is set, else in this package's ``__pycache__``, else (when that is not
writable) in the user's cache directory.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba as _numba

_F = TypeVar("_F", bound=Callable[..., Any])

# Some of the options below are not in Numba's type stubs.
numba: Any = _numba


def _source_digest() -> str:
    digest = hashlib.sha256()
    package = Path(__file__).parent
    for source in sorted(package.rglob("*.py")):
        digest.update(source.relative_to(package).as_posix().encode() + b"\0")
        digest.update(source.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _cache_base() -> Path:
    if numba.config.CACHE_DIR:
        return Path(numba.config.CACHE_DIR)
    package = Path(__file__).parent
    if os.access(package, os.W_OK):
        return package / "__pycache__"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "predump"


CACHE_DIR = _cache_base() / f"mm_model-{_source_digest()}"
"""Where this version's machine code is kept."""


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
    # Numba decides where a function's cache is when it is decorated, by this global setting.
    # It tells functions apart by their place in the source, which those that are built for several
    # architectures (build.py) share.
    _, _, build = function.__module__.rpartition(".")[0].partition(".")
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(CACHE_DIR / build)
    try:
        # Without _nrt: what allocates nothing needs no reference counting, which would cost an
        # atomic operation for each array of the state at each call.
        options |= {"_nrt": _nrt, "nogil": True, "no_cfunc_wrapper": True}
        decorate = numba.njit(cache=True, **options)
        return cast("_F", decorate(function))
    finally:
        numba.config.CACHE_DIR = before


def is_enabled() -> bool:
    """Whether functions are compiled at all (``NUMBA_DISABLE_JIT`` is not set)."""
    return not bool(numba.config.DISABLE_JIT)
