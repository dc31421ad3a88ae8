"""Workloads that only store: uniform, zipf, hotspot, sequential; phases of these; and idle."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from livemigration.workload.base import (
    PRIVATE,
    READ_WRITE,
    REGION_BASE,
    ROOT,
    Setting,
    Tally,
    Task,
    Workload,
    WorkloadError,
)
from livemigration.workload.clock import NeverClock, OpClock, PhaseClock, RateClock
from livemigration.workload.content import Content
from livemigration.workload.spec import (
    HotspotPhase,
    HotspotSpec,
    IdlePhase,
    IdleSpec,
    PhasedSpec,
    SequentialPhase,
    SequentialSpec,
    UniformPhase,
    UniformSpec,
    ZipfPhase,
    ZipfSpec,
)
from livemigration.workload.stream import (
    Hotspot,
    Pattern,
    Sequential,
    StoreStream,
    Uniform,
    Zipf,
    populate,
)
from livemigration.workload.targets import Targets, image_pages

Writing = UniformSpec | ZipfSpec | HotspotSpec | SequentialSpec
WritingPhase = UniformPhase | ZipfPhase | HotspotPhase | SequentialPhase


def make_pattern(spec: Writing | WritingPhase, pages: int, seed: int) -> Pattern:
    """The pattern of a specification over ``pages`` pages."""
    match spec:
        case ZipfSpec() | ZipfPhase():
            return Zipf(pages, seed, spec.theta, spec.scramble)
        case HotspotSpec() | HotspotPhase():
            return Hotspot(pages, seed, spec.hot_fraction, spec.hot_probability)
        case SequentialSpec() | SequentialPhase():
            return Sequential(pages)
        case _:
            return Uniform(pages, seed)


class RegionWorkload(Workload):
    """Over one private region as large as memory, or over the pages of a CRIU image."""

    def __init__(self, setting: Setting, clock: OpClock, content: Content) -> None:
        super().__init__(setting, clock, content)
        self._adopt(Targets.region(REGION_BASE, setting.pages, setting.page_size))

    @property
    def peak_pages(self) -> int:
        """The region."""
        return self.setting.pages

    def setup(self, task: Task, *, populate: bool, from_image: bool = False) -> None:
        """See `Workload.setup`."""
        if from_image:
            self._adopt(image_targets(task, self.setting))
        else:
            map_region(task, self._targets, self.setting, self._content, fill=populate)

    def _adopt(self, targets: Targets) -> None:
        """Work on these pages; whatever depends on them is made again when it is needed."""
        self._targets = targets

    def _extra_state(self) -> dict[str, Any]:
        return {"targets": self._targets.state()}

    def _restore_extra(self, state: Mapping[str, Any]) -> None:
        self._adopt(Targets.from_state(dict(state["targets"]), self.setting.page_size))


class StoreWorkload(RegionWorkload):
    """Stores by one pattern, at one rate."""

    def __init__(self, spec: Writing, setting: Setting) -> None:
        setting.check_write_size(spec.write_size)
        setting.pages_of("working_set", spec.working_set, setting.pages)
        self._spec = spec
        super().__init__(
            setting, RateClock(spec.writes_per_second(setting.page_size)), Content.of(spec)
        )

    def _adopt(self, targets: Targets) -> None:
        super()._adopt(targets)
        self._stream: StoreStream | None = None

    def _stores(self, task: Task, first: int, stop: int, tally: Tally) -> None:
        if self._stream is None:
            self._stream = make_stream(self._spec, self._targets, self.setting, self._content)
        self._stream.run(task.processes[ROOT], first, stop, tally)


class PhasedWorkload(RegionWorkload):
    """Phases in turn; each goes on where it stopped a cycle ago."""

    def __init__(self, spec: PhasedSpec, setting: Setting) -> None:
        for phase in spec.phases:
            if not isinstance(phase, IdlePhase):
                setting.check_write_size(phase.write_size)
                setting.pages_of("phases.working_set", phase.working_set, setting.pages)
        self._spec = spec
        self._phases = PhaseClock(
            [
                (
                    phase.duration_ns,
                    Fraction(0)
                    if isinstance(phase, IdlePhase)
                    else phase.writes_per_second(setting.page_size),
                )
                for phase in spec.phases
            ]
        )
        super().__init__(setting, self._phases, Content.of(spec))

    def _adopt(self, targets: Targets) -> None:
        super()._adopt(targets)
        self._streams: dict[int, StoreStream] = {}

    def _stream_of(self, number: int) -> StoreStream:
        if number not in self._streams:
            phase = self._spec.phases[number]
            assert not isinstance(phase, IdlePhase)  # it has no operations
            self._streams[number] = make_stream(phase, self._targets, self.setting, self._content)
        return self._streams[number]

    def _stores(self, task: Task, first: int, stop: int, tally: Tally) -> None:
        k = first
        while k < stop:
            place = self._phases.locate(k)
            end = min(stop, k + place.left)
            self._stream_of(place.phase).run(task.processes[ROOT], k, end, tally, place.turn)
            k = end


class IdleWorkload(RegionWorkload):
    """Nothing happens."""

    def __init__(self, spec: IdleSpec, setting: Setting) -> None:
        super().__init__(setting, NeverClock(), Content.of(spec))

    def _stores(self, task: Task, first: int, stop: int, tally: Tally) -> None:
        raise AssertionError("an idle workload has no operations")


def make_stream(
    spec: Writing | WritingPhase, targets: Targets, setting: Setting, content: Content
) -> StoreStream:
    """The stores of a specification over its working set of ``targets``."""
    used = targets
    if spec.working_set:
        used = targets.first(spec.working_set // setting.page_size)
    return StoreStream(
        make_pattern(spec, used.count, setting.seed),
        used,
        write_size=spec.write_size,
        content=content,
        seed=setting.seed,
    )


def map_region(
    task: Task, targets: Targets, setting: Setting, content: Content, *, fill: bool
) -> None:
    """Map a private region for ``targets`` in process 1; with ``fill``, write all its pages."""
    mm = task.processes[ROOT]
    mm.mmap(targets.base, targets.count * setting.page_size, READ_WRITE, PRIVATE)
    if fill:
        populate(mm, targets, content, setting.seed)


def image_targets(task: Task, setting: Setting) -> Targets:
    """The pages of a restored image that a workload may write over."""
    table = image_pages(task.processes[ROOT], setting.page_size)
    if table.size == 0:
        raise WorkloadError(
            "source.images: process 1 has no populated page in a writable private mapping, "
            "so the workload has nothing to write over; use another image directory"
        )
    return Targets.of_table(table, setting.page_size)
