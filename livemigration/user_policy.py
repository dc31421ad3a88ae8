"""A user's own policy: a Python class that a scenario names as ``kind = "module:Class"``.

The class needs a method ``decide(view)`` that takes a `RoundView` and returns a `Decision`; the
further keys of the scenario's ``[policy]`` are handed to its constructor. ``counts_dirty`` and
``pre_dumps`` are taken from it if it has them, and are true otherwise. docs/policies.md shows one.

A module is a file in a folder, or an installed module, and only *places* that the caller names are
looked into: the scenario's folder for a run on this machine, and for a node what whoever started it
allowed (``--policies``). A request to a node can therefore name a class, and never bring code or
choose where code comes from. A file is read once for each policy: its SHA-256 is that of the code
that runs, and no state of one migration is left to the next.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.abc import ExecutionLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from livemigration.errors import PolicyFailed, WrongState
from livemigration.policy import Decision, RoundView
from livemigration.spec import UserPolicySpec
from livemigration.spec_errors import unknown_name


class PolicyError(ValueError):
    """A policy of the user's that cannot be used; ``str()`` is one line."""


class _OneFile(ExecutionLoader):
    """Makes a module of a file's text that was read already; writes no bytecode beside it."""

    def __init__(self, path: Path, text: bytes) -> None:
        self._path = path
        self._text = text

    def get_filename(self, fullname: str) -> str:
        return str(self._path)

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(self._text)


@dataclass(frozen=True, slots=True)
class FoundModule:
    """Where a policy's module is. `place` is a folder, or the name of an installed module."""

    name: str
    place: str
    file: Path
    sha256: str

    def load(self) -> ModuleType:
        """The module, made anew if it is a file in a folder. PolicyError if it cannot be."""
        try:
            if self.place == self.name:
                return importlib.import_module(self.name)
            return self._made_anew()
        except PolicyError:
            raise
        except Exception as error:
            raise PolicyError(f"{self.file} cannot be imported: {_where(error, self.file)}") from (
                error
            )

    def _made_anew(self) -> ModuleType:
        text = self.file.read_bytes()
        if hashlib.sha256(text).hexdigest() != self.sha256:
            raise PolicyError(f"{self.file} changed while it was being read; try again")
        # Not under its own name: it must neither hide an installed module nor a file of the same
        # name in another folder.
        name = f"predump_policy_{self.sha256[:16]}.{self.name}"
        spec = importlib.util.spec_from_file_location(
            name, self.file, loader=_OneFile(self.file, text)
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up there
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module


def module_name(spec: UserPolicySpec) -> str:
    """The module in ``module:Class``."""
    return spec.kind.partition(":")[0]


def find_module(name: str, places: Sequence[str]) -> FoundModule | None:
    """The first of `places` that has the module: a folder with its file, or its own name."""
    for place in places:
        file = _installed(name) if place == name else _in_folder(name, Path(place))
        if file is not None:
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            return FoundModule(name, place, file, digest)
    return None


def _in_folder(name: str, folder: Path) -> Path | None:
    path = folder.joinpath(*name.split("."))
    for file in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None


def _installed(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # a parent is missing, or is no package
        return None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return None
    return Path(spec.origin)


def load_policy(spec: UserPolicySpec, places: Sequence[str]) -> UserPolicy:
    """The policy that `spec` names, made of what `places` have.

    PolicyError if there is none such; WrongState if `places` is empty: nothing was allowed.
    """
    name = module_name(spec)
    if not places:
        raise WrongState(
            f"policy {spec.kind}: this node runs no policies of its callers; start it with "
            f"--policies FOLDER, the folder that has {name.replace('.', '/')}.py"
        )
    found = find_module(name, places)
    if found is None:
        raise PolicyError(f"there is no module {name} in {', '.join(places)}")
    if spec.module_sha256 not in ("", found.sha256):
        raise PolicyError(
            f"{found.file} is not the file that the scenario was read with; make both the same"
        )
    return UserPolicy(spec.kind, _construct(spec, _class_of(spec, found)))


def _class_of(spec: UserPolicySpec, found: FoundModule) -> type[Any]:
    name = spec.kind.partition(":")[2]
    module = found.load()
    made = getattr(module, name, None)
    if not isinstance(made, type):
        classes = [key for key, value in vars(module).items() if _is_policy(value)]
        what = f"{found.file}: {unknown_name('class', name, classes)}"
        raise PolicyError(what if classes else f"{found.file} has no class {name}")
    if not _is_policy(made):
        raise PolicyError(f"{found.file}: {name} has no method decide(self, view)")
    return made


def _is_policy(value: object) -> bool:
    """Whether it is a class whose `decide` takes a view."""
    decide = getattr(value, "decide", None)
    if not isinstance(value, type) or not callable(decide):
        return False
    try:
        inspect.signature(decide).bind(None, None)
    except TypeError:
        return False
    return True


def _construct(spec: UserPolicySpec, made: type[Any]) -> Any:
    options = spec.options
    try:
        signature = inspect.signature(made)
    except ValueError:  # written in C: it will say itself
        signature = None
    if signature is not None:
        _check_options(spec.kind, signature, options)
    try:
        return made(**options)
    except Exception as error:
        raise PolicyError(f"{spec.kind}: refused its keys: {_told(error)}") from error


def _check_options(kind: str, signature: inspect.Signature, options: dict[str, Any]) -> None:
    parameters = signature.parameters.values()
    named = {p.name: p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for key in options:
            if key not in named:
                known = unknown_name("key", key, list(named)) if named else f"takes no key {key!r}"
                raise PolicyError(f"{kind}: {known}")
    for key, parameter in named.items():
        if parameter.default is parameter.empty and key not in options:
            raise PolicyError(f"{kind}: needs the key {key!r}")


class UserPolicy:
    """A user's policy as the migration sees it: what it says is checked before it is followed."""

    def __init__(self, kind: str, own: Any) -> None:
        self.name = kind
        self.counts_dirty = bool(getattr(own, "counts_dirty", True))
        self.pre_dumps = bool(getattr(own, "pre_dumps", True))
        self._own = own

    def decide(self, view: RoundView) -> Decision:
        """What the user's class says. PolicyFailed if it fails or says something else."""
        try:
            said = self._own.decide(view)
        except Exception as error:
            raise PolicyFailed(
                f"policy {self.name} failed after round {view.round}: {_where(error)}"
            ) from error
        if not isinstance(said, Decision):
            raise PolicyFailed(
                f"policy {self.name} returned {type(said).__name__} after round {view.round}; "
                "it must return a livemigration.policy.Decision"
            )
        throttle: object = said.throttle_percent
        if not isinstance(throttle, int) or not 0 <= throttle <= 99:
            raise PolicyFailed(
                f"policy {self.name} asked to slow the task down by {throttle} %; "
                "it must be a whole number from 0 to 99"
            )
        return replace(said, freeze=bool(said.freeze), reason=" ".join(str(said.reason).split()))


def _told(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _where(error: Exception, file: Path | None = None) -> str:
    """The error in one line, and the line of code that raised it."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {' '.join(str(error.msg).split())}"
    trace, lines = error.__traceback__, []
    while trace is not None:
        code = trace.tb_frame.f_code
        lines.append((code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    if file is not None:
        lines = [line for line in lines if line[0] == str(file)]
    if not lines:
        return _told(error)
    name, number = lines[-1]
    return f"{_told(error)} ({Path(name).name}, line {number})"
