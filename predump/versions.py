"""The versions of what took part in a run, for results and for `predump version`."""

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = (
    *("predump", "numpy", "numba", "grpcio", "protobuf", "pydantic", "msgpack", "xxhash"),
    *("zstandard", "lz4"),
)


def versions() -> dict[str, str]:
    """Name to version of Predump, Python and the packages that can change a figure."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a checkout that was not installed
            found[package] = "not installed"
    return found
