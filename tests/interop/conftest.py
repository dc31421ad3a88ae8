"""Real CRIU, in every version that scripts/criu.sh can fetch, for the interop tests."""

from __future__ import annotations

import pytest

from tests.interop.real_criu import SUITES, RealCriu, fetched


@pytest.fixture(scope="session", params=SUITES)
def real_criu(request: pytest.FixtureRequest) -> RealCriu:
    """Each version in turn."""
    return fetched(str(request.param))
