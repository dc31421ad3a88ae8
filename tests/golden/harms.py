"""What recorded kernels did without a hunk, held against the kernel with the whole patch."""

from __future__ import annotations

from collections.abc import Iterator

from predump.conform.trace import Scenario

from .catalogue import COMPLETE_SCRIPTS, Recording, collected, load

HARMS: dict[str, frozenset[str]] = {
    "contpte-access-flags-as-in-6.9": frozenset({"spurious"}),
    "contpte-access-flags-as-ported": frozenset({"endless"}),
    "contpte-access-flags-mask-only": frozenset({"spurious"}),
    "contpte-fold-ignores-soft-dirty": frozenset({"lost"}),
    "contpte_convert": frozenset({"spurious"}),
    "contpte_ptep_get": frozenset({"spurious", "endless"}),
    "contpte_ptep_get_lockless": frozenset({"endless"}),
    "pmd_mksoft_dirty": frozenset({"lost"}),
    "pte_mkdirty": frozenset({"lost", "endless"}),
    "pte_modify": frozenset({"spurious"}),
    "pte_swp_clear_soft_dirty": frozenset({"spurious", "endless"}),
    "pte_swp_mksoft_dirty": frozenset({"lost"}),
    "ptep_set_access_flags": frozenset({"lost", "endless"}),
}
"""Hunk or variant -> the harms that its recordings show; those that show none are left out."""


def harms(recording: Recording) -> frozenset[str]:
    """``lost``, ``spurious``, ``endless``: what the recording shows that the whole patch does not.

    The whole patch, with its own fault on contiguous blocks mended, is the measure.
    """
    whole = load(COMPLETE_SCRIPTS)
    found: set[str] = set()
    for scenario in collected(recording):
        if scenario.killed and not whole[scenario.name].killed:
            found.add("endless")
        found.update(_first_harm(whole[scenario.name], scenario))
    return frozenset(found)


def _first_harm(whole: Scenario, without: Scenario) -> Iterator[str]:
    """Where the soft-dirty bits of a scenario part first: what follows is its consequence."""
    for one, two in zip(whole.snaps, without.snaps, strict=False):
        for region in one.regions.keys() & two.regions.keys():
            bits = one.regions[region].fields["soft_dirty"]
            others = two.regions[region].fields["soft_dirty"]
            kinds = {
                "lost" if mine == "1" else "spurious"
                for mine, other in zip(bits, others, strict=False)
                if mine != other
            }
            if kinds:
                yield from kinds
                return
