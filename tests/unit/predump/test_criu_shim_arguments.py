"""The command lines that tools give to criu, and the requests that they stand for."""

from __future__ import annotations

import shlex

import pytest

from livemigration.criu.pb import rpc_pb2
from predump.criu_shim.arguments import UsageError, parse
from predump.criu_shim.errors import ShimError
from predump.criu_shim.requests import options_of


def test_lxcs_dump() -> None:
    """As exec_criu() of LXC's src/lxc/criu.c puts it together for a pre-dump to a page server."""
    given = parse(
        shlex.split(
            "pre-dump --tcp-established --file-locks --link-remap --manage-cgroups=full "
            "--ext-mount-map auto --enable-external-sharing --enable-external-masters "
            "--enable-fs hugetlbfs --enable-fs tracefs -D /images/1 -o /images/1/pre-dump.log "
            "--cgroup-root name=systemd:/lxc/c1 -vvvvvv --action-script /usr/share/hook "
            "--ext-mount-map /data:/data -t 4711 --skip-in-flight --freeze-cgroup /sys/fs/f "
            "--ext-mount-map /dev/console:console --external tty[1a:88] --prev-images-dir ../0 "
            "--page-server --address 10.0.0.2 --port 27 --force-irmap --ghost-limit 256000000"
        )
    )
    assert (given.command, given.verbosity) == ("pre-dump", 2 + 6)
    assert given.value("images-dir") == "/images/1"
    assert given.value("log-file") == "/images/1/pre-dump.log"
    assert given.all("action-script") == ["/usr/share/hook"]
    options = options_of(given)
    assert (options.pid, options.parent_img) == (4711, "../0")
    assert (options.ps.address, options.ps.port) == ("10.0.0.2", 27)
    assert list(options.enable_fs) == ["hugetlbfs", "tracefs"]
    assert options.manage_cgroups_mode == rpc_pb2.RPC_CG_FULL
    assert options.auto_ext_mnt and options.tcp_skip_in_flight and options.force_irmap
    assert [(mount.key, mount.val) for mount in options.ext_mnt] == [
        ("/data", "/data"),
        ("/dev/console", "console"),
    ]
    assert (options.cg_root[0].ctrl, options.cg_root[0].path) == ("name=systemd", "/lxc/c1")
    assert not options.leave_running


def test_lxcs_restore() -> None:
    given = parse(
        shlex.split(
            "restore --tcp-established --file-locks --link-remap --manage-cgroups=full -D d "
            "-o d/restore.log --root /var/lib/rootfs --restore-detached --restore-sibling "
            "--inherit-fd fd[3]:tty[1a:88] --lsm-profile apparmor:lxc --external veth[eth0]:v0@br0"
        )
    )
    assert given.on >= {"restore-detached", "restore-sibling"}
    options = options_of(given)
    assert (options.root, options.lsm_profile) == ("/var/lib/rootfs", "apparmor:lxc")
    assert list(options.external) == ["veth[eth0]:v0@br0"]


@pytest.mark.parametrize(
    ("line", "verbosity"),
    [("dump", 2), ("-v dump", 3), ("dump -vv", 4), ("-v4 dump", 4), ("dump --verbosity=1", 1)],
)
def test_verbosity(line: str, verbosity: int) -> None:
    assert parse(line.split()).verbosity == verbosity


def test_short_options_together_shortened_long_ones_and_no() -> None:
    given = parse(
        shlex.split("dump -Rj -t5 -Dimages --prev-im ../p --track-mem --no-track-mem -- x")
    )
    assert given.on >= {"leave-running", "shell-job"}
    assert "track-mem" not in given.on
    assert given.value("tree") == "5"
    assert given.value("images-dir") == "images"
    assert given.value("prev-images-dir") == "../p"
    assert (given.command, given.rest) == ("dump", ["x"])


def test_a_value_that_may_be_there_is_attached() -> None:
    given = parse(["dump", "--manage-cgroups", "-x"])
    assert given.on >= {"manage-cgroups", "ext-unix-sk"}
    assert options_of(given).manage_cgroups_mode == rpc_pb2.RPC_CG_SOFT


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("dump --nosuch", "unrecognized option '--nosuch'"),
        ("dump --no", "'--no' is ambiguous"),
        ("dump -t", "option '--tree' requires an argument"),
        ("dump -Q", "invalid option -- 'Q'"),
        ("dump --track-mem=1", "option '--track-mem' doesn't allow an argument"),
        ("dump -vx", "invalid argument for -v: x"),
    ],
)
def test_what_is_no_command_line(line: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse(line.split())


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("dump -t 0", "invalid argument for --tree: 0"),
        ("dump -t abc", "invalid argument for --tree: abc"),
        ("dump --page-server --port 70000", "invalid argument for --port: 70000"),
        ("dump --manage-cgroups=some", "invalid argument for --manage-cgroups: some"),
        ("dump --pre-dump-mode fast", "invalid argument for --pre-dump-mode: fast"),
        ("dump --empty-ns pid", "unsupported empty namespace: pid"),
        ("dump -M data", "invalid argument for --ext-mount-map: data"),
    ],
)
def test_values_that_cannot_be(line: str, why: str) -> None:
    with pytest.raises(ShimError, match=why):
        options_of(parse(line.split()))
