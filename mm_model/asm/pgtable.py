"""<asm/pgtable.h>."""

from mm_model.arm64.pgtable import *  # noqa: F403
