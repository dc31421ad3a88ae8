"""``docker compose`` as the tests call it: our file, a project, the engine of engine.sh."""

from __future__ import annotations

import json
import shlex
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

Run = subprocess.CompletedProcess[str]


@dataclass(frozen=True, slots=True)
class Compose:
    """``docker compose`` on one project, with the engine's environment."""

    command: tuple[str, ...]
    environment: dict[str, str]
    project: str

    def arguments(self, *arguments: str) -> list[str]:
        """The whole command line of a subcommand."""
        return [*self.command, "-p", self.project, *arguments]

    def __call__(self, *arguments: str, check: bool = True, **environment: str) -> Run:
        """Run a subcommand; with *check* a failure shows what it printed."""
        result = subprocess.run(
            self.arguments(*arguments),
            cwd=ROOT,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and result.returncode:
            pytest.fail(f"{' '.join(arguments)}: {result.returncode}\n{output_of(result)}")
        return result

    def having(self, **settings: str) -> Compose:
        """The same project with more of the file's variables set."""
        return replace(self, environment=self.environment | settings)

    def script(self, *command: str, **environment: str) -> Run:
        """One of our scripts, on the image that is there."""
        return subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment | {"BUILD": "0"} | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def remove(self, **environment: str) -> None:
        """Ends all of it at once, and leaves nothing. Farewells are for tests that look at them."""
        self("kill", check=False, **environment)
        self("down", "--volumes", "--remove-orphans", check=False, **environment)

    def up(self, results: Path, **environment: str) -> Run:
        """The command of docs/compose.md, then everything of it removed."""
        environment["RESULTS"] = str(results)
        up = ("up", "--abort-on-container-exit", "--exit-code-from", "runner")
        try:
            return self(*up, check=False, **environment)
        finally:
            self("down", "--volumes", "--remove-orphans", check=False, **environment)

    def migrate(self, results: Path, **environment: str) -> Run:
        """One scenario through nodes that run on; starts them where they do not run."""
        environment["RESULTS"] = str(results)
        return self("run", "--rm", "-T", "runner", check=False, **environment)

    def in_container(self, *arguments: str) -> Run:
        """A command of its own in a new container, without the nodes: `-u 1:1 --entrypoint ...`."""
        return self("run", "--rm", "-T", "--no-deps", *arguments)

    def container(self, service: str) -> str:
        """The container of a service that was started."""
        return self("ps", "-a", "-q", service).stdout.strip()

    def engine(self, *arguments: str) -> str:
        """What ``docker`` prints for a command beside compose."""
        command = ["docker", *arguments]
        ran = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.strip()


def output_of(run: Run) -> str:
    """All that a command printed, for a failed assertion."""
    return run.stdout + run.stderr


def engine_environment(folder: Path) -> dict[str, str]:
    """What engine.sh wrote, as a shell reads it."""
    script = f"set -a; . {shlex.quote(str(folder / 'env'))}; env -0"
    output = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return dict(item.split("=", 1) for item in output.stdout.split("\0") if "=" in item)


def result_in(folder: Path) -> dict[str, Any]:
    """The JSON object that the runner wrote."""
    loaded: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return loaded
