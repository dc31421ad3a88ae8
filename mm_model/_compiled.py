"""Where the model is compiled: ``@compiled`` turns a scalar function into machine code.

Every function of the model that walks memory bears this decorator. With ``NUMBA_DISABLE_JIT=1``
it returns the Python function itself, so that the same code runs under a debugger, coverage or a
mutation tester; a test holds both modes equal. The wrapper is typed as "the function unchanged",
which keeps the rest of the package under ``mypy --strict`` although Numba has no types.

Machine code is kept on disk. Numba itself looks only at the file of the function it compiled, not
at the files of what that function calls, and would go on using code that is out of date; so the
cache lies in a directory named after a digest of all sources of this package. It is below
``NUMBA_CACHE_DIR`` if that is set, else in the user's cache directory (``XDG_CACHE_HOME`` or
``~/.cache``), else, where neither can be written, in a temporary folder. Every clone and every
installation of the same sources shares it, and only the first of a machine waits for the compiler.
What no run used for `KEEP_DAYS` is removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Self, TypeVar, cast

import numba as _numba
from numba.core.caching import _CacheLocator

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


KEEP_DAYS: Final = 30

_DIGEST: Final = _source_digest()


def _cache_places() -> Iterator[Path]:
    if numba.config.CACHE_DIR:
        yield Path(numba.config.CACHE_DIR)
    if "XDG_CACHE_HOME" in os.environ:
        yield Path(os.environ["XDG_CACHE_HOME"]) / "predump"
    with contextlib.suppress(RuntimeError):  # a user without a home
        yield Path.home() / ".cache" / "predump"
    yield Path(tempfile.gettempdir()) / f"predump-cache-{os.getuid()}"


def _find_cache() -> Path:
    """The first place that takes files; what lay there unused for long is removed."""
    for place in _cache_places():
        directory = place / f"mm_model-{_DIGEST}"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=directory).close()
            os.utime(directory)
            for other in place.glob("mm_model-*"):
                if time.time() - other.stat().st_mtime > KEEP_DAYS * 86400:
                    shutil.rmtree(other, ignore_errors=True)
        except OSError:
            continue
        return directory
    places = ", ".join(map(str, _cache_places()))
    raise OSError(
        f"no place for compiled code: make one of {places} writable, or set XDG_CACHE_HOME"
    )


CACHE_DIR = _find_cache()
"""Where this version's machine code is kept."""


class SourcesLocator(_CacheLocator):
    """Where Numba keeps a function of this package: by module and line, wherever the package is."""

    def __init__(self, function: Callable[..., Any]) -> None:
        # Functions that are built for several architectures (build.py) share their place in the
        # source; their modules differ.
        self._path = CACHE_DIR / function.__module__
        self._line = function.__code__.co_firstlineno

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> Self:
        """The locator of a function; Numba asks for one when the function is decorated."""
        locator = cls(py_func)
        Path(locator.get_cache_path()).mkdir(parents=True, exist_ok=True)
        return locator

    def get_cache_path(self) -> str:
        """The directory of the function's files."""
        return str(self._path)

    def get_source_stamp(self) -> str:
        """What the code was made from: all sources."""
        return _DIGEST

    def get_disambiguator(self) -> str:
        """Tells functions of one name in one module apart."""
        return str(self._line)


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
    # Numba decides where a function's cache is when it is decorated, by this global setting.
    before = numba.config.CACHE_LOCATOR_CLASSES
    numba.config.CACHE_LOCATOR_CLASSES = f"{__name__}.{SourcesLocator.__name__}"
    try:
        decorate = numba.njit(cache=True, **options)
        return cast("_F", decorate(function))
    finally:
        numba.config.CACHE_LOCATOR_CLASSES = before


def is_enabled() -> bool:
    """Whether functions are compiled at all (``NUMBA_DISABLE_JIT`` is not set)."""
    return not bool(numba.config.DISABLE_JIT)
