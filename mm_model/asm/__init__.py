"""Where generic code takes its architecture from, as ``#include <asm/...>`` does in the kernel.

These modules name arm64. ``mm_model/build.py`` makes the same generic code once more for another
architecture, and there ``mm_model.asm.X`` is ``mm_model.x86.X``.
"""
