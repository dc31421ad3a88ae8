"""Machines that the kernel's behaviour must not depend on: page sizes, with and without DBM."""

from __future__ import annotations

import pytest

from mm_model import Machine
from tests.unit.mm_model.kernel_box import PAGE_SIZES, make_machine

MACHINES = [(size, dbm) for size in PAGE_SIZES for dbm in (True, False)]


@pytest.fixture(
    params=MACHINES, ids=lambda param: f"{param[0] // 1024}K-{'dbm' if param[1] else 'no-dbm'}"
)
def any_machine(request: pytest.FixtureRequest) -> Machine:
    """Every page size, with and without hardware dirty management."""
    page_size, dbm = request.param
    return make_machine(page_size, dbm=dbm)


@pytest.fixture
def machine() -> Machine:
    """4K pages, with hardware dirty management."""
    return make_machine()
