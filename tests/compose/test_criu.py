"""Profile `criu` of docker-compose.yml: a task's rounds in the page servers of a real CRIU.

What CRIU wrote is compared with the memory byte by byte, and the comparison can fail: images that
were damaged, and rounds of a kernel that lost pages, end with status 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from tests.compose.compose import Compose, output_of

pytestmark = [pytest.mark.compose, pytest.mark.timeout(900)]

SMALL = "--set memory=16MiB"


@pytest.fixture(scope="module")
def criu(project: Callable[[str], Compose]) -> Iterator[Compose]:
    """A project for the profile."""
    compose = project("criu").having(COMPOSE_PROFILES="criu", SCENARIO="scenarios/idle.toml")
    yield compose
    compose.remove()


def test_rounds_in_real_page_servers_equal_the_memory(criu: Compose) -> None:
    """The command of docs/compose.md: two pre-dumps, the final round, compared; status 0."""
    run = criu(
        "up", "--exit-code-from", "criu-runner", "criu-runner", check=False, PREDUMP_ARGS=SMALL
    )

    assert run.returncode == 0, output_of(run)
    assert "the images are equal to the memory" in run.stdout
    logs = criu("logs", "criu").stdout
    assert [f"page server {number}: " in logs for number in range(4)] == [True] * 3 + [False]
    container = criu.container("criu")
    assert criu.engine("inspect", "-f", "{{.State.ExitCode}}", container) == "0"


def test_damaged_images_are_found(criu: Compose) -> None:
    """One bit of a page that only round 0 has, under a chain of two more: status 3."""
    damaged = replace(criu, command=(*criu.command, "-f", "tests/compose/damage.yml"))

    run = damaged(
        "up", "--exit-code-from", "criu-runner", "criu-runner", check=False, PREDUMP_ARGS=SMALL
    )

    assert run.returncode == 3, output_of(run)
    assert criu("logs", "criu").stdout.count("turned a bit") == 1
    assert "1 pages differ" in run.stdout


def test_page_servers_that_run_on_take_the_next_run(criu: Compose) -> None:
    """Pages that a kernel without a hunk of the patch lost differ in CRIU's images; the next run,
    through the next three servers, is equal again."""
    criu("up", "-d", "--force-recreate", "criu")
    lost = criu(
        "run", "--rm", "-T", "criu-runner", check=False,
        SCENARIO="scenarios/quickstart.toml",
        PREDUMP_ARGS=f"{SMALL} --set hunks.off=ptep_set_access_flags",
    )  # fmt: skip
    equal = criu("run", "--rm", "-T", "criu-runner", check=False, PREDUMP_ARGS=SMALL)

    assert lost.returncode == 3, output_of(lost)
    assert "pages differ" in lost.stdout
    assert equal.returncode == 0, output_of(equal)
    assert "page servers 3 to 5" in output_of(equal)


def test_a_real_dump_into_a_destination_equals_the_process(criu: Compose) -> None:
    """The other direction: byte by byte, and a byte that was changed later is found."""
    run = criu("run", "--rm", "-T", "criu-compare", check=False)
    assert run.returncode == 0, output_of(run)
    assert "the same mappings, and" in run.stdout

    change = "printf x | dd of=/state/criu/1/1/pages-65537.img bs=1 seek=99 conv=notrunc"
    criu("exec", "-T", "criu-dest", "sh", "-c", change)
    run = criu("run", "--rm", "-T", "--no-deps", "criu-compare", check=False)
    assert run.returncode == 3, output_of(run)
    assert "1 pages at 0x" in run.stdout


def test_the_page_server_is_a_users_with_one_capability(criu: Compose) -> None:
    """Though the container begins as root."""
    criu("up", "-d", "criu")
    status = criu("exec", "-T", "criu", "cat", "/proc/1/status").stdout
    found = dict(line.split(":\t", 1) for line in status.splitlines())

    assert set(found["Uid"].split()) == {"1000"}
    assert found["NoNewPrivs"] == "1"
    assert int(found["CapEff"], 16).bit_count() == 1
    written = criu("exec", "-T", "criu", "touch", "/x", check=False)
    assert "Read-only file system" in output_of(written)
