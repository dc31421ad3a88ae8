"""The generic code, once for each architecture, as a kernel is built.

Generic modules import their architecture from ``mm_model.asm`` and name none. As imported they are
built for arm64. ``per_arch`` turns an entry point of such a module into one that also serves
machines of another architecture: at the first call for one it executes the modules' source again
under other names (``mm_model.x86.build.memory``...), with ``mm_model.asm`` leading elsewhere. So
each architecture's helpers are compiled in, at no cost while running, and a machine's ``Arch``
decides by its ``isa`` which of the two it enters.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar, cast

from mm_model.arch import ARM64, X86_64, Arch
from mm_model.state import TLB_GENERATION

_F = TypeVar("_F", bound=Callable[..., Any])

SHARED = frozenset(
    {
        "_compiled",
        "code_cache",
        "arch",
        "block",
        "errors",
        "frames",
        "hunks",
        "mmap",
        "rmap",
        "shmem",
        "state",
        "uapi",
    }
)
"""Modules that no architecture changes: one copy serves all."""

_PACKAGES = {X86_64: "x86"}


class _Build:
    """The generic modules for one architecture, made as they are asked for."""

    def __init__(self, package: str) -> None:
        self._package = package

    def module(self, name: str) -> ModuleType:
        """This architecture's twin of the generic module ``mm_model.NAME``."""
        full = f"mm_model.{self._package}.build.{name}"
        if full in sys.modules:
            return sys.modules[full]
        spec = importlib.util.find_spec(f"mm_model.{name}")
        if spec is None or spec.origin is None or spec.loader is None:
            raise ModuleNotFoundError(f"no module mm_model.{name}", name=full)
        module = ModuleType(full, sys.modules[f"mm_model.{name}"].__doc__)
        module.__file__ = spec.origin
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": self._import}
        code = cast("Any", spec.loader).get_code(f"mm_model.{name}")
        sys.modules[full] = module
        try:
            exec(code, module.__dict__)  # noqa: S102  (what importing a module does)
        except BaseException:
            del sys.modules[full]
            raise
        return module

    def _import(
        self,
        name: str,
        globals: dict[str, Any] | None = None,  # noqa: A002  (the names of __import__)
        locals: dict[str, Any] | None = None,  # noqa: A002
        fromlist: tuple[str, ...] = (),
        level: int = 0,
    ) -> ModuleType:
        package, _, rest = name.partition(".")
        if package != "mm_model" or not fromlist:
            return builtins.__import__(name, globals, locals, fromlist, level)
        head, _, tail = rest.partition(".")
        if head == "asm":
            return importlib.import_module(f"mm_model.{self._package}.{tail}")
        if tail:
            raise ImportError(f"generic code must not import {name}: use mm_model.asm", name=name)
        if head in SHARED:
            return importlib.import_module(name)
        return self.module(head)


def per_arch(function: _F) -> _F:
    """``function(arch, ...)`` of a generic module, for machines of every architecture."""
    home, name = function.__module__, function.__name__
    built: dict[int, Callable[..., Any]] = {ARM64: function}

    @functools.wraps(function)
    def call(arch: Arch, *arguments: Any) -> Any:
        target = built.get(arch.isa)
        if target is None:
            build = _Build(_PACKAGES[arch.isa])
            if home.startswith("mm_model.arm64."):
                twin = importlib.import_module(home.replace("arm64", _PACKAGES[arch.isa]))
            else:
                twin = build.module(home.removeprefix("mm_model."))
            target = built[arch.isa] = getattr(twin, name)
        return target(arch, *arguments)

    return cast("_F", call)


def flushing(function: _F) -> _F:
    """``per_arch`` for a function ``(arch, phys, ...)`` that takes permissions or frames away.

    Afterwards no CPU remembers a translation (tlb.py).
    """
    target = per_arch(function)

    @functools.wraps(function)
    def call(arch: Arch, phys: Any, *arguments: Any) -> Any:
        phys.ctr[TLB_GENERATION] += 1
        return target(arch, phys, *arguments)

    return cast("_F", call)
