"""Loading code into a process that is only for that.

What is imported stays to the process' end. Python looks through it for garbage all the same, time
and again while it grows, which is a fifth of a node's start, and later whenever it looks through
everything.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """No garbage is looked for meanwhile, nor afterwards in what is there by then.

    For commands, not for what others call from processes of their own.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()
