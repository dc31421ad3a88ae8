"""`predump dashboard` with arguments that cannot be: one line, status 2 or 1, nothing started."""

from __future__ import annotations

import socket

import pytest
from typer.testing import CliRunner

from predump.cli import app


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--listen", "nowhere"], "--listen: 'nowhere' is not an address"),
        (["--listen", "0.0.0.0:0"], "--listen 0.0.0.0:0: others could start nothing"),
        (["--source", "127.0.0.1:7001"], "--source and --dest go together"),
        (["--source", "a:1", "--dest", "b:0"], "--dest: 'b:0' has port 0"),
        (["--mqtt", "http://broker"], "--mqtt: "),
        (["--results", "/nowhere/r.duckdb"], "--results /nowhere/r.duckdb: there is no such"),
        (["--scenarios", "/nowhere"], "--scenarios /nowhere: there is no such directory"),
        (["--tls-ca", "ca.pem"], "--tls-ca, --tls-cert and --tls-key need --source and --dest"),
    ],
)
def test_bad_arguments_are_one_line(arguments: list[str], why: str) -> None:
    ended = CliRunner().invoke(app, ["dashboard", *arguments])
    assert ended.exit_code == 2
    assert ended.stderr.count("\n") == 1 and why in ended.stderr
    assert ended.stdout == ""


def test_a_port_that_is_taken_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = CliRunner().invoke(app, ["dashboard", "--listen", address])
    assert ended.exit_code == 1
    assert ended.stderr == f"predump: error: cannot listen on {address}: Address already in use\n"
