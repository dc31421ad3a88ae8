"""The entry functions of <asm/pgtable.h> that read or change entries where they are."""

from mm_model.arm64.contpte import *  # noqa: F403
