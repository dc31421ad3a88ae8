"""From a command line to the request that it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeVar

from livemigration.criu.pb import rpc_pb2
from predump.criu_shim.arguments import Arguments
from predump.criu_shim.errors import ShimError

Value = TypeVar("Value")

_CLONE_NEWNET: Final = 0x40000000
_CGROUP_MODES: Final = {
    "none": rpc_pb2.RPC_CG_NONE,
    "props": rpc_pb2.RPC_CG_PROPS,
    "soft": rpc_pb2.RPC_CG_SOFT,
    "full": rpc_pb2.RPC_CG_FULL,
    "strict": rpc_pb2.RPC_CG_STRICT,
    "ignore": rpc_pb2.RPC_CG_IGNORE,
}
_PRE_DUMP_MODES: Final = {"splice": rpc_pb2.RPC_SPLICE, "read": rpc_pb2.RPC_VM_READ}
_NETWORK_LOCKS: Final = {
    "iptables": rpc_pb2.RPC_LOCK_IPTABLES,
    "nftables": rpc_pb2.RPC_LOCK_NFTABLES,
    "skip": rpc_pb2.RPC_LOCK_SKIP,
}
_SWITCHES: Final = {
    "leave-running": "leave_running",
    "leave-stopped": "leave_stopped",
    "ext-unix-sk": "ext_unix_sk",
    "tcp-established": "tcp_established",
    "evasive-devices": "evasive_devices",
    "shell-job": "shell_job",
    "file-locks": "file_locks",
    "track-mem": "track_mem",
    "auto-dedup": "auto_dedup",
    "link-remap": "link_remap",
    "force-irmap": "force_irmap",
    "enable-external-sharing": "ext_sharing",
    "enable-external-masters": "ext_masters",
    "skip-in-flight": "tcp_skip_in_flight",
    "weak-sysctls": "weak_sysctls",
    "lazy-pages": "lazy_pages",
    "tcp-close": "tcp_close",
    "tls": "tls",
    "tls-no-cn-verify": "tls_no_cn_verify",
    "mntns-compat-mode": "mntns_compat_mode",
    "unprivileged": "unprivileged",
    "skip-file-rwx-check": "skip_file_rwx_check",
    "display-stats": "display_stats",
    "allow-uprobes": "allow_uprobes",
}
_TEXTS: Final = {
    "root": "root",
    "prev-images-dir": "parent_img",
    "freeze-cgroup": "freeze_cgroup",
    "lsm-profile": "lsm_profile",
    "lsm-mount-context": "lsm_mount_context",
    "cgroup-props": "cgroup_props",
    "cgroup-props-file": "cgroup_props_file",
    "cgroup-yard": "cgroup_yard",
    "tls-cacert": "tls_cacert",
    "tls-cacrl": "tls_cacrl",
    "tls-cert": "tls_cert",
    "tls-key": "tls_key",
}


def options_of(given: Arguments) -> rpc_pb2.RpcOptions:
    """The options of a request, except directories and the log. Raises ShimError."""
    options = rpc_pb2.RpcOptions()
    for name, field in _SWITCHES.items():
        if name in given.on:
            setattr(options, field, True)
    for name, field in _TEXTS.items():
        if name in given.values:
            setattr(options, field, given.value(name))
    pid = given.number("tree", least=1, most=(1 << 31) - 1)
    if pid is not None:
        options.pid = pid
    timeout = given.number("timeout", least=0, most=(1 << 32) - 1)
    if timeout is not None:
        options.timeout = timeout
    options.skip_mnt.extend(given.all("skip-mnt"))
    options.enable_fs.extend(given.all("enable-fs"))
    options.external.extend(given.all("external"))
    options.irmap_scan_paths.extend(given.all("irmap-scan-path"))
    options.cgroup_dump_controller.extend(given.all("cgroup-dump-controller"))
    _choices(given, options)
    _pairs(given, options)
    _page_server(given, options)
    return options


def _choices(given: Arguments, options: rpc_pb2.RpcOptions) -> None:
    if "manage-cgroups" in given.on:
        mode = given.value("manage-cgroups", "soft")
        options.manage_cgroups = True
        options.manage_cgroups_mode = _choice(_CGROUP_MODES, "manage-cgroups", mode)
    if "pre-dump-mode" in given.values:
        mode = given.value("pre-dump-mode")
        options.pre_dump_mode = _choice(_PRE_DUMP_MODES, "pre-dump-mode", mode)
    if "network-lock" in given.values:
        lock = given.value("network-lock")
        options.network_lock = _choice(_NETWORK_LOCKS, "network-lock", lock)
    for namespace in given.all("empty-ns"):
        if namespace != "net":
            raise ShimError(f"unsupported empty namespace: {namespace}")
        options.empty_ns |= _CLONE_NEWNET


def _choice(choices: Mapping[str, Value], name: str, text: str) -> Value:
    if text not in choices:
        raise ShimError(f"invalid argument for --{name}: {text}")
    return choices[text]


def _pairs(given: Arguments, options: rpc_pb2.RpcOptions) -> None:
    for text in given.all("ext-mount-map"):
        key, colon, value = text.partition(":")
        if text == "auto":
            options.auto_ext_mnt = True
        elif not colon:
            raise ShimError(f"invalid argument for --ext-mount-map: {text}")
        else:
            options.ext_mnt.add(key=key, val=value)
    for text in given.all("cgroup-root"):
        controller, colon, path = text.rpartition(":")
        if colon:
            options.cg_root.add(ctrl=controller, path=path)
        else:
            options.cg_root.add(path=path)
    for text in given.all("veth-pair"):
        inside, equals, outside = text.partition("=")
        if not equals:
            raise ShimError(f"invalid argument for --veth-pair: {text}")
        options.veths.add(if_in=inside, if_out=outside)
    for text in given.all("join-ns"):
        namespace, colon, file = text.partition(":")
        if not colon:
            raise ShimError(f"invalid argument for --join-ns: {text}")
        options.join_ns.add(ns=namespace, ns_file=file)


def _page_server(given: Arguments, options: rpc_pb2.RpcOptions) -> None:
    port = given.number("port", least=1, most=(1 << 16) - 1)
    descriptor = given.number("ps-socket", least=0, most=(1 << 20))
    if descriptor is not None:
        options.ps.fd = descriptor
    elif "page-server" in given.on or given.command == "page-server":
        if "address" in given.values:
            options.ps.address = given.value("address")
        options.ps.port = port or 0
