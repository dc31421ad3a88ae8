"""Where machine code made by Numba is kept, so that it is compiled once on a machine.

Numba itself looks only at the file of the function that it compiled, not at the files of what that
function calls, and would go on using code that is out of date; and it keeps the code of each copy
of the sources apart. Here the cache lies in a directory named after a digest of all sources of
`mm_model`, and within it by module. It is below ``NUMBA_CACHE_DIR`` if that is set, else in the
user's cache directory (``XDG_CACHE_HOME`` or ``~/.cache``), else, where neither can be written, in
a temporary folder. Every clone and every installation of the same sources shares it, and only the
first of a machine waits for the compiler. What no run used for `KEEP_DAYS` is removed.

Packages above the model keep theirs here, too: of a function outside of `mm_model`, its own file
counts as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final, Self, TypeVar, cast

import numba as _numba
from numba.core.caching import _CacheLocator

_F = TypeVar("_F", bound=Callable[..., Any])

# Some of what is used below is not in Numba's type stubs.
numba: Any = _numba


_PACKAGE: Final = Path(__file__).parent


@cache
def _file_digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _source_digest() -> str:
    digest = hashlib.sha256()
    for source in sorted(_PACKAGE.rglob("*.py")):
        digest.update(source.relative_to(_PACKAGE).as_posix().encode() + b"\0")
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
    """Where Numba keeps a function: by module and line, wherever its package is."""

    def __init__(self, function: Callable[..., Any]) -> None:
        # Functions that are built for several architectures (build.py) share their place in the
        # source; their modules differ.
        self._path = CACHE_DIR / function.__module__
        self._line = function.__code__.co_firstlineno
        self._file = Path(function.__code__.co_filename)

    @classmethod
    def from_function(cls, py_func: Callable[..., Any], py_file: str) -> Self:
        """The locator of a function; Numba asks for one when the function is decorated."""
        return cls(py_func)

    def get_cache_path(self) -> str:
        """The directory of the function's files."""
        return str(self._path)

    def get_source_stamp(self) -> str:
        """What the code was made from, beside the sources that the directory is named after."""
        return "" if _PACKAGE in self._file.parents else _file_digest(self._file)

    def get_disambiguator(self) -> str:
        """Tells functions of one name in one module apart."""
        return str(self._line)


def cached_njit(function: _F, **options: bool) -> _F:
    """``function`` as `numba.njit` compiles it with ``options``, kept in this cache."""
    # Numba decides where a function's cache is when it is decorated, by this global setting.
    before = numba.config.CACHE_LOCATOR_CLASSES
    numba.config.CACHE_LOCATOR_CLASSES = f"{__name__}.{SourcesLocator.__name__}"
    try:
        return cast("_F", numba.njit(cache=True, **options)(function))
    finally:
        numba.config.CACHE_LOCATOR_CLASSES = before
