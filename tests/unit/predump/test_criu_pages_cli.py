"""`predump criu send | received | lazy-server | fetch`: what cannot be served is one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from predump.cli import app

SCENARIO = Path(__file__).parents[3] / "scenarios" / "quickstart.toml"
WRONG: dict[str, tuple[list[object], int, str]] = {
    "version": (
        ["send", SCENARIO, "--page-server", "a:1", "--criu-version", "5"],
        2,
        "4.1 and 4.2",
    ),
    "address": (["send", SCENARIO, "--page-server", "nowhere"], 1, "HOST:PORT"),
    "nobody": (
        ["send", SCENARIO, "--page-server", "127.0.0.1:1", "--wait", "0"],
        1,
        "--prev-images-dir",
    ),
    "post-copy": (
        ["send", SCENARIO, "--page-server", "a:1", "--set", "policy.kind=post-copy"],
        2,
        "leaves pages behind",
    ),
    "page size": (
        ["send", SCENARIO, "--page-server", "a:1", "--page-size", "65536"],
        2,
        "set page_size to 65536",
    ),
    "key without authority": (
        ["send", SCENARIO, "--page-server", "a:1", "--tls-key", "x"],
        2,
        "need --tls-ca",
    ),
    "no images": (["lazy-server", "/nonexistent"], 2, "no such directory"),
    "no dump": (
        ["fetch", "/tmp", "-o", "/tmp/x", "--page-server", "127.0.0.1:1", "--wait", "0"],
        2,
        "no page server at",
    ),
    "no node": (["received", "nowhere"], 2, "HOST:PORT"),
}


@pytest.mark.parametrize(("arguments", "status", "why"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_is_one_line(arguments: list[object], status: int, why: str) -> None:
    said = CliRunner().invoke(app, ["criu", *map(str, arguments)])
    assert why in said.stderr
    assert said.stderr.startswith("predump: error: ")
    assert said.stderr.count("\n") == 1
    assert said.exit_code == status


def test_a_page_server_needs_a_place_for_its_images() -> None:
    said = CliRunner().invoke(app, ["serve", "dest", "--criu-page-server", "127.0.0.1:0"])
    assert said.stderr.count("\n") == 1
    assert "--state-dir" in said.stderr
    assert said.exit_code == 2
