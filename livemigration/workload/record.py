"""Records which pages a real program writes, by running it under valgrind's lackey.

valgrind follows the main process with all its threads; children are run but not recorded. The
program runs some hundred times slower, its stores are exact. Memory use does not grow with the
length of the run, except by the set of distinct pages.
"""

from __future__ import annotations

import fcntl
import os
import selectors
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from livemigration.workload.lackey import Coalescer, LackeyParser
from livemigration.workload.trace import (
    DEFAULT_RATE,
    Footer,
    Header,
    TraceError,
    TraceWriter,
)

PAGE_SIZE = 4096
DEFAULT_SLICE = 100_000
"""Instructions in a slice: 100 us at `DEFAULT_RATE`, short against any round of a migration."""
_PIECE = 1 << 20
_POLL_S = 0.2
_GATHER_S = 0.004
_TAIL = 4096


class RecordError(TraceError):
    """The program could not be recorded; one line that says what to do."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A finished recording."""

    header: Header
    footer: Footer


@dataclass(slots=True)
class _Sink:
    """Where the output of lackey goes: parser, coalescer, file."""

    parser: LackeyParser
    coalescer: Coalescer
    writer: TraceWriter
    tail: bytes = b""

    def feed(self, piece: bytes) -> None:
        self.tail = (self.tail + piece)[-_TAIL:]
        self.writer.add(self.coalescer.feed(self.parser.feed(piece)))

    def finish(self, *, exit_code: int, complete: bool) -> Footer:
        self.writer.add(self.coalescer.finish())
        return self.writer.finish(
            instructions=self.parser.instructions, exit_code=exit_code, complete=complete
        )


def find_valgrind() -> str:
    """The path of valgrind; RecordError if it is not installed."""
    path = shutil.which("valgrind")
    if path is None:
        raise RecordError(
            "valgrind is not installed; recording needs it (Debian and Ubuntu: "
            "apt-get install valgrind)"
        )
    return path


def record(
    command: Sequence[str],
    output: Path,
    *,
    slice_instructions: int = DEFAULT_SLICE,
    instructions_per_second: int = DEFAULT_RATE,
    stdout: IO[bytes] | IO[str] | int | None = None,
) -> Recording:
    """Run ``command`` and write its trace to ``output``, which appears when it is complete.

    The program has our standard input, output and error (or ``stdout``). A program that fails has a
    trace nevertheless; its exit status is in the footer. Ctrl-C ends the program and keeps what was
    recorded. Raises RecordError if valgrind or the program cannot be run.
    """
    valgrind = find_valgrind()
    if not command:
        raise RecordError("no command to record; give one after --")
    if output.is_dir():
        raise RecordError(f"{output}: is a directory; name a file for the trace")
    if shutil.which(command[0]) is None:
        raise RecordError(f"{command[0]}: no such program; give a command that can be run")
    header = Header(
        tuple(_readable(word) for word in command),
        PAGE_SIZE,
        _version(valgrind),
        instructions_per_second,
        slice_instructions,
    )
    unfinished = output.with_name(output.name + ".part")
    try:
        with unfinished.open("wb") as file:
            sink = _Sink(
                LackeyParser(),
                Coalescer(PAGE_SIZE, slice_instructions),
                TraceWriter(file, header),
            )
            exit_code, complete = _run(valgrind, command, sink, stdout)
            footer = sink.finish(exit_code=exit_code, complete=complete)
        if footer.instructions == 0:
            raise RecordError(f"valgrind recorded nothing of {command[0]}: {_last_line(sink)}")
        unfinished.replace(output)
    except OSError as error:
        raise RecordError(f"{output}: cannot write the trace: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return Recording(header, footer)


def _version(valgrind: str) -> str:
    try:
        said = subprocess.run([valgrind, "--version"], capture_output=True, text=True, check=False)
    except OSError as error:
        raise _cannot_be_run(valgrind, error) from error
    return f"{said.stdout.strip() or 'valgrind'} lackey"


def _cannot_be_run(valgrind: str, error: OSError) -> RecordError:
    return RecordError(f"{valgrind}: cannot be run: {error.strerror}; install valgrind anew")


def _readable(word: str) -> str:
    """A word of a command line, which need not be UTF-8, as text."""
    return os.fsencode(word).decode("utf-8", "backslashreplace")


def _last_line(sink: _Sink) -> str:
    lines = [line for line in sink.tail.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it printed nothing"


def _run(
    valgrind: str, command: Sequence[str], sink: _Sink, stdout: IO[bytes] | IO[str] | int | None
) -> tuple[int, bool]:
    """Run the program to its end; its exit status, and whether we let it get there."""
    ours, theirs = os.pipe()
    with suppress(OSError):  # a smaller pipe will do
        fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, _PIECE)
    arguments = [
        valgrind,
        "--tool=lackey",
        "--trace-mem=yes",
        "--trace-children=no",
        # A forked child that does not exec stays under valgrind: without this it would write
        # its accesses into the same stream.
        "--child-silent-after-fork=yes",
        f"--log-fd={theirs}",
        "--",
        *command,
    ]
    try:
        process = subprocess.Popen(arguments, pass_fds=(theirs,), stdout=stdout)
    except OSError as error:
        os.close(ours)
        raise _cannot_be_run(valgrind, error) from error
    finally:
        os.close(theirs)
    complete = True
    try:
        _drain(ours, process, sink)
    except KeyboardInterrupt:
        complete = False
    finally:
        os.close(ours)
        exit_code = _end(process)
    return exit_code, complete


def _drain(pipe: int, process: subprocess.Popen[bytes], sink: _Sink) -> None:
    """Read lackey's output until it ends.

    A child of the program may hold the pipe open after the program's end, so its end is that of the
    program, as soon as nothing more is in the pipe.
    """
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            if not selector.select(_POLL_S):
                if process.poll() is not None:
                    return
                continue
            # lackey writes line by line: wait for many lines, or the overhead is ours.
            time.sleep(_GATHER_S)
            piece = os.read(pipe, _PIECE)
            if not piece:
                return
            sink.feed(piece)


def _end(process: subprocess.Popen[bytes]) -> int:
    """Exit status of the program, which is stopped if it still runs without a reader."""
    with suppress(subprocess.TimeoutExpired):
        return process.wait(timeout=10)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        return process.wait(timeout=10)
    process.kill()
    return process.wait()
