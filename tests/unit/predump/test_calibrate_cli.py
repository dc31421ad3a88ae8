"""What `predump calibrate` and `predump accuracy` refuse before they do anything."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from predump.cli import app


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("calibrate", "--memory", "lots"), "--memory: 'lots' is not understood; write a size"),
        (("calibrate", "--memory", "4KiB"), "--memory 4KiB: must be a multiple of"),
        (("calibrate", "-o", "/nowhere/m.toml"), "there is no directory /nowhere; make it first"),
        (("calibrate", "-o", "/tmp"), "/tmp: is a directory; name a file in it"),
        (("accuracy", "none.toml", "--machine", "kvm"), "none.toml: there is no such file"),
        (
            ("accuracy", "--machine", "kvm", "--memory", "5MB"),
            "--memory 5MB: memory: '5MB': unknown unit 'MB'",
        ),
        (("accuracy", "--machine", "kvn"), "--machine: unknown machine 'kvn'; did you mean 'kvm'?"),
        (("accuracy", "--machine", "none.toml"), "none.toml: there is no such file"),
        (("accuracy", "--rates", ","), "--rates: has no values; write some, with commas between"),
        (("accuracy", "--memory", "4MiB,4MiB"), "a value is there twice; leave one out"),
        (("accuracy", "-o", "a.txt"), "a.txt: write a name that ends with .json or .md"),
        (
            ("accuracy", "--machine", "kvm", "--rates", "fast"),
            "--rates fast: workload.rate: 'fast' is not understood; write a rate like",
        ),
    ],
)
def test_bad_input_is_said_in_one_line(arguments: tuple[str, ...], says: str) -> None:
    ended = CliRunner().invoke(app, list(arguments))
    assert ended.exit_code == 2
    assert ended.stderr.startswith("predump: error: ")
    assert says in ended.stderr
    assert ended.stderr.count("\n") == 1
