"""Random scripts for migrations: operations that mostly make sense, on a few small regions."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

PAGES = 24
KINDS = ("anon-private", "anon-private", "anon-shared", "file-shared", "tmpfs-private")

SETUP = "\n".join(
    f"map {region} {kind} {PAGES}; write {region} 0 {PAGES // 2}"
    for region, kind in enumerate(KINDS)
)
"""Five regions, half of each written."""

ANON_SETUP = f"map 0 anon-private {4 * PAGES}; write 0 0 {3 * PAGES}"
FULL_SETUP = f"map 0 anon-private {4 * PAGES}; write 0 0 {4 * PAGES}"
"""Without a hole: a folio that a fault makes is soft-dirty as a whole; userfaultfd allows none."""

_CONTENT = ("write", "write", "write", "fill", "memwrite", "fwrite", "cwrite", "sysread")
_SPANS = (
    *_CONTENT,
    "read",
    "cread",
    "munmap",
    "remap",
    "dontneed",
    "cold",
    "pageout",
    "willneed",
    "populate_write",
    "remove",
    "hugepage",
    "nohugepage",
    "dontfork",
    "wipeonfork",
    "mlock",
    "munlock",
    "thpsplit",
    "msync",
)
_BARE = ("fork", "cexit", "compact", "swapoff", "swapon")


def _span(verb: str, regions: int, pages: int) -> st.SearchStrategy[str]:
    return st.builds(
        lambda region, page, count: f"{verb} {region} {page} {count}",
        st.integers(0, regions - 1),
        st.integers(0, pages - 1),
        st.integers(1, pages // 2),
    )


def any_operation() -> st.SearchStrategy[str]:
    """Any operation, on any region."""
    span = st.sampled_from(_SPANS).flatmap(lambda verb: _span(verb, len(KINDS), PAGES))
    return st.one_of(
        span,
        span.map(lambda line: f"{line} 7" if line.startswith("fill") else line),
        st.builds(
            lambda line, prot: f"{line} {prot}",
            _span("mprotect", len(KINDS), PAGES),
            st.sampled_from(["r", "rw", "rw", "none"]),
        ),
        st.builds(
            lambda verb, line, to, page: f"{verb}{line} {to} {page}",
            st.sampled_from(["mremap", "mremap_dontunmap"]),
            _span("", len(KINDS), PAGES),
            st.integers(0, 6),
            st.integers(0, PAGES - 1),
        ),
        st.builds(
            lambda to, sharing, count, of: f"attach {to} {sharing} {count} {of}",
            st.integers(5, 7),
            st.sampled_from(["private", "shared"]),
            st.integers(1, PAGES),
            st.integers(3, 4),
        ),
        st.sampled_from(_BARE),
    )


def anonymous_operation(*, holes: bool) -> st.SearchStrategy[str]:
    """An operation on one private anonymous mapping that leaves the mapping whole."""
    verbs = (
        *("write", "write", "write", "memwrite", "read", "cold", "pageout", "willneed"),
        *("populate_write", "sysread", *(("dontneed",) if holes else ())),
    )
    return st.one_of(
        st.sampled_from(verbs).flatmap(lambda verb: _span(verb, 1, 4 * PAGES)),
        st.sampled_from(["swapoff", "swapon"]),
    )


def script(operation: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Some operations, each of which may fail."""

    def text(lines: list[str]) -> str:
        return "\n".join(
            f"-{line} 7" if line.startswith("fill") and len(line.split()) == 4 else f"-{line}"
            for line in lines
        )

    return st.lists(operation, min_size=4, max_size=24).map(text)


def task(**tables: Any) -> dict[str, Any]:
    """A scenario's tables for a small script."""
    return {
        "schema": "predump.scenario/1",
        "memory": "16MiB",
        "policy": {"kind": "fixed", "rounds": 2},
        "migration": {"run_after": "20ms"},
        **tables,
    }
