"""A recorded scenario against the model: every difference, with the descriptors behind it.

After each operation its result is compared, and wherever the recording has a snapshot, every field
of every page and every mapping. A page that goes on differing in the same way is reported once.
Where the kernel never came back from an operation, the model must report a livelock in it.

One thing is the kernel's accident and is left out (``ACCIDENTAL``): fork of private 64 KiB hugetlb
memory. copy_hugetlb_page_range() leaves out what a shared page table maps, and asks for that a
counter that only tables of huge entries have set; in a table of page entries it is whatever was
there. So from one run to the next the child may get no pages, and the parent's keep their write
permission.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby

from livemigration.operations import Op
from mm_model import Livelock, ModelConfig, NotModelled
from predump.conform.descriptors import page_words, vma_words
from predump.conform.replay import Player
from predump.conform.trace import (
    DESCRIPTOR_FIELDS,
    SCAN_FIELD,
    RegionState,
    Scenario,
    Snapshot,
    VmaRecord,
)

ACCIDENTAL: dict[str, frozenset[str]] = {
    "self": frozenset({"pte_write", "pte_rdonly"}),
    "child": frozenset({"present", "file", SCAN_FIELD, *DESCRIPTOR_FIELDS}),
}
"""Whose fields of a region are not compared, from the fork of its 64 KiB hugetlb memory on."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One place where the model shows something else than the kernel did.

    ``step``      number of the operation after which it shows; -1 before the first
    ``operation`` that operation, in the script language
    ``what``      ``result``, ``end`` (one of the two never ends), ``pages``, ``vmas``, ``regions``
    ``who``       ``self`` or ``child``
    ``pages``     first and last page of the region, for ``pages``
    ``expected``  what the kernel showed, ``found`` what the model shows
    ``entry``     the model's page-table entry of the first page then
    ``vma``       the model's mapping of that page then
    """

    scenario: str
    step: int
    operation: str
    what: str
    expected: str
    found: str
    who: str = "self"
    region: int = 0
    pages: tuple[int, int] = (0, -1)
    entry: str = ""
    vma: str = ""


@dataclass(slots=True)
class Verdict:
    """What came of one scenario: differences in their order, and how much was compared.

    ``not_modelled``: why the model could not go on after ``steps`` operations; "" if it could.
    """

    scenario: Scenario
    differences: list[Difference] = field(default_factory=list)
    steps: int = 0
    pages_compared: int = 0
    not_modelled: str = ""

    @property
    def agrees(self) -> bool:
        """No difference, and all of it was replayed."""
        return not self.differences and not self.not_modelled


def judge(scenario: Scenario, config: ModelConfig) -> Verdict:
    """Replay ``scenario`` on a machine made by ``config`` and compare."""
    run = _Run(scenario, Player(config))
    try:
        run.replay()
    except NotModelled as reason:
        run.verdict.not_modelled = str(reason.strerror)
    finally:
        run.player.machine.release()
    return run.verdict


class _Run:
    """One replay: the player, and what is known already."""

    def __init__(self, scenario: Scenario, player: Player) -> None:
        self.scenario = scenario
        self.player = player
        self.verdict = Verdict(scenario)
        self._known: dict[tuple[str, int, int], tuple[tuple[str, str, str], ...]] = {}
        self._known_vmas: dict[tuple[str, int], tuple[tuple[VmaRecord, ...], ...]] = {}
        self._contiguous_hugetlb: set[int] = set()
        self._forked_hugetlb: set[int] = set()

    def replay(self) -> None:
        self._compare(-1)
        for step, op in enumerate(self.scenario.ops):
            try:
                rc = self.player.execute(op)
            except Livelock as hang:
                self._differs(step, "end", f"rc {op.rc}", f"never ends: {hang.strerror}")
                return
            self.verdict.steps += 1
            self._note_accidents(op)
            if rc != op.rc:
                self._differs(step, "result", f"rc {op.rc}", f"rc {rc}")
            if op.verb == "compact":
                self._move_what_the_kernel_moved(step)
            self._compare(step)
        if self.scenario.killed:
            self._hangs(len(self.scenario.ops))

    def _note_accidents(self, op: Op) -> None:
        """Regions that have private 64 KiB hugetlb memory, and those that were forked since."""
        if op.verb == "map" and op.kind == "hugetlb64k":
            self._contiguous_hugetlb.add(op.region)
        elif op.verb == "mremap" and op.region in self._contiguous_hugetlb:
            self._contiguous_hugetlb.add(op.to_region)
        elif op.verb == "fork":
            self._forked_hugetlb |= self._contiguous_hugetlb

    def _move_what_the_kernel_moved(self, step: int) -> None:
        """Compaction moves the pages that it likes, and no two runs the same ones.

        A move shows where it makes a dirty page soft-dirty (remove_migration_pte() of mm/migrate.c
        calls pte_mkdirty()). Such pages move in the model, too: it must then show what the kernel
        showed. A page that is no longer clean for another reason differs as before.
        """
        for snap in self.scenario.snaps:
            if snap.after != step or (snap.who == "child" and self.player.child is None):
                continue
            for region in snap.regions.keys() & self.player.pages.keys():
                kernel = snap.regions[region].fields["soft_dirty"]
                model = self.player.show(snap.who, region, descriptors=False).fields["soft_dirty"]
                for page, (theirs, ours) in enumerate(zip(kernel, model, strict=False)):
                    if theirs > ours:
                        self.player.migrate(snap.who, region, page)

    def _hangs(self, step: int) -> None:
        """The operation from which the kernel never came back must be a livelock in the model."""
        if self.scenario.hung is None:
            raise NotModelled("the operation that hung is in no recording of the same script")
        try:
            rc = self.player.execute(self.scenario.hung)
        except Livelock:
            self.verdict.steps += 1
            return
        self._differs(step, "end", "never ends", f"rc {rc}")

    def _operation(self, step: int) -> str:
        ops: tuple[Op, ...] = self.scenario.ops
        if step < len(ops):
            return ops[step].script() if step >= 0 else ""
        return self.scenario.hung.script() if self.scenario.hung else ""

    def _differs(self, step: int, what: str, expected: str, found: str) -> None:
        operation = self._operation(step)
        difference = Difference(self.scenario.name, step, operation, what, expected, found)
        self.verdict.differences.append(difference)

    def _compare(self, step: int) -> None:
        for snap in self.scenario.snaps:
            if snap.after == step:
                self._compare_snapshot(snap)

    def _compare_snapshot(self, snap: Snapshot) -> None:
        expected, found = sorted(snap.regions), sorted(self.player.pages)
        if expected != found:
            self._differs(snap.after, "regions", f"{expected}", f"{found}")
            return
        if snap.who == "child" and self.player.child is None:
            self._differs(snap.after, "regions", "a child", "no child")
            return
        for number, kernel in snap.regions.items():
            model = self.player.show(snap.who, number, descriptors=self.scenario.has_descriptors)
            if model.npages != kernel.npages:
                self._differs(
                    snap.after, "regions", f"{kernel.npages} pages", f"{model.npages} pages"
                )
                continue
            if SCAN_FIELD not in kernel.fields:
                model.fields.pop(SCAN_FIELD, None)
            if number in self._forked_hugetlb:
                for name in ACCIDENTAL[snap.who]:
                    model.fields.pop(name, None)
            self._compare_pages(snap, number, kernel, model)
            self._compare_vmas(snap, number, kernel.vmas, model.vmas)
            self.verdict.pages_compared += kernel.npages

    def _compare_pages(
        self, snap: Snapshot, region: int, kernel: RegionState, model: RegionState
    ) -> None:
        if all(kernel.fields[name] == shown for name, shown in model.fields.items()):
            self._known = {
                key: value for key, value in self._known.items() if key[:2] != (snap.who, region)
            }
            return
        fresh: list[tuple[int, tuple[tuple[str, str, str], ...]]] = []
        for page in range(kernel.npages):
            differs = tuple(
                (name, kernel.fields[name][page], shown[page])
                for name, shown in model.fields.items()
                if kernel.fields[name][page] != shown[page]
            )
            key = (snap.who, region, page)
            if differs and self._known.get(key) != differs:
                fresh.append((page, differs))
            self._known[key] = differs
        # Neighbours that differ in the same way are one difference.
        numbered = enumerate(fresh)
        for _, group in groupby(numbered, key=lambda item: (item[1][0] - item[0], item[1][1])):
            run = [entry for _, entry in group]
            self._pages_differ(snap, region, (run[0][0], run[-1][0]), run[0][1])

    def _pages_differ(
        self,
        snap: Snapshot,
        region: int,
        pages: tuple[int, int],
        differs: tuple[tuple[str, str, str], ...],
    ) -> None:
        mm = self.player.task(snap.who)
        address = self.player.address(region, pages[0])
        self.verdict.differences.append(
            Difference(
                scenario=self.scenario.name,
                step=snap.after,
                operation=self._operation(snap.after),
                what="pages",
                expected=" ".join(f"{name}={kernel}" for name, kernel, _ in differs),
                found=" ".join(f"{name}={model}" for name, _, model in differs),
                who=snap.who,
                region=region,
                pages=pages,
                entry=page_words(mm, address),
                vma=vma_words(mm, address),
            )
        )

    def _compare_vmas(
        self,
        snap: Snapshot,
        region: int,
        kernel: tuple[VmaRecord, ...],
        model: tuple[VmaRecord, ...],
    ) -> None:
        key = (snap.who, region)
        if kernel == model:
            self._known_vmas.pop(key, None)
            return
        if self._known_vmas.get(key) == (kernel, model):
            return
        self._known_vmas[key] = (kernel, model)
        self.verdict.differences.append(
            Difference(
                scenario=self.scenario.name,
                step=snap.after,
                operation=self._operation(snap.after),
                what="vmas",
                expected=vma_list(kernel),
                found=vma_list(model),
                who=snap.who,
                region=region,
            )
        )


def vma_list(vmas: tuple[VmaRecord, ...]) -> str:
    """``0-4 rw-p sd, 4-8 r--p``: page numbers, permissions, VM_SOFTDIRTY."""
    return ", ".join(
        f"{vma.start}-{vma.end} {vma.perms}{' sd' if vma.soft_dirty else ''}" for vma in vmas
    )
