"""The CRIU that the other tests here rely on is real, starts, and is of the dialect it is for."""

from __future__ import annotations

from tests.interop.real_criu import RealCriu


def test_it_starts_on_this_kernel(real_criu: RealCriu) -> None:
    said = real_criu.run("check")
    assert "Looks good" in said.stdout + said.stderr


def test_each_suite_speaks_its_own_dialect(real_criu: RealCriu) -> None:
    """Up to 4.1 the page server's headers have 24 bytes, since 4.2 they have 32."""
    assert (real_criu.version >= (4, 2)) == (real_criu.suite == "sid")
