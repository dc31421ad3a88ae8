"""<asm/hugetlb.h>: reading and changing the entries of a hugetlb page."""

from mm_model.arm64.hugetlbpage import *  # noqa: F403
