"""`criu check --feature NAME`: the names that CRIU 4.2 knows, and which of them hold here."""

from __future__ import annotations

from typing import Final

from livemigration.criu.pb import rpc_pb2
from livemigration.criu.rpc.client import RpcClient
from predump.criu_shim.errors import ShimError

_ASKED: Final = {
    "mem_dirty_track": "mem_track",
    "uffd": "lazy_pages",
    "uffd-noncoop": "lazy_pages",
    "pidfd_store": "pidfd_store",
}
"""What the service is asked for, by the names of `RpcFeatures`."""

_ALWAYS: Final = frozenset({"pagemap_scan"})
"""What the kernel model has."""

_OTHERS: Final = """
    mnt_id aio_remap timerfd tun tun_ns userns fdinfo_lock seccomp_suspend seccomp_filters
    loginuid cgroupns autofs tcp_half_closed compat_cr can_map_vdso sk_ns sk_unix_file
    net_diag_raw nsid link_nsid kcmp_epoll timens external_net_ns clone3_set_tid newifindex
    nftables has_ipt_legacy ns_pid apparmor_stacking network_lock_nftables sockopt_buf_lock
    memfd_hugetlb move_mount_set_group openat2 get_rseq_conf ipv6_freebind timer_cr_ids
    overlayfs_maps breakpoints pagemap_scan_guard_pages
"""
KNOWN: Final = frozenset({*_ASKED, *_ALWAYS, *_OTHERS.split()})


def has_feature(client: RpcClient, name: str) -> bool:
    """Whether the simulated host has it. Raises ShimError for a name that CRIU does not know."""
    if name not in KNOWN:
        raise ShimError(f"Unknown feature {name}")
    field = _ASKED.get(name)
    if field is None:
        return name in _ALWAYS
    wanted = rpc_pb2.RpcFeatures(**{field: True})
    answer = client.ask(rpc_pb2.RpcRequest(type=rpc_pb2.RPC_FEATURE_CHECK, features=wanted))
    return bool(getattr(answer.features, field))
