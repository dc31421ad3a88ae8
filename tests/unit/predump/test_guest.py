"""What surrounds a guest kernel: its initramfs, its command line, what is asked of it, refusals.

tests/e2e/test_guest_kernel.py boots a real one.
"""

from __future__ import annotations

import gzip
import lzma
import shutil
import stat
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from livemigration.operations import MODEL_ONLY, OPERANDS, SPAN_VERBS, parse_op
from predump.cli import app
from predump.conform.boot import GuestConfig, modules_of, qemu_command
from predump.conform.fuzz import fuzz
from predump.conform.guest import Guest, GuestInfo
from predump.conform.initramfs import (
    PROBE_SOURCE,
    Entry,
    GuestError,
    compile_probe,
    cpio,
    module_chain,
)
from predump.conform.operations import Vocabulary
from predump.conform.record import random_requests, read_script, usable_on
from predump.conform.replay import Player
from predump.conform.report import fuzz_json, fuzz_lines
from predump.conform.settings import build_config, settings_of
from predump.conform.trace import _KEYS, TraceError


def conform(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["conform", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def unpack(archive: bytes) -> dict[str, tuple[int, bytes, tuple[int, int]]]:
    """The members of a newc archive: mode, content and device by name."""
    found = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * k : at + 14 + 8 * k], 16) for k in range(13)]
        mode, size, device, name_size = fields[1], fields[6], fields[9:11], fields[11]
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        start = (at + 110 + name_size + 3) // 4 * 4
        if name == "TRAILER!!!":
            assert start == len(archive)
            return found
        found[name] = (mode, archive[start : start + size], (device[0], device[1]))
        at = (start + size + 3) // 4 * 4


# -- the initramfs


def test_archive_is_in_the_format_that_the_kernel_unpacks() -> None:
    entries = {
        "dev": Entry(stat.S_IFDIR | 0o755),
        "dev/console": Entry(stat.S_IFCHR | 0o600, device=(5, 1)),
        "init": Entry(stat.S_IFREG | 0o755, b"seven b"),
    }
    assert unpack(cpio(entries)) == {
        "dev": (0o040755, b"", (0, 0)),
        "dev/console": (0o020600, b"", (5, 1)),
        "init": (0o100755, b"seven b", (0, 0)),
    }


def test_modules_come_after_what_they_need_whatever_their_compression(tmp_path: Path) -> None:
    def module(path: str, depends: str) -> None:
        data = b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0"
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        pack = {".xz": lzma.compress, ".gz": gzip.compress}.get(file.suffix, bytes)
        file.write_bytes(pack(data))

    module("kernel/drivers/block/zram/zram.ko.xz", "zsmalloc,lz4-compress,built_in")
    module("kernel/mm/zsmalloc.ko", "")
    module("kernel/lib/lz4_compress.ko.gz", "zsmalloc")
    module("kernel/fs/other.ko", "")
    names = [path.name for path in module_chain(tmp_path, "zram")]
    assert names == ["zsmalloc.ko", "lz4_compress.ko.gz", "zram.ko.xz"]
    assert list(module_chain(tmp_path, "virtio")) == []


def test_modules_are_found_beside_the_image(tmp_path: Path) -> None:
    image = tmp_path / "boot" / "vmlinuz-6.1.0-7-amd64"
    image.parent.mkdir()
    image.touch()
    assert modules_of(image) is None
    folder = tmp_path / "lib" / "modules" / "6.1.0-7-amd64"
    folder.mkdir(parents=True)
    assert modules_of(image) == folder
    assert modules_of(tmp_path / "boot" / "bzImage") is None


def test_probe_knows_every_operation_that_a_program_can_ask_for() -> None:
    source = PROBE_SOURCE.read_text(encoding="utf-8")
    letters = {
        "region": "r", "page": "i", "count": "n", "kind": "k", "prot": "p", "to_region": "R",
        "to_page": "I", "new_count": "N", "mode": "m",
    }  # fmt: skip
    values = {"fill": "v", "uwp": "w", "mthp": "K"}
    for verb in sorted({*OPERANDS, *SPAN_VERBS} - MODEL_ONLY):
        names = OPERANDS.get(verb, ("region", "page", "count"))
        form = "".join(values[verb] if name == "value" else letters[name] for name in names)
        assert f'{{ "{verb}", "{form}", op_{verb} }}' in source


