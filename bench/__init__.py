"""Benchmarks: ratios against a baseline measured in the same run, on the same machine.

    python -m bench [--quick] [--json FILE] [GROUP...]

Nothing is asserted: figures of a busy machine are no reason for a build to fail. docs/benchmarks.md
tells what each line means.
"""
