"""`predump mm`: operations one by one, with what each changed, and views."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from livemigration.operations import OperationError
from mm_model import ModelConfig
from predump.cli import app
from predump.conform.session import Session, result_words


@pytest.fixture
def session() -> Iterator[Session]:
    opened = Session(ModelConfig(frames=256, swap_slots=256))
    yield opened
    opened.close()


def mm(*arguments: object, stdin: str = "") -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["mm", *map(str, arguments)], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def after(session: Session, *lines: str) -> list[str]:
    """What the last of the lines says."""
    said: list[str] = []
    for line in lines:
        said = session.run(line)
    return said


def test_each_operation_tells_its_result_and_what_it_changed(session: Session) -> None:
    assert after(session, "map 0 anon-private 4") == [
        "ok",
        "  region 0 mappings  none  ->  0-4 rw-p sd",
        "  region 0 pages 0-3  pagemap  nothing  ->  soft-dirty",
    ]
    written = "VALID USER AF WRITE DIRTY SOFT_DIRTY frame 1"
    assert after(session, "write 0 1 2") == [
        "ok",
        f"  region 0 pages 1-2  entry  none  ->  {written}",
        "  region 0 pages 1-2  pagemap  soft-dirty  ->  present soft-dirty",
    ]
    assert after(session, "clear") == [
        "ok",
        "  region 0 mappings  0-4 rw-p sd  ->  0-4 rw-p",
        f"  region 0 pages 1-2  entry  {written}  ->  VALID USER RDONLY AF DIRTY frame 1",
        "  region 0 page 0  pagemap  soft-dirty  ->  nothing",
        "  region 0 pages 1-2  pagemap  present soft-dirty  ->  present",
        "  region 0 page 3  pagemap  soft-dirty  ->  nothing",
    ]
    assert after(session, "clear") == ["ok"]
    assert after(session, "mprotect 0 0 4 r", "write 0 1 1") == ["SIGSEGV"]


def test_swap_and_fork_show_in_both_tasks(session: Session) -> None:
    said = after(session, "map 0 anon-private 2", "write 0 0 2", "clear", "pageout 0 0 1")
    assert said[1] == (
        "  region 0 page 0  entry  VALID USER RDONLY AF DIRTY frame 1  ->  swap slot 1 EXCLUSIVE"
    )
    said = after(session, "fork")
    assert "  region 0 page 0  entry  swap slot 1 EXCLUSIVE  ->  swap slot 1" in said
    assert "  child: region 0 page 0  pagemap  nothing  ->  swapped" in said
    said = after(session, "cwrite 0 1 1")
    assert said[1:] == [
        "  child: region 0 page 1  entry  VALID USER RDONLY DIRTY frame 2  ->  "
        "VALID USER AF WRITE DIRTY SOFT_DIRTY frame 3",
        "  child: region 0 page 1  pagemap  present  ->  present soft-dirty",
    ]


def test_views_look_without_touching(session: Session) -> None:
    after(session, "map 0 anon-private 4", "write 0 0 2", "clear", "map 1 tmpfs-shared 2")
    assert after(session, "vmas") == [
        "0x1000000000-0x1000004000  region 0 pages 0-3  rw-p  anonymous",
        "0x1040000000-0x1040002000  region 1 pages 0-1  rw-s  shared object 1  VM_SOFTDIRTY",
    ]
    assert after(session, "ptes 0 1 2") == [
        "region 0 page 1  0x00e0000000002fc3  VALID USER RDONLY AF DIRTY frame 2",
        "region 0 page 2  none",
    ]
    assert after(session, "pagemap") == [
        "region 0 pages 0-1  present",
        "region 0 pages 2-3  nothing",
        "region 1 pages 0-1  soft-dirty",
    ]
    assert after(session, "stats")[0].startswith("faults 2: copied 0, made writable 0, ")
    assert after(session, "read 0 3 1", "pagemap 0 2 2") == [
        "region 0 page 2  nothing",
        "region 0 page 3  present",
    ]
    assert after(session, "reset", "vmas") == []


def test_help_names_every_operation(session: Session) -> None:
    text = "\n".join(session.run("help"))
    for verb in ("map", "munmap", "mremap_dontunmap", "uwp", "cclear", "thpsplit", "swapoff"):
        assert verb in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("line", ["ptes 3", "ptes 0 1", "pagemap x", "vmas 0", "write 0"])
def test_line_that_cannot_be_run_is_refused(session: Session, line: str) -> None:
    session.run("map 0 anon-private 1")
    with pytest.raises(OperationError):
        session.run(line)


@pytest.mark.parametrize(
    ("rc", "words"),
    [(0, "ok"), (-22, "EINVAL"), (11, "SIGSEGV"), (7, "SIGBUS"), (-1000, "no child")],
)
def test_results_in_words(rc: int, words: str) -> None:
    assert result_words(rc) == words


# -- the command


def test_script_is_run_and_echoed(tmp_path: Path) -> None:
    file = tmp_path / "mine.mm"
    file.write_text("map 0 anon-private 1; clear  # one page\nwrite 0 0 1\nquit\nclear\n")
    code, out, _ = mm(file, "--hunks-off", "pte_mkdirty")
    assert code == 0
    assert [line for line in out.splitlines() if line.startswith(">")] == [
        "> map 0 anon-private 1",
        "> clear",
        "> write 0 0 1",
    ]
    assert out.endswith("pagemap  nothing  ->  present\n")


def test_script_ends_where_a_kernel_would_hang() -> None:
    script = "map 0 anon-private 1\nclear\nmprotect 0 0 1 r\nmemwrite 0 0 1\nvmas\n"
    code, out, _ = mm("--hunks-off", "pte_mkdirty", stdin=script)
    assert code == 0
    assert "\nnever ends: " in out
    assert "> vmas" not in out


@pytest.mark.parametrize(
    ("arguments", "stdin", "line"),
    [
        (["none.mm"], "", "none.mm: there is no such file"),
        ([], "clear\nwriet 0 0 1\n", "standard input, line 2: 'wriet 0 0 1': there is no operati"),
        (["--set", "page_size=5"], "", "page_size 5: must be one of 4096, 16384, 65536"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], stdin: str, line: str) -> None:
    code, _, err = mm(*arguments, stdin=stdin)
    assert code == 2
    assert err.startswith(f"predump: error: {line}")
    assert err.count("\n") == 1


def test_prompt_goes_on_after_a_mistake() -> None:
    ours, theirs = pty.openpty()
    try:
        os.write(ours, b"map 0 anon-private 1\nwrote\nvmas\nquit\n")
        ran = subprocess.run(
            [sys.executable, "-m", "predump", "mm"],
            stdin=theirs,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert "'wrote': there is no operation 'wrote'; did you mean 'write'?" in ran.stdout
    assert "0x1000000000-0x1000001000  region 0 page 0  rw-p  anonymous  VM_SOFTDIRTY" in ran.stdout
