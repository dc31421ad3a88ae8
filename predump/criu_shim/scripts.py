"""Action scripts (``--action-script``): run at each point of a dump or restore, as CRIU does.

The environment tells a script where it is: CRTOOLS_SCRIPT_ACTION, CRTOOLS_IMAGE_DIR and, once there
is a task, CRTOOLS_INIT_PID (criu/action-scripts.c).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from predump.criu_shim.output import say_error


@dataclass(slots=True)
class Scripts:
    """The scripts of one command; `pid` is the task's, 0 until it is known."""

    paths: Sequence[str]
    images: str
    pid: int = 0

    def run(self, point: str, pid: int) -> bool:
        """Runs them all; whether all of them went well."""
        self.pid = self.pid or pid
        variables = {"CRTOOLS_SCRIPT_ACTION": point, "CRTOOLS_IMAGE_DIR": self.images}
        if self.pid:
            variables["CRTOOLS_INIT_PID"] = str(self.pid)
        sys.stdout.flush()
        good = True
        environment = {**os.environ, **variables}
        for path in self.paths:
            try:
                status = subprocess.run([path], check=False, env=environment).returncode
            except OSError as error:
                say_error(f"Can't run script {path}: {error.strerror}")
                good = False
                continue
            if status:
                say_error(f"Script {path} exited with {status}")
                good = False
        return good
