"""Recording scenarios on a kernel that runs in a guest: scripts, or random operations."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from livemigration.operations import MODEL_ONLY, Op, OperationError, parse_op
from predump.conform.guest import Guest, GuestInfo
from predump.conform.operations import Vocabulary, generate, script, themes_for
from predump.conform.trace import TraceError

SNAPSHOTS: Final = ("snap", "csnap")
_NAME_LIMIT: Final = 60


@dataclass(frozen=True, slots=True)
class Request:
    """A scenario to record: script lines, with ``snap`` and ``csnap`` where the state is read."""

    name: str
    lines: tuple[str, ...]


def read_script(path: Path) -> list[Request]:
    """The scenarios of a script file: ``name X`` starts one, ``#`` a comment.

    TraceError in one line if it is none.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TraceError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is no text"
        raise TraceError(f"{path}: cannot be read: {reason}") from error
    found: dict[str, list[str]] = {}
    lines: list[str] | None = None
    for number, raw in enumerate(text.splitlines(), start=1):
        line = " ".join(raw.partition("#")[0].split())
        if not line:
            continue
        where = f"{path}, line {number}"
        word, _, rest = line.partition(" ")
        if word == "name":
            lines = _new_scenario(where, rest, found)
        elif lines is None:
            raise TraceError(f"{where}: {line!r} comes before the first `name`")
        elif line in SNAPSHOTS:
            lines.append(line)
        else:
            try:
                lines.append(_probed(parse_op(line)).script())
            except OperationError as error:
                raise TraceError(f"{where}: {error}") from error
    if not found:
        raise TraceError(f"{path}: has no scenario; `name X` starts one")
    return [Request(name, tuple(lines)) for name, lines in found.items()]


def _probed(op: Op) -> Op:
    """The operation, if the probe has it."""
    for name in (op.verb, op.kind):
        if name in MODEL_ONLY:
            raise OperationError(f"{op.script()!r}: the probe has no {name!r}")
    return op


def _new_scenario(where: str, name: str, found: dict[str, list[str]]) -> list[str]:
    if not name or " " in name or '"' in name or "\\" in name or len(name) > _NAME_LIMIT:
        raise TraceError(f"{where}: a name is one word of at most {_NAME_LIMIT} characters")
    if name in found:
        raise TraceError(f"{where}: a second scenario {name!r}")
    return found.setdefault(name, [])


def random_requests(seed: int, count: int, vocabulary: Vocabulary) -> Iterator[Request]:
    """Random scenarios ``random-THEME-SEED``, themes in turn, with a snapshot after every step."""
    themes = themes_for(vocabulary)
    for number in range(seed, seed + count):
        theme = themes[number % len(themes)]
        ops = generate(number, vocabulary, theme)
        yield Request(f"random-{theme.name}-{number}", with_snapshots(ops))


def with_snapshots(ops: Iterable[Op]) -> tuple[str, ...]:
    """The script of ``ops`` with the state of the task and its child read after every one."""
    lines: list[str] = []
    for line in script(ops):
        lines += [line, *SNAPSHOTS]
    return tuple(lines)


def usable_on(guest: GuestInfo, vocabulary: Vocabulary) -> Vocabulary:
    """What of ``vocabulary`` makes sense on this guest: swap only where there is a device."""
    vocabulary = vocabulary.without(*MODEL_ONLY & vocabulary.verbs)
    if guest.swap:
        return vocabulary
    return vocabulary.without("swapoff", "swapon", "pageout")


def record(
    guest: Guest,
    requests: Iterable[Request],
    path: Path,
    on_scenario: Callable[[str], None] = lambda name: None,
) -> int:
    """Run ``requests`` on the guest and write the trace; how many scenarios it has."""
    records = []
    for request in requests:
        on_scenario(request.name)
        records.append(guest.run(request.name, request.lines))
    write_trace(path, records)
    return len(records)


def write_trace(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """One record a line, compressed if the name ends in ``.gz``."""
    text = "".join(json.dumps(each, separators=(",", ":")) + "\n" for each in records)
    data = text.encode()
    # Without a time in it the same recording is the same file.
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
