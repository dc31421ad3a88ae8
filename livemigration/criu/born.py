"""Images beside the pages for a task that the model made: what CRIU's tools want to find there.

The model has address spaces, shared memory and files, and the images say of these what is true.
It has no registers, descriptors or credentials: they are zeros, of an arm64 task, so that such a
directory can be shown, decoded, deduplicated and served, and be imported again; no kernel can
run a task that never was one.

Files of the task live in no file system, so they are written as memfds, with their content.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from livemigration.criu.magic import (
    AT_PAGESZ,
    CORE_MAGIC,
    FDINFO_MAGIC,
    FILE_TYPE_MEMFD,
    FILE_TYPE_REGULAR,
    FILES_MAGIC,
    FS_MAGIC,
    IDS_MAGIC,
    INVENTORY_MAGIC,
    MACHINE_AARCH64,
    MEMFD_INODE_MAGIC,
    MM_MAGIC,
    PSTREE_MAGIC,
    TASK_ALIVE,
    VmaStatus,
)
from livemigration.criu.naming import LazyRanges, Naming
from livemigration.criu.pb.core_pb2 import (
    CoreEntry,
    Creds,
    FpsimdAarch64,
    Itimer,
    KobjIds,
    RegsAarch64,
    SigAction,
    TaskCore,
    TaskTimers,
    ThreadCore,
    ThreadInfoAarch64,
)
from livemigration.criu.pb.files_pb2 import (
    FdinfoEntry,
    FileEntry,
    FownEntry,
    FsEntry,
    MemfdFileEntry,
    MemfdInodeEntry,
    RegFileEntry,
)
from livemigration.criu.pb.inventory_pb2 import InventoryEntry
from livemigration.criu.pb.mm_pb2 import MmEntry, VmaEntry
from livemigration.criu.pb.pstree_pb2 import PstreeEntry
from livemigration.criu.record_writer import image
from livemigration.layout import AddressSpace
from livemigration.task import Task
from mm_model import MAP_ANONYMOUS, MAP_LOCKED, MAP_SHARED, Vma

_PROGRAM: Final = 1
_ROOT: Final = 2
_FIRST_MEMFD: Final = 3
"""Ids of files in files.img: the program, the root directory, then the task's files."""
_FIRST_FD: Final = 3
_O_RDWR: Final = 2
_SIGNALS: Final = 62  # all but the two that cannot be handled
_AARCH64_REGISTERS: Final = 31
_VECTOR_WORDS: Final = 64
_SAME_MODE_USER: Final = 0  # pstate: EL0t, nothing set
_TASK_COMM_LEN: Final = 15


def vma_entry(vma: Vma, page_size: int, files: Mapping[int, int]) -> VmaEntry:
    """A mapping of the model as images have it; `files`: object of a file -> its id there."""
    flags, shmid = vma.flags | (MAP_LOCKED if vma.locked else 0), 0
    shared = bool(vma.flags & MAP_SHARED)
    if vma.shared_id in files:
        status = VmaStatus.FILE_SHARED if shared else VmaStatus.FILE_PRIVATE
        status |= VmaStatus.MEMFD
        flags &= ~MAP_ANONYMOUS
        shmid = files[vma.shared_id]
    elif shared:
        status, shmid = VmaStatus.ANON_SHARED, vma.shared_id
    else:
        status = VmaStatus.ANON_PRIVATE
        if vma.name == "[heap]":
            status |= VmaStatus.HEAP
    entry = VmaEntry(
        start=vma.start,
        end=vma.end,
        pgoff=vma.pgoff * page_size if vma.shared_id else 0,
        shmid=shmid,
        prot=vma.prot,
        flags=flags,
        status=VmaStatus.REGULAR | status,
        fd=-1,
    )
    if vma.advice:
        entry.madv = vma.advice
    if vma.shared_id in files:
        entry.fdflags = _O_RDWR
    return entry


def born_naming(task: Task, spaces: Mapping[int, AddressSpace], name: str) -> Naming:
    """Names and images of a task of the model; `name`: the program's.

    The pids are those of `spaces`, which need not be the model's.
    """
    page_size = task.machine.page_size
    root = next(pid for pid, space in spaces.items() if space.ppid not in spaces)
    files = {file.object_id: _FIRST_MEMFD + n for n, file in enumerate(task.files)}
    shmids = {object_id: object_id for object_id in files}
    images: dict[str, bytes] = {
        "inventory.img": image(INVENTORY_MAGIC, [_inventory()]),
        "pstree.img": image(PSTREE_MAGIC, [_tree_entry(space, root) for space in spaces.values()]),
        "files.img": image(FILES_MAGIC, _files(name, files)),
    }
    if files:
        images["memfd.img"] = image(MEMFD_INODE_MAGIC, _inodes(task))
    lazy: dict[int, LazyRanges] = {}
    for pid, space in spaces.items():
        shmids |= {v.shared_id: v.shared_id for v in space.vmas if v.shared_id}
        vmas = [vma_entry(vma, page_size, files) for vma in space.vmas]
        stack = max((v.end for v in space.vmas if v.name == "[stack]"), default=0)
        lazy[pid] = LazyRanges.of(vmas)
        ids = _ids(pid)
        images[f"core-{pid}.img"] = image(CORE_MAGIC, [_core(name, ids, stack)])
        images[f"ids-{pid}.img"] = image(IDS_MAGIC, [ids])
        images[f"mm-{pid}.img"] = image(MM_MAGIC, [_mm(space, vmas, stack, page_size)])
        images[f"fs-{pid}.img"] = image(
            FS_MAGIC, [FsEntry(cwd_id=_ROOT, root_id=_ROOT, umask=0o22)]
        )
        opened = list(files.values()) if pid == root else []
        images[f"fdinfo-{ids.files_id}.img"] = image(FDINFO_MAGIC, _descriptors(opened))
    return Naming({pid: pid for pid in spaces}, shmids, images, lazy)


