"""``predump criu``'s commands for image directories: what they print, and how they end."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from predump.cli import app
from predump.scenario import load_scenario

DATA = Path(__file__).parents[2] / "data" / "criu"
FULL, SRC, DST = DATA / "full-4.2.1", DATA / "page-server-4.1.1/src", DATA / "page-server-4.1.1/dst"
SCENARIO = """
schema = "predump.scenario/1"
memory = "256KiB"
[workload]
kind = "sequential"
rate = "5000 pages/s"
[policy]
kind = "fixed"
rounds = 1
[migration]
run_after = "1ms"
"""


def criu(*arguments: object, status: int = 0) -> str:
    ran = CliRunner().invoke(app, ["criu", *map(str, arguments)])
    assert ran.exit_code == status, ran.output
    return ran.output


def refused(*arguments: object, status: int = 2) -> str:
    """The one line of an error."""
    lines = criu(*arguments, status=status).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("predump: error: ")
    return lines[0]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    (folder / "run.toml").write_text(SCENARIO)
    told = criu("export", folder / "run.toml", "-D", folder / "chain", "--json")
    assert [made["round"] for made in json.loads(told)] == [0, 1, 2]
    return folder / "chain"


def test_show_tells_of_processes_mappings_and_pages() -> None:
    printed = criu("show", FULL)
    for text in ("memtouch", "0x10000000", "/opt/memtouch/memtouch", "segment 1267", "rw-"):
        assert text in printed


def test_show_tells_where_the_pages_of_a_chain_are(chain: Path) -> None:
    told = json.loads(criu("show", chain / "3", "--json"))
    assert [Path(level["directory"]).name for level in told["chain"]] == ["3", "2", "1"]
    assert sum(level["used"] for level in told["chain"]) == told["processes"][0]["pages"] == 64
    assert told["troubles"] == []


def test_verify_a_chain(chain: Path) -> None:
    assert "dump: 64 pages (256.0 KiB), all in a chain of 3 directories" in criu(
        "verify", chain / "3"
    )


def test_verify_names_the_addresses_that_are_missing(chain: Path, tmp_path: Path) -> None:
    shutil.copytree(chain, tmp_path / "copy", symlinks=True)
    shutil.rmtree(tmp_path / "copy/1")
    printed = criu("verify", tmp_path / "copy/3", status=3)
    assert "leads to no directory" in printed
    assert "pages at 0x1000" in printed
    told = json.loads(criu("verify", tmp_path / "copy/3", "--json", status=3))
    assert not told["complete"]
    assert sum(trouble.get("pages", 0) for trouble in told["troubles"]) + told["pages"] == 64


def test_verify_a_dump_through_a_page_server() -> None:
    assert "no such file; after a dump through a page server" in criu("verify", SRC, status=3)
    assert "78 pages" in criu("verify", SRC, "--also", DST)


def test_diff(chain: Path) -> None:
    assert "the same mappings, and 77 pages" in criu("diff", FULL, FULL)
    assert "pages at" in criu("diff", chain / "2", chain / "3", status=3)
    told = json.loads(criu("diff", chain / "2", chain / "3", "--json", status=3))
    assert not told["same"]


def test_dedup(chain: Path, tmp_path: Path) -> None:
    shutil.copytree(chain, tmp_path / "copy", symlinks=True)
    assert "pages given back" in criu("dedup", tmp_path / "copy/3", "--chain")
    criu("verify", tmp_path / "copy/3")
    assert "the same mappings" in criu("diff", chain / "3", tmp_path / "copy/3")


def test_import_makes_a_scenario_that_loads(tmp_path: Path) -> None:
    file = tmp_path / "imported.toml"
    criu("import", FULL, "-o", file)
    task = load_scenario(file).task
    assert task.source.images == str(FULL.resolve())
    assert task.page_size == 4096
    assert tomllib.loads(criu("import", FULL)) == tomllib.loads(file.read_text())
    assert "is there already" in refused("import", FULL, "-o", file)


class TestWhatIsRefused:
    def test_no_directory(self, tmp_path: Path) -> None:
        for command in ("show", "verify", "dedup", "import"):
            assert "no such directory" in refused(command, tmp_path / "no")
        assert "no such directory" in refused("diff", FULL, tmp_path / "no")

    def test_options(self) -> None:
        assert "write 4096, 16384 or 65536" in refused("show", FULL, "--page-size", 1000)
        assert "workload" in refused("import", FULL, "--workload", "nothing")

    def test_a_run_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "run.toml").write_text(SCENARIO)
        run = tmp_path / "run.toml"
        assert "write old, new or both" in refused(
            "export", run, "-D", tmp_path / "out", "--flavour", "x"
        )
        assert "is there already" in refused("export", run, "-D", tmp_path)
        assert "no such" in refused("export", tmp_path / "no.toml", "-D", tmp_path / "out")

    def test_a_run_that_does_not_verify(self, tmp_path: Path) -> None:
        (tmp_path / "run.toml").write_text(SCENARIO + '[hunks]\noff = ["ptep_set_access_flags"]\n')
        line = refused("export", tmp_path / "run.toml", "-D", tmp_path / "out", status=3)
        assert "pages differ at the destination" in line
        assert not (tmp_path / "out").exists()
