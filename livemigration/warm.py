"""Getting ready beside everything else that a host does when it starts.

Compiled code is loaded from Numba's cache when it is first called, or compiled if it is not there
yet; either belongs before the first migration and not in its round 0. A host that is told to stop
meanwhile stops at once, so the work is in a thread that nothing waits for but a migration.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class WarmUp:
    """Work that runs once, in the background."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=work, name="warm-up", daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def wait(self) -> None:
        """Blocks until the work is done; at once if it never began."""
        if self._thread.ident is not None:
            self._thread.join()
