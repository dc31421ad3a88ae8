"""The flat arrays that a machine and its address spaces consist of.

Compiled code gets ``Phys`` (one per machine) and ``Space`` (one per address space) as named tuples
of arrays. Single numbers that compiled code changes live in ``ctr`` and ``regs`` at the indices
below.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Int: TypeAlias = Any
"""A signed number in compiled code: int64 there, ``int`` or ``numpy.int64`` when not compiled."""
Flag: TypeAlias = Any
"""A truth value in compiled code: ``bool`` or ``numpy.bool``."""

# Phys.ctr
NEXT_FRAME: Final = 0  # frames below were used at some time; from here on they are known to be zero
FREE_FRAMES: Final = 1  # height of the stack of free frames
NEXT_TABLE: Final = 2
FREE_TABLES: Final = 3
NEXT_SLOT: Final = 4
FREE_SLOTS: Final = 5
VERSION: Final = 6  # last content stamp given out
ANON_VMA: Final = 7  # last anon_vma given out
SWAP_ON: Final = 8
USED_SLOTS: Final = 9
FAULT_ADDRESS: Final = 10  # where the last access failed
STATUS: Final = 11  # how
N_FAULTS: Final = 12
N_COW: Final = 13
N_WP: Final = 14
N_SWAPIN: Final = 15
N_ZERO: Final = 16
N_LIVELOCKS: Final = 17
PREFETCHED: Final = 18  # of no meaning; see access.py
TLB_GENERATION: Final = 19  # raised by every flush; see tlb.py
LARGE_FOLIOS: Final = 20  # folios of more than one page that exist; 0 keeps the common paths short
FREE_LARGE: Final = 21  # frames in ``free_folios``
THP_ALWAYS: Final = 22  # orders (bit n: 2**n pages) that anonymous faults may use everywhere
THP_MADVISE: Final = 23  # and where MADV_HUGEPAGE was given
DEPOSITED: Final = 24  # tables set aside, one for each huge page that a split would need it for
CTR_SIZE: Final = 25

MAX_ORDER: Final = 32

# Space.regs
PGD: Final = 0  # the top table
N_VMAS: Final = 1
RSS: Final = 2  # pages mapped, without the zero page
HIWATER_RSS: Final = 3
VMA_HINT: Final = 4  # the VMA found last
HUGE_PMDS: Final = 5  # entries above page entries that map memory; 0 keeps walks short
HUGETLB_PAGES: Final = 6  # pages of hugetlb mapped, which RSS does not count
REGS_SIZE: Final = 7

# columns of Space.vmas
V_START: Final = 0
V_END: Final = 1
V_FLAGS: Final = 2  # VM_* below
V_PROT: Final = 3  # vm_page_prot
V_PGOFF: Final = 4
V_OBJECT: Final = 5  # shared object id, 0: anonymous
V_CACHE: Final = 6  # the object's first entry in Phys.cache
V_LIMIT: Final = 7  # the object's size in pages
V_ANON: Final = 8  # anon_vma, 0: none yet
V_CHAIN: Final = 9  # length of the anon_vma chain
V_FILE: Final = 10  # pages of a file: as many in Phys.cache again, for its disk; 0: no file
V_HUGE: Final = 11  # hugetlb: log2 of the page size in base pages; 0: no hugetlb
V_COLUMNS: Final = 12

# vm_flags (include/linux/mm.h)
VM_READ: Final = np.uint64(0x1)
VM_WRITE: Final = np.uint64(0x2)
VM_EXEC: Final = np.uint64(0x4)
VM_SHARED: Final = np.uint64(0x8)
VM_MAYREAD: Final = np.uint64(0x10)
VM_MAYWRITE: Final = np.uint64(0x20)
VM_MAYEXEC: Final = np.uint64(0x40)
VM_MAYSHARE: Final = np.uint64(0x80)
VM_GROWSDOWN: Final = np.uint64(0x100)
VM_UFFD_WP: Final = np.uint64(0x1000)
VM_LOCKED: Final = np.uint64(0x2000)
VM_DONTCOPY: Final = np.uint64(0x20000)
VM_ACCOUNT: Final = np.uint64(0x100000)
VM_NORESERVE: Final = np.uint64(0x200000)
VM_HUGETLB: Final = np.uint64(0x400000)
VM_WIPEONFORK: Final = np.uint64(0x02000000)
VM_SOFTDIRTY: Final = np.uint64(0x08000000)
VM_HUGEPAGE: Final = np.uint64(0x20000000)
VM_NOHUGEPAGE: Final = np.uint64(0x40000000)

# frame flags
PG_ANON: Final = np.uint8(1)
PG_EXCLUSIVE: Final = np.uint8(2)  # PageAnonExclusive
PG_SWAPBACKED: Final = np.uint8(4)  # clear: MADV_FREE'd
PG_DIRTY: Final = np.uint8(8)
PG_SWAPCACHE: Final = np.uint8(16)  # in memory and in the swap cache
PG_CACHE: Final = np.uint8(32)  # belongs to a shared object
PG_LARGE: Final = np.uint8(64)  # one page of a folio of 2**``order`` pages, naturally aligned
PG_KSM: Final = np.uint8(128)  # merged: several may map it, nobody may write to it
PG_FREE: Final = np.uint8(PG_ANON | PG_CACHE)  # never both: coalesce_free_frames marks with it

# how an access or a walk ended
OK: Final = 0
SEGV_MAPERR: Final = 1
SEGV_ACCERR: Final = 2
SIGBUS: Final = 3
NO_FRAMES: Final = 4
NO_TABLES: Final = 5  # the caller grows Phys.tables and goes on
LIVELOCK: Final = 6
GROW_STACK: Final = 7  # the caller expands the stack and goes on
GUP_EFAULT: Final = 8
MIGRATING: Final = 9  # the caller lets the migration end and goes on
FALLBACK: Final = 10  # no huge page here: go on with page entries
SPLIT_EVERYWHERE: Final = 11  # the caller splits the large folio in all address spaces, and goes on
RECLAIM_EVERYWHERE: Final = 12  # the caller takes the huge page out of all of them, and goes on

RETRY_LIMIT: Final = 64


class Phys(NamedTuple):
    """One machine's memory: all arrays are flat and owned by ``Machine``.

    ``tables``       uint64: page-table pages, ``1 << table_shift`` entries each; table 0 is not
                     used
    ``free_tables``  int64 stack
    ``content``      uint64[frames, page_size / 8]: the bytes of each frame
    ``version``      uint64 per frame: content stamp, 0 = zeros
    ``mapcount``     int32 per frame: page-table entries that map it
    ``flags``        uint8 per frame: PG_*
    ``slot_of``      int32 per frame: the swap slot that holds this frame, 0 none
    ``order``        uint8 per frame: log2 of its folio's pages; valid with PG_LARGE only
    ``free_frames``  int64 stack
    ``free_folios``  int64[MAX_ORDER]: first free folio of each order, 0 none
    ``next_free``    int64 per frame: the next one in that list
    ``slot_frame``   int64 per swap slot: the frame with its content, 0 = slot is free
    ``slot_count``   int32 per swap slot: entries (page tables, shared objects) that name it
    ``free_slots``   int64 stack
    ``cache``        uint64: page cache of shared objects; 0 hole, frame << 1, or slot << 1 | 1;
                     a file has a second run for what is stored
    ``ctr``          int64[CTR_SIZE]
    """

    tables: NDArray[np.uint64]
    free_tables: NDArray[np.int64]
    content: NDArray[np.uint64]
    version: NDArray[np.uint64]
    mapcount: NDArray[np.int32]
    flags: NDArray[np.uint8]
    slot_of: NDArray[np.int32]
    order: NDArray[np.uint8]
    free_frames: NDArray[np.int64]
    free_folios: NDArray[np.int64]
    next_free: NDArray[np.int64]
    slot_frame: NDArray[np.int64]
    slot_count: NDArray[np.int32]
    free_slots: NDArray[np.int64]
    cache: NDArray[np.uint64]
    ctr: NDArray[np.int64]


class Space(NamedTuple):
    """One address space.

    ``vmas``  uint64[n, V_COLUMNS], ascending
    ``regs``  int64[REGS_SIZE]
    """

    vmas: NDArray[np.uint64]
    regs: NDArray[np.int64]