def _inventory() -> InventoryEntry:
    namespaces = _ids(0)
    return InventoryEntry(
        img_version=2,
        fdinfo_per_id=True,
        root_ids=namespaces,
        ns_per_id=True,
        root_cg_set=1,
        lsmtype=0,
    )


def _ids(pid: int) -> KobjIds:
    """Ids of what a process has of its own (nothing is shared), and of the namespaces."""
    own = pid + 1
    return KobjIds(
        vm_id=own,
        files_id=own,
        fs_id=own,
        sighand_id=own,
        pid_ns_id=1,
        net_ns_id=2,
        ipc_ns_id=3,
        uts_ns_id=4,
        mnt_ns_id=6,
        user_ns_id=7,
        cgroup_ns_id=8,
        time_ns_id=5,
    )


def _tree_entry(space: AddressSpace, root: int) -> PstreeEntry:
    return PstreeEntry(pid=space.pid, ppid=space.ppid, pgid=root, sid=root, threads=[space.pid])


def _files(name: str, files: Mapping[int, int]) -> list[FileEntry]:
    nobody = FownEntry(uid=0, euid=0, signum=0, pid_type=0, pid=0)
    entries = [
        FileEntry(
            type=FILE_TYPE_REGULAR,
            id=number,
            reg=RegFileEntry(id=number, flags=0, pos=0, fown=nobody, name=path.encode()),
        )
        for number, path in ((_PROGRAM, f"/usr/bin/{name}"), (_ROOT, "/"))
    ]
    for object_id, number in files.items():
        memfd = MemfdFileEntry(id=number, flags=_O_RDWR, pos=0, fown=nobody, inode_id=object_id)
        entries.append(FileEntry(type=FILE_TYPE_MEMFD, id=number, memfd=memfd))
    return entries


def _inodes(task: Task) -> list[MemfdInodeEntry]:
    return [
        MemfdInodeEntry(
            name=f"file-{number}".encode(),
            uid=0,
            gid=0,
            size=file.pages * task.machine.page_size,
            shmid=file.object_id,
            seals=0,
            inode_id=file.object_id,
        )
        for number, file in enumerate(task.files)
    ]


def _descriptors(files: list[int]) -> list[FdinfoEntry]:
    """A task's files outlive their mappings, as files that are open do."""
    return [
        FdinfoEntry(id=number, flags=0, type=FILE_TYPE_MEMFD, fd=_FIRST_FD + position)
        for position, number in enumerate(files)
    ]


def _core(name: str, ids: KobjIds, stack: int) -> CoreEntry:
    none = Itimer(isec=0, iusec=0, vsec=0, vusec=0)
    default = SigAction(sigaction=0, flags=0, restorer=0, mask=0)
    registers = RegsAarch64(
        regs=[0] * _AARCH64_REGISTERS, sp=max(stack - 16, 0), pc=0, pstate=_SAME_MODE_USER
    )
    vectors = FpsimdAarch64(vregs=[0] * _VECTOR_WORDS, fpsr=0, fpcr=0)
    root = Creds(uid=0, gid=0, euid=0, egid=0, suid=0, sgid=0, fsuid=0, fsgid=0, secbits=0)
    nothing = [0, 0]
    for caps in (root.cap_inh, root.cap_prm, root.cap_eff, root.cap_bnd):
        caps.extend(nothing)
    return CoreEntry(
        mtype=MACHINE_AARCH64,
        tc=TaskCore(
            task_state=TASK_ALIVE,
            exit_code=0,
            personality=0,
            flags=0,
            blk_sigset=0,
            comm=name.encode()[:_TASK_COMM_LEN],
            timers=TaskTimers(real=none, virt=none, prof=none),
            sigactions=[default] * _SIGNALS,
        ),
        ids=ids,
        thread_core=ThreadCore(
            futex_rla=0,
            futex_rla_len=0,
            sched_nice=0,
            sched_policy=0,
            sched_prio=0,
            blk_sigset=0,
            pdeath_sig=0,
            creds=root,
        ),
        ti_aarch64=ThreadInfoAarch64(clear_tid_addr=0, tls=0, gpregs=registers, fpsimd=vectors),
    )


def _mm(space: AddressSpace, vmas: list[VmaEntry], stack: int, page_size: int) -> MmEntry:
    return MmEntry(
        start_code=0,
        end_code=0,
        start_data=0,
        end_data=0,
        start_stack=max(stack - 16, 0),
        start_brk=space.start_brk,
        brk=space.brk,
        arg_start=0,
        arg_end=0,
        env_start=0,
        env_end=0,
        exe_file_id=_PROGRAM,
        auxv=[AT_PAGESZ, page_size, 0, 0],
        vmas=vmas,
        dumpable=1,
        thp_disabled=False,
    )
