"""While code is loaded nothing looks for garbage; afterwards it does again, but not in the code."""

from __future__ import annotations

import gc

import pytest

from predump.loading import loading


def test_garbage_is_looked_for_again_afterwards_but_not_in_what_was_loaded() -> None:
    before = gc.get_freeze_count()
    loaded = []
    with loading():
        assert not gc.isenabled()
        loaded += [[] for _ in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + 1000


def test_an_import_that_fails_leaves_it_on_and_whoever_had_it_off_keeps_it_off() -> None:
    with pytest.raises(ImportError), loading():
        raise ImportError
    assert gc.isenabled()
    gc.disable()
    try:
        with loading():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