def test_probe_compiles_to_a_static_program() -> None:
    program = compile_probe("x86_64")
    assert program[:4] == b"\x7fELF"
    assert b"/lib64/ld-linux" not in program


# -- the guest


def test_guest_has_one_cpu_and_its_console_on_standard_input_and_output(tmp_path: Path) -> None:
    config = GuestConfig(tmp_path / "vmlinuz")
    command = qemu_command(config, "tcg", tmp_path / "initramfs.gz")
    assert "qemu-system-x86_64" in [Path(word).name for word in command]
    options = dict(pairwise(command))
    assert (options["-smp"], options["-accel"], options["-serial"]) == ("1", "tcg", "stdio")
    assert options["-kernel"] == str(tmp_path / "vmlinuz")
    assert options["-append"].startswith("console=ttyS0 ")
    assert "-nodefaults" in command


@pytest.mark.parametrize(("dbm", "cpu"), [(True, "max"), (False, "cortex-a57")])
def test_arm64_guest_has_dirty_bit_management_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dbm: bool, cpu: str
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    config = GuestConfig(tmp_path / "Image", arch="arm64", dbm=dbm)
    command = qemu_command(config, "tcg", tmp_path / "initramfs.gz")
    assert "/usr/bin/qemu-system-aarch64" in command
    assert command[:3] == ["setpriv", "--pdeathsig", "KILL"]
    options = dict(pairwise(command))
    assert (options["-M"], options["-cpu"]) == ("virt", cpu)
    assert options["-append"].startswith("console=ttyAMA0 ")


def test_missing_qemu_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(GuestError, match=r"apt-get install qemu-system-x86\)"):
        qemu_command(GuestConfig(tmp_path / "vmlinuz"), "tcg", tmp_path / "initramfs.gz")


def test_request_longer_than_the_terminal_takes_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "vmlinuz"
    image.touch()
    guest = Guest(GuestConfig(image))
    try:
        with pytest.raises(GuestError, match="'long': more than 3500 bytes of script"):
            guest.run("long", ["write 0 0 1"] * 400)
    finally:
        guest.close()


# -- what is recorded


def test_script_file_has_named_scenarios(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text(
        "# two\nname h01-one\nmap 0  anon-private 4\nsnap\n\nname h02\nfork # x\ncsnap\n"
    )
    assert [(request.name, request.lines) for request in read_script(file)] == [
        ("h01-one", ("map 0 anon-private 4", "snap")),
        ("h02", ("fork", "csnap")),
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "has no scenario; `name X` starts one"),
        ("clear\n", "line 1: 'clear' comes before the first `name`"),
        ("name a\nmap 0 file-shared 4\n", "line 2: 'map 0 file-shared 4': the probe has no"),
        ("name a\nmsync 0 0 4\n", "line 2: 'msync 0 0 4': the probe has no 'msync'"),
        ("name a\nclaer\n", "line 2: 'claer': there is no operation 'claer'; did you mean"),
        ("name a\nname a\n", "line 2: a second scenario 'a'"),
        ("name a b\n", "line 1: a name is one word of at most 60 characters"),
    ],
)
def test_script_that_cannot_be_recorded_is_refused(
    tmp_path: Path, text: str, complaint: str
) -> None:
    file = tmp_path / "bad.txt"
    file.write_text(text)
    with pytest.raises(TraceError) as refused:
        read_script(file)
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)


