"""userfaultfd where a sandbox forbids it: one line, not a traceback."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from livemigration.host.userfaultfd import UFFDIO_API, UFFDIO_REGISTER, UFFDIO_UNREGISTER
from tests.unit.host.kernel_here import needs

ROOT = Path(__file__).resolve().parents[3]

FORBID = """
    import ctypes, errno, os, struct
    from livemigration.errors import BadRequest
    from livemigration.host import userfaultfd

    # A seccomp filter as container engines install: this one call fails with EPERM.
    def step(code, jump_true, jump_false, value):
        return struct.pack("=HBBI", code, jump_true, jump_false, value)

    number = userfaultfd.syscall_number()
    program = b"".join((
        step(0x20, 0, 0, 0),  # load the number of the call
        step(0x15, 0, 1, number),  # is it this one?
        step(0x06, 0, 0, 0x00050000 | errno.EPERM),
        step(0x06, 0, 0, 0x7FFF0000),  # else: allowed
    ))
    steps = ctypes.create_string_buffer(program)
    filters = struct.pack("=H6xQ", len(program) // 8, ctypes.addressof(steps))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, ctypes.c_char_p(filters), 0, 0) == 0, os.strerror(ctypes.get_errno())
    try:
        userfaultfd.Userfaultfd()
    except BadRequest as refused:
        print(refused)
"""


@needs("wp-async")
def test_a_sandbox_that_forbids_the_call_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FORBID)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == (
        "userfaultfd is not permitted (a container's seccomp profile?); allow that call\n"
    )


@pytest.mark.parametrize(
    ("number", "kernels"),
    [
        # As strace prints them; they are part of the kernel's ABI.
        (UFFDIO_API, 0xC018AA3F),
        (UFFDIO_REGISTER, 0xC020AA00),
        (UFFDIO_UNREGISTER, 0x8010AA01),
    ],
)
def test_ioctls_have_the_kernels_numbers(number: int, kernels: int) -> None:
    assert number == kernels
