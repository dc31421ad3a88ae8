"""A task's memory on the host itself: a real mapping, real faults, the kernel's own word on writes.

The other trackers work on the model (`mm_model`). Here a task's memory is one anonymous private
mapping of this process. The workload stores into it, and which pages were written is asked of the
kernel that runs here: PAGEMAP_SCAN with userfaultfd's WP_ASYNC (Linux 6.7 on x86-64, 6.10 on
arm64), or soft-dirty where that is compiled in. It is what the model's figures are measured
against.

* `region` - the mapping
* `ioctl`, `userfaultfd`, `pagemap_scan`, `soft_dirty` - the kernel's interfaces, one each
* `written` - "which pages are there, which were written since the last reset", by either of them
* `stores`, `memory` - the part of `mm_model.Machine` and `mm_model.Mm` that a task that only
  writes needs, on that mapping
"""
