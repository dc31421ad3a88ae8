"""The way into compiled code: every function of the generic modules that Python code calls.

``Machine`` and ``Mm`` take them from here, so that the machine's own architecture answers.
"""

from __future__ import annotations

from mm_model import (
    access,
    filemap,
    folio_reclaim,
    gup,
    huge_memory,
    hugetlb,
    khugepaged,
    ksm,
    madvise,
    memory,
    migrate,
    mprotect,
    mremap,
    pagewalk,
    restore,
    swap,
    task_mmu,
    tlb,
    userfaultfd,
)
from mm_model import (
    pagemap_scan as scan,
)
from mm_model.asm import pgtable
from mm_model.build import flushing, per_arch

access_words = per_arch(access.access_words)
access_words_tlb = per_arch(tlb.access_words_tlb)
store_bytes_tlb = per_arch(tlb.store_bytes_tlb)
store_bytes = per_arch(access.store_bytes)
filemap_read_ahead = per_arch(filemap.filemap_read_ahead)
page_mkclean = flushing(filemap.page_mkclean)
unmap_mapping_range = flushing(filemap.unmap_mapping_range)
break_ksm_range = flushing(ksm.break_ksm_range)
ksm_candidate = per_arch(ksm.ksm_candidate)
ksm_merge_page = flushing(ksm.ksm_merge_page)
try_to_migrate = flushing(migrate.try_to_migrate)
try_to_unmap = flushing(folio_reclaim.try_to_unmap)
remove_migration_ptes = flushing(migrate.remove_migration_ptes)
page_prot = per_arch(pgtable.page_prot)
swp_offset = per_arch(pgtable.swp_offset)
folio_index = per_arch(huge_memory.folio_index)
collapse_pmd = flushing(khugepaged.collapse_pmd)
split_huge_pmd_address = flushing(huge_memory.split_huge_pmd_address)
next_large_folio = per_arch(huge_memory.next_large_folio)
remap_folio = flushing(huge_memory.remap_folio)
get_user_page = flushing(gup.get_user_page)
populate_range = flushing(gup.populate_range)
madvise_free = flushing(madvise.madvise_free)
hugetlb_change_protection = flushing(hugetlb.hugetlb_change_protection)
move_hugetlb_page_tables = flushing(hugetlb.move_hugetlb_page_tables)
unmap_hugepage_range = flushing(hugetlb.unmap_hugepage_range)
copy_page_range = flushing(memory.copy_page_range)
zap_page_range = flushing(memory.zap_page_range)
change_protection = flushing(mprotect.change_protection)
move_page_tables = flushing(mremap.move_page_tables)
alloc_table = per_arch(pagewalk.alloc_table)
free_all_tables = flushing(pagewalk.free_all_tables)
free_pgtables = per_arch(pagewalk.free_pgtables)
walk = per_arch(pagewalk.walk)
discard_pages = flushing(restore.discard_pages)
install_pages = flushing(restore.install_pages)
madvise_cold_or_pageout = flushing(swap.madvise_cold_or_pageout)
swapin_willneed = per_arch(swap.swapin_willneed)
unuse_range = flushing(swap.unuse_range)
clear_refs_walk = per_arch(task_mmu.clear_refs_walk)
frames_read = per_arch(task_mmu.frames_read)
pagemap_read = per_arch(task_mmu.pagemap_read)
pagemap_scan = flushing(scan.pagemap_scan)
uffd_wp_range = flushing(userfaultfd.uffd_wp_range)
zap_page_range_keep_markers = flushing(userfaultfd.zap_page_range_keep_markers)
ptes_read = per_arch(task_mmu.ptes_read)
versions_read = per_arch(task_mmu.versions_read)