def test_random_scenarios_follow_from_the_seed_and_are_looked_at_after_every_step() -> None:
    vocabulary = Vocabulary.everything()
    requests = list(random_requests(5, 30, vocabulary))
    assert requests == list(random_requests(5, 30, vocabulary))
    assert requests[3:] == list(random_requests(8, 27, vocabulary))
    for request in requests:
        assert request.lines[1::3] == ("snap",) * (len(request.lines) // 3)
        assert request.lines[2::3] == ("csnap",) * (len(request.lines) // 3)
        for line in request.lines[::3]:
            assert parse_op(line).script() == line
    themes = {request.name.rpartition("-")[0] for request in requests}
    assert {"random-anon", "random-mthp", "random-hugetlb2m", "random-uffd"} <= themes


class ModelAsGuest(Guest):
    """Answers as the model would, but for one page that it shows cleared, ``wrong`` times."""

    def __init__(self, wrong: int) -> None:
        self.info = GuestInfo("x86_64", "6.1.0", 4096, swap=True)
        self.wrong = wrong
        self.ran = 0

    def run(self, name: str, lines: Any, hang_seconds: int | None = None) -> dict[str, Any]:
        self.ran += 1
        ops = [parse_op(line) for line in lines if "snap" not in line]
        player = Player(build_config(settings_of("x86_64", "6.1.0", 4096)))
        told, snaps = [], []
        for number, op in enumerate(ops):
            operands = {key: getattr(op, name) for key, name in _KEYS.items() if name != "rc"}
            told.append(operands | {"rc": player.execute(op)})
            tasks = ["self"] if player.child is None else ["self", "child"]
            for who in tasks:
                shown = {r: player.show(who, r, descriptors=False) for r in player.pages}
                regions = {
                    str(r): {
                        **state.fields,
                        "vmas": [
                            [v.start, v.end, v.perms, 0, "sd" if v.soft_dirty else ""]
                            for v in state.vmas
                        ],
                    }
                    for r, state in shown.items()
                }
                snaps.append({"after": number, "who": who, "regions": regions})
        player.machine.release()
        wrong = [region for snap in snaps[-1:] for region in snap["regions"].values()]
        if self.wrong and wrong and any(op.verb == "write" for op in ops):
            self.wrong -= 1
            last = wrong[0]
            last["present"] = ("1" if last["present"][0] == "0" else "0") + last["present"][1:]
        return {
            "name": name, "arch": "x86_64", "kernel": "6.1.0", "page_size": 4096,
            "ops": told, "snaps": snaps,
        }  # fmt: skip


def test_difference_that_the_kernel_shows_once_is_noted_and_fuzzing_goes_on() -> None:
    guest = ModelAsGuest(wrong=1)
    report = fuzz(guest, {}, seed=3, limit=5)
    assert (report.sequences, report.differences, report.found_in) == (5, [], "")
    (once,) = report.unrepeated
    assert "present=" in once.expected
    assert guest.ran == 5 + 3
    text = "\n".join(fuzz_lines(report, guest.info))
    assert "seen once, and not when the kernel ran the same again:\n" + once.scenario in text
    assert len(fuzz_json(report, guest.info)["unrepeated"]) == 1


def test_difference_that_stays_ends_fuzzing_and_is_shrunk() -> None:
    report = fuzz(ModelAsGuest(wrong=1 << 30), {}, seed=3, limit=5)
    assert report.unrepeated == []
    assert report.found_in
    assert len(report.script) <= 2
    assert report.differences


def test_guest_without_swap_is_not_asked_to_swap() -> None:
    guest = GuestInfo("x86_64", "6.1.0", 4096, swap=False)
    verbs = usable_on(guest, Vocabulary.everything()).verbs
    assert verbs.isdisjoint({"swapoff", "swapon", "pageout"} | MODEL_ONLY)
    assert "write" in verbs


# -- refusals of the commands


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["record", "--kernel", "none"], "none: there is no such kernel image"),
        (["fuzz", "--kernel", "none"], "none: there is no such kernel image"),
        (
            ["fuzz", "--kernel", __file__, "--arch", "sparc"],
            "--arch sparc: must be one of x86_64, ",
        ),
        (["fuzz", "--kernel", __file__, "--accel", "hvf"], "--accel hvf: must be kvm or tcg"),
        (
            ["record", "--kernel", "none", "-o", "trace.json"],
            "--output trace.json: a trace's name ends in .jsonl or .jsonl.gz",
        ),
        (
            ["fuzz", "--kernel", "none", "-o", "/nowhere/t.jsonl"],
            "--output /nowhere/t.jsonl: there is no directory /nowhere; make it first",
        ),
        (
            ["record", "--kernel", __file__, "--modules", "/nowhere"],
            "/nowhere: there is no such folder of modules",
        ),
        (
            ["fuzz", "--kernel", "none", "--set", "dbn=1"],
            "--set dbn: the model has no such setting",
        ),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], line: str) -> None:
    code, out, err = conform(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"predump: error: {line}")
    assert err.count("\n") == 1
