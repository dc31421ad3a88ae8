"""What the CPU and the architecture's fault handling do to an entry."""

from mm_model.arm64.fault import *  # noqa: F403
